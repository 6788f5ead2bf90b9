"""The faster operations for a GPU against PyTorch's, which they take the place of.

Where there is no GPU the same kernels run in Triton's interpreter, on tensors of the CPU. A process has either: the
word ``TRITON_INTERPRET`` counts when Triton is imported, and other tests import it too. So `test_in_the_interpreter`
runs this file once more, in a process that has the word from its start. What needs neither a GPU nor the interpreter
is tested here: that the kernels compile, into what code, and what is done without Triton.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_train import kernels
from resnet_train.config.run import Config
from resnet_train.data import augment
from resnet_train.kernels import cuda, cuda_batch, cuda_check, native
from resnet_train.kernels.choose import PLAIN, Backend
from resnet_train.kernels.fuse import fuse
from resnet_train.models.build import build_model
from resnet_train.training.plan import build_plan
from resnet_train.training.setup import build_state, build_step_options
from resnet_train.training.step import train_step

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
FUSED = Backend("fused", "", partial(fuse, leaves=cuda.LEAVES), cuda_batch.crop_flip_normalise)
# Half of the distance between neighbouring values, relative to the smaller: what rounding once may change. NumPy has no
# bfloat16; the interpreter reads it rightly but cuts it off where a GPU rounds, so there it is the whole distance.
ROUNDING = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-7 if INTERPRETED else 2**-8}

without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
compiles = pytest.mark.skipif(INTERPRETED, reason="the kernels are interpreted in this process")


def of_triton(*versions: str) -> pytest.MarkDecorator:
    """For tests that look into the compiler, which each version has in another way."""
    found = "" if importlib.util.find_spec("triton") is None else version("triton").rpartition(".")[0]
    return pytest.mark.skipif(found not in versions, reason=f"needs Triton {' or '.join(versions)}")


looks_inside = of_triton("3.8")


def runs_kernels(test: Callable[..., None]) -> Callable[..., None]:
    return test if INTERPRETED else only_on_gpu(test)


def only_on_gpu(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.gpu(without_gpu(compiles(test)))  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def exact_convolutions() -> Iterator[None]:
    """Without TF32, and with one algorithm: what is compared are the kernels."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


@compiles
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU")
@pytest.mark.slow
def test_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    words = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 50


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5
    return values.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)


def norm_of(channels: int) -> cuda.BatchNorm2d:
    """With scales of both signs, shifts, and statistics that are not those of a new one."""
    norm = cuda.BatchNorm2d(channels)
    draws = torch.Generator().manual_seed(9)
    with torch.no_grad():
        norm.weight.normal_(generator=draws)
        norm.bias.normal_(generator=draws)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_(generator=draws)
    norm.running_var.uniform_(0.5, 2, generator=draws)
    return norm.to(DEVICE)


# ------------------------------------------------------------------------------------------------------------ norm_relu

# Folded rows and not, columns and rows that stick out of tiles, several chunks and several tiles a program, and numbers
# of channels that are no multiple of anything.
SHAPES = [
    (7, 16, 1, 1),
    (3, 16, 5, 7),
    (4, 32, 4, 4),
    (2, 48, 3, 3),
    (2, 12, 8, 8),
    (5, 1, 3, 3),
    (3, 70, 3, 5),
    (4, 16, 16, 16),
    (3, 64, 11, 11),
    (2, 128, 4, 4),
]
GPU_SHAPES = [
    (512, 64, 32, 32),
    (128, 16, 32, 32),
    (512, 512, 4, 4),
    (64, 2048, 4, 4),
    (128, 24, 32, 32),
    (500, 10, 7, 9),
]


def plain(norm: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    out: Tensor = norm(x)
    return nn.functional.relu(out if shortcut is None else out + shortcut)


def results_of(
    function: Callable[..., Tensor], x: Tensor, shortcut: Tensor | None, weight: Tensor, *, kind: torch.dtype
) -> dict[str, Tensor]:
    """Results, gradients and statistics of a training step."""
    norm = norm_of(x.shape[1]).to(torch.float64 if kind == torch.float64 else torch.float32)
    inputs = [tensor.to(kind).detach().requires_grad_() for tensor in (x, shortcut) if tensor is not None]
    y = function(norm, *inputs)
    y.backward(weight.to(kind))
    found = {"y": y, "running_mean": norm.running_mean, "running_var": norm.running_var}
    found |= {"grad_weight": norm.weight.grad, "grad_bias": norm.bias.grad}
    found |= {f"grad_{name}": tensor.grad for name, tensor in zip(("x", "shortcut"), inputs, strict=False)}
    assert norm.num_batches_tracked == 1
    return {name: tensor.detach() for name, tensor in found.items() if tensor is not None}


def compare(shape: tuple[int, ...], *, dtype: torch.dtype, shortcut: bool) -> None:
    """Compare with PyTorch's in float64, on the same values.

    Sums in float32 leave 1e-5, relative to the largest value where values cancel out. Results are rounded once more to
    their type, the gradient of x twice: it is made of that of the shortcut, which is of the size of its largest value.
    Where the result is nearer to zero than 1e-6 rounding decides whether a gradient passes: one in a million values of
    a normal distribution, so none of a small tensor.
    """
    x, added = drawn(*shape, dtype=dtype), drawn(*shape, seed=1, dtype=dtype)
    weight = drawn(*shape, seed=2, dtype=dtype)
    found, expected = (
        results_of(function, x, added if shortcut else None, weight, kind=kind)
        for function, kind in ((cuda.BatchNorm2d.norm_relu, dtype), (plain, torch.float64))
    )
    assert found.keys() == expected.keys()
    for name, value in found.items():
        wanted, rounded = expected[name], name in ("y", "grad_x", "grad_shortcut")
        assert value.dtype == (dtype if rounded else torch.float32)
        assert value.shape == wanted.shape
        error = 1e-5 + (ROUNDING[dtype] if rounded else 0.0)
        size = wanted.abs().max().item() if name.startswith("grad") else 1.0
        near = (value.double() - wanted).abs() <= error * wanted.abs() + (error if name == "grad_x" else 1e-5) * size
        undecided = 1e-5 if name in ("grad_x", "grad_shortcut") else 0.0
        assert (~near).double().mean() <= undecided, name  # NaN is not near


@runs_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm_relu_of_any_shape(shape: tuple[int, ...]) -> None:
    for shortcut in (False, True):
        compare(shape, dtype=torch.float32, shortcut=shortcut)


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shortcut", [False, True], ids=["alone", "shortcut"])
def test_norm_relu_in_two_bytes(dtype: torch.dtype, shortcut: bool) -> None:
    compare((2, 24, 6, 5), dtype=dtype, shortcut=shortcut)


@only_on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shortcut", [False, True], ids=["alone", "shortcut"])
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
def test_norm_relu_at_the_size_of_real_layers(shape: tuple[int, ...], shortcut: bool, dtype: torch.dtype) -> None:
    compare(shape, dtype=dtype, shortcut=shortcut)


@runs_kernels
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_the_check_before_a_run_passes(precision: str) -> None:
    random = torch.get_rng_state()
    cuda_check.check(DEVICE, precision)
    assert torch.equal(torch.get_rng_state(), random)


@runs_kernels
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("forward_apply", "the result of a fused norm is off by nan here, expected 1.6e-02"),
        ("backward_apply", "the gradient of a fused norm is off by nan here, expected 1.6e-02"),
        ("backward_totals", " of a fused norm is off by nan here, expected 1.6e-02"),
        ("inference", "the result in evaluation of a fused norm is off by nan here, expected 1.6e-02"),
        ("nothing", "the fused kernels do not run here: "),
    ],
)
def test_the_check_before_a_run_finds_a_kernel_that_does_nothing(
    monkeypatch: pytest.MonkeyPatch, kernel: str, message: str
) -> None:
    class Idle(dict[Any, Any]):
        def __missing__(self, _grid: Any) -> Callable[..., None]:
            return lambda *_, **__: None

    faulty = (
        SimpleNamespace(**vars(cuda.kernels())) if kernel != "nothing" else SimpleNamespace(INTERPRETED=INTERPRETED)
    )
    setattr(faulty, kernel, Idle())
    monkeypatch.setattr(cuda, "kernels", lambda: faulty)
    torch.use_deterministic_algorithms(True)  # new memory is NaN
    try:
        with pytest.raises(native.Unavailable) as caught:
            cuda_check.check(DEVICE, "bf16")
    finally:
        torch.use_deterministic_algorithms(False)
    assert message in str(caught.value)


@runs_kernels
@pytest.mark.parametrize("channels", [3, 1])
def test_the_check_before_a_run_finds_batches_that_are_off_by_a_bit(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = augment.normalised_bytes

    def wrong(mean: Tensor, std: Tensor) -> Tensor:
        table = right(mean, std)
        if len(table) == channels:
            table[-1, 77] = table[-1, 77].nextafter(torch.tensor(0.0, device=DEVICE))
        return table

    monkeypatch.setattr(augment, "normalised_bytes", wrong)
    with pytest.raises(native.Unavailable, match=r"^a batch by the fused kernels is not that of PyTorch's operations "):
        cuda_check.check(DEVICE, "fp32")


@runs_kernels
def test_digits_survive_a_mean_far_from_zero() -> None:
    """float32 itself leaves 1000 * 2^-24 of x, so 1e-4 of a deviation; squares of x would leave nothing."""
    x = drawn(4, 16, 8, 8) + 1000
    found, expected = norm_of(16).norm_relu(x), plain(norm_of(16).double(), x.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=5e-4)


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_programs_that_have_several_tiles_each(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """As those of large tensors have."""
    for name, number in (("_SUM_PROGRAMS", 2), ("_APPLY_PROGRAMS", 3)):
        monkeypatch.setattr(cuda, name, number)
    cuda._plan.cache_clear()
    shape = (11, 64, 6, 7)
    assert cuda._plan(11 * 6 * 7, 64).sum_grid == (1, 2)
    assert cuda._plan(11 * 6 * 7, 64).apply_grid == (1, 3)
    for shortcut in (False, True):
        compare(shape, dtype=dtype, shortcut=shortcut)
    monkeypatch.undo()
    cuda._plan.cache_clear()


@runs_kernels
def test_a_tensor_in_another_order_is_put_in_order() -> None:
    x = drawn(2, 16, 4, 4)
    found = norm_of(16).norm_relu(x.contiguous())
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, norm_of(16).norm_relu(x))


@runs_kernels
@pytest.mark.parametrize("shortcut", [False, True], ids=["alone", "shortcut"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_norm_relu_in_evaluation(shortcut: bool, dtype: torch.dtype) -> None:
    for shape in [(4, 32, 5, 5), (3, 7, 3, 3)]:
        norm, x = norm_of(shape[1]).eval(), drawn(*shape, dtype=dtype)
        added = drawn(*shape, seed=1, dtype=dtype) if shortcut else None
        with torch.inference_mode():
            found = norm.norm_relu(x, added)
            wide = None if added is None else added.double()
            expected = plain(copy.deepcopy(norm).double(), x.double(), wide)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=1e-5 + ROUNDING[dtype], atol=1e-5)
        assert norm.num_batches_tracked == 0


@runs_kernels
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy, in the interpreter
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_a_value_that_is_no_number_passes_through(training: bool, value: float) -> None:
    x = drawn(2, 16, 4, 4)
    x[1, 3, 2, 2] = value
    with torch.no_grad():
        found = norm_of(16).train(training).norm_relu(x)
        expected = plain(norm_of(16).train(training), x)
    assert torch.equal(found.isnan(), expected.isnan())
    assert found.isnan().any() or (value == torch.inf and not training)


@runs_kernels
@pytest.mark.parametrize("shortcut", [False, True], ids=["alone", "shortcut"])
def test_a_gradient_passes_where_the_result_is_no_number(shortcut: bool) -> None:
    x, added = drawn(2, 16, 4, 4), drawn(2, 16, 4, 4, seed=1)
    x[1, 3, 2, 2] = torch.nan
    results = []
    for function in (cuda.BatchNorm2d.norm_relu, plain):
        norm, source = norm_of(16), x.detach().requires_grad_()
        y = function(norm, source, added if shortcut else None)
        y.backward(torch.ones_like(y))
        assert norm.bias.grad is not None and source.grad is not None
        results.append((norm.bias.grad, source.grad.isnan()))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@runs_kernels
@pytest.mark.parametrize(
    ("norm", "shortcut"),
    [
        (lambda: norm_of(16).double(), None),
        (lambda: norm_of(16).eval(), None),
        (lambda: cuda.BatchNorm2d(16, momentum=None).to(DEVICE), None),
        (lambda: cuda.BatchNorm2d(16, affine=False).to(DEVICE), None),
        (lambda: cuda.BatchNorm2d(16, track_running_stats=False).to(DEVICE), None),
        (lambda: norm_of(16).eval().requires_grad_(False), (2, 16, 4, 4)),
        (lambda: norm_of(16), (1, 16, 1, 1)),
    ],
    ids=[
        "float64",
        "gradient in evaluation",
        "mean of all",
        "no scale",
        "no statistics",
        "gradient of the shortcut",
        "another shape",
    ],
)
def test_what_it_cannot_serve_is_left_to_pytorch(
    norm: Callable[[], cuda.BatchNorm2d], shortcut: tuple[int, ...] | None
) -> None:
    module = norm()
    dtype = next((parameter.dtype for parameter in module.parameters()), torch.float32)
    inputs = [drawn(*shape, dtype=dtype) for shape in ((2, 16, 4, 4), shortcut) if shape is not None]
    inputs[-1].requires_grad_()
    found = copy.deepcopy(module).norm_relu(*inputs)
    assert torch.equal(found, plain(module, *inputs))
    assert "NormReLU" not in type(found.grad_fn).__name__


@runs_kernels
def test_one_value_a_channel_is_refused_as_it_is_by_pytorch() -> None:
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        norm_of(16).norm_relu(drawn(1, 16, 1, 1))


@compiles
def test_tensors_of_the_cpu_are_left_to_pytorch() -> None:
    found = cuda.BatchNorm2d(16).norm_relu(torch.randn(2, 16, 4, 4))
    assert type(found.grad_fn).__name__ == "ReluBackward0"


@only_on_gpu
def test_a_tensor_of_more_than_two_to_the_31_values() -> None:
    if torch.cuda.mem_get_info()[0] < 30e9:
        pytest.skip("needs 30 GB of GPU memory")
    shape = (2100, 1024, 32, 32)
    x = torch.empty(shape, device=DEVICE, dtype=torch.bfloat16, memory_format=torch.channels_last).normal_()
    norm = norm_of(1024)
    found = norm.norm_relu(x.requires_grad_())
    with torch.no_grad():
        expected = plain(norm_of(1024), x)
    for part in (slice(2), slice(-2, None)):
        torch.testing.assert_close(found[part].float(), expected[part].float(), rtol=2**-7, atol=1e-2)
    del expected
    found.backward(found.detach())
    assert x.grad is not None
    assert x.grad[-1].abs().sum() > 0


@only_on_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_waits_for_the_device_and_results_repeat_to_the_bit(dtype: torch.dtype) -> None:
    x, added = drawn(128, 64, 16, 16, dtype=dtype), drawn(128, 64, 16, 16, seed=1, dtype=dtype)
    weight = drawn(128, 64, 16, 16, seed=2, dtype=dtype)
    first = results_of(cuda.BatchNorm2d.norm_relu, x, added, weight, kind=dtype)
    norm, x, added = norm_of(64), x.requires_grad_(), added.requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = norm.norm_relu(x, added)
        y.backward(weight)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    second = {"y": y.detach(), "grad_x": x.grad, "grad_shortcut": added.grad, "grad_weight": norm.weight.grad}
    for name, value in second.items():
        assert value is not None
        assert torch.equal(value, first[name]), name


@only_on_gpu
@pytest.mark.parametrize("shortcut", [False, True], ids=["alone", "shortcut"])
def test_forward_and_backward_in_a_cuda_graph(shortcut: bool) -> None:
    """Replayed on new values, it gives what the kernels give outside of a graph, to the bit."""
    shape, dtype = (64, 64, 16, 16), torch.bfloat16
    inputs = [drawn(*shape, seed=seed, dtype=dtype).requires_grad_() for seed in range(1 + shortcut)]
    weight = drawn(*shape, seed=2, dtype=dtype)
    norm = norm_of(64)

    def step() -> list[Tensor]:
        y = norm.norm_relu(*inputs)
        return [y, *torch.autograd.grad(y, [*inputs, norm.weight, norm.bias], weight)]

    # All of it on one stream: autograd warns where a leaf meets gradients of another than it was first used on.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            captured = step()
        for seed in (10, 20):
            with torch.no_grad():
                for index, tensor in enumerate(inputs):
                    tensor.copy_(drawn(*shape, seed=seed + index, dtype=dtype))
            before = copy.deepcopy(norm.state_dict())
            graph.replay()
            after = copy.deepcopy(norm.state_dict())
            norm.load_state_dict(before)
            for found, expected in zip(captured, step(), strict=True):
                assert torch.equal(found, expected)
            assert all(torch.equal(after[name], value) for name, value in norm.state_dict().items())
    torch.cuda.current_stream().wait_stream(side)


# -------------------------------------------------------------------------------------------------------------- batches

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


@runs_kernels
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize(("height", "width", "padding"), [(6, 5, 0), (6, 5, 1), (3, 4, 2), (20, 18, 1)])
def test_batches_are_the_same_to_the_bit(
    mode: augment.CropMode, height: int, width: int, padding: int, channels: int
) -> None:
    draws_of_bytes = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, height, width, channels), dtype=torch.uint8, generator=draws_of_bytes)
    draws = list(itertools.product(range(2 * padding + 1), range(2 * padding + 1), [False, True]))
    offset_y, offset_x, flip = (torch.tensor(column, device=DEVICE) for column in zip(*draws, strict=True))
    index = torch.arange(len(draws), device=DEVICE) % 5
    drawn = augment.Draws(index, offset_y, offset_x, flip, cutout_y=index, cutout_x=index)
    found, expected = (
        function(
            images.to(DEVICE),
            drawn,
            padding=padding,
            mode=mode,
            mean=torch.tensor(MEAN[:channels], device=DEVICE),
            std=torch.tensor(STD[:channels], device=DEVICE),
        )
        for function in (cuda_batch.crop_flip_normalise, augment.crop_flip_normalise)
    )
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()


def a_batch(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    index = torch.arange(len(images), device=images.device)
    zeros = torch.zeros_like(index)
    draws = augment.Draws(index, zeros, zeros, zeros.bool(), cutout_y=zeros, cutout_x=zeros)
    return cuda_batch.crop_flip_normalise(images, draws, padding=0, mode="zeros", mean=mean, std=std)


@runs_kernels
def test_the_table_follows_mean_and_deviation() -> None:
    images = torch.arange(2 * 3 * 3 * 3, dtype=torch.uint8, device=DEVICE).reshape(2, 3, 3, 3)
    mean, std = torch.tensor(MEAN, device=DEVICE), torch.tensor(STD, device=DEVICE)
    others = [(mean, std), (mean, std), (mean.clone(), std), (mean, std * 2), (mean, std)]
    for one, other in others:
        assert torch.equal(a_batch(images, one, other), augment.normalise(images, one, other))
    mean += 0.25
    assert torch.equal(a_batch(images, mean, std), augment.normalise(images, mean, std))
    table = cuda_batch._table(mean, std)
    assert cuda_batch._table(mean, std) is table, "made once, not for each batch"
    with torch.inference_mode():
        mean = mean * 2
        assert torch.equal(a_batch(images, mean, std), augment.normalise(images, mean, std))


@runs_kernels
def test_a_batch_of_no_images() -> None:
    images = torch.zeros(0, 4, 4, 3, dtype=torch.uint8, device=DEVICE)
    assert a_batch(images, torch.tensor(MEAN, device=DEVICE), torch.tensor(STD, device=DEVICE)).shape == (0, 3, 4, 4)


# ------------------------------------------------------------------------------------------------------- the whole step


def loss_and_gradients(config: Config, backend: Backend) -> tuple[float, dict[str, Tensor]]:
    model = build_model(config.model, num_classes=10, seed=0).to(DEVICE)
    backend.convert(model)
    images = drawn(*IMAGES)
    loss = nn.functional.cross_entropy(model(images), torch.arange(len(images), device=DEVICE) % 10)
    loss.backward()
    return loss.item(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


# In ResNet-50 the loss of four images of 8x8 is off by 6e-5 of itself in float32, that of sixteen of 16x16 by 3e-6: the
# last norms see single pixels of the former. The interpreter has the time for the small ones alone.
IMAGES = (4, 3, 8, 8) if INTERPRETED else (16, 3, 16, 16)
NETWORKS: list[tuple[str, ...]] = [
    ("model=resnet20", "model.depth=8"),
    ("model=resnet20", "model.depth=8", "model.width=0.5", "model.shortcut=B", "model.preactivation=true"),
    ("model=resnet18", "model.width=0.125"),
]
if not INTERPRETED:
    NETWORKS += [("model=resnet50", "model.width=0.25"), ("model=resnet18", "model.stem=imagenet")]


@runs_kernels
@pytest.mark.parametrize("words", NETWORKS, ids=" ".join)
def test_gradients_of_networks(compose: Callable[..., Config], words: tuple[str, ...]) -> None:
    """A value that rounding moves across the zero of a ReLU changes gradients by some percent, in float32 of both."""
    config = compose(*words)
    (loss, found), (expected_loss, expected) = (loss_and_gradients(config, backend) for backend in (FUSED, PLAIN))
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 0.15 * gradient.norm() + 1e-6, name  # a bias before a norm has none


@runs_kernels
def test_ten_steps_are_those_of_plain_kernels(compose: Callable[..., Config]) -> None:
    config = compose("model=resnet20", "model.depth=8", "model.width=0.25", "precision=fp32")
    losses: list[list[float]] = []
    for backend in (FUSED, PLAIN):
        plan = replace(build_plan(config), device=torch.device(DEVICE), precision="fp32", backend=backend)
        state, options = build_state(config, plan, num_classes=10), build_step_options(config, plan)
        images = [drawn(4, 3, 8, 8, seed=seed) for seed in range(2)]
        labels = torch.arange(4, device=DEVICE)
        losses.append(
            [train_step(state, images[step % 2], labels, lr=0.01, options=options).loss.item() for step in range(10)]
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[1][-1] < 0.95 * losses[1][0], "something was learned"


# --------------------------------------------------------------------------------------------------------- the compiler


class _Utils:
    """What Triton asks of a driver beside starting: here finished code is looked at, and not loaded."""

    def get_device_properties(self, _device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448}

    def load_binary(self, _name: str, code: bytes, _shared: int, _device: int) -> tuple[int, int, int, int, int]:
        import triton.backends.nvidia

        program = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(code)
            file.flush()
            words = [program, "-res-usage", file.name]
            used = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
        match = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", used)
        assert match is not None, used
        registers, stack, local = map(int, match.groups())
        return 1, 1, registers, stack + local, 1024

    def unload_module(self, _module: int) -> None:
        """Nothing was loaded."""


@dataclass
class _CompilesOnly:
    """A driver of Triton for a GPU that is not there: kernels are compiled for it, and starting one does nothing."""

    utils = _Utils()
    capability: int = 90  # of an H100

    @staticmethod
    def launcher_cls(_source: Any, _metadata: Any) -> Callable[..., None]:
        return lambda *_arguments: None

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


Compiled = list[tuple[str, Any]]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Compiled]]:
    """Kernels are compiled for a GPU that is not there; the fixture lists those that were, by name."""
    triton = pytest.importorskip("triton")
    from resnet_train.kernels import triton_batch, triton_kernels

    everything = {**vars(triton_kernels), **vars(triton_batch)}
    kernels = {name: kernel for name, kernel in everything.items() if isinstance(kernel, triton.JITFunction)}

    def forget() -> None:  # what was compiled for another driver cannot be started with this one, nor the other way
        for kernel in kernels.values():
            kernel.device_caches.clear()

    forget()
    monkeypatch.setattr(triton.runtime.driver, "_active", _CompilesOnly())  # reset_active() looks for a GPU
    yield lambda: [
        (name, code)
        for name, kernel in kernels.items()
        for cache in kernel.device_caches.values()
        for code in cache[0].values()
    ]
    forget()


def moves(code: Any) -> set[str]:
    """The instructions that read and write global memory."""
    return set(re.findall(r"(?:ld|st)\.global\S*", code.asm["ptx"]))


@pytest.mark.slow
@looks_inside
@compiles
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_norm_relu_compiles(compiled: Callable[[], Compiled], dtype: torch.dtype) -> None:
    """To code that moves 16 bytes at a time, without registers in memory, with as many as cuda.py counts on.

    The device is asked for in `_serves` only, so what stands below it compiles on tensors of the CPU, with the sizes
    and alignments that Triton would find on a GPU.
    """
    for shortcut in (False, True):
        norm = nn.BatchNorm2d(64)
        x = torch.zeros(2, 64, 8, 8, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        y = cuda._NormReLU.apply(x, torch.zeros_like(x) if shortcut else None, norm.weight, norm.bias, norm)
        y.backward(y)
        cuda._inference(norm, x, torch.zeros_like(x) if shortcut else None)
    once = ["forward_sums", "forward_totals", "backward_totals"]
    twice = ["forward_apply", "inference", "backward_sums", "backward_apply"]
    assert sorted(name for name, _ in compiled()) == sorted(once + twice + twice)
    for name, code in compiled():
        assert code.n_spills == 0, name
        assert code.n_regs <= 80, name
        if name.endswith(("apply", "inference")):
            assert moves(code) == {"ld.global.v4.b32", "st.global.v4.b32"}, name
        elif name.endswith("sums"):  # the partial sums themselves are written one by one
            gated = {"st.global.v4.b32"} if name == "backward_sums" else set()
            assert {"ld.global.v4.b32"} <= moves(code) <= {"ld.global.v4.b32", "st.global.b32"} | gated, name


@pytest.mark.slow
@looks_inside
@compiles
@pytest.mark.parametrize("shape", [(5, 1, 3, 3), (3, 100, 3, 5)], ids=str)
def test_norm_relu_compiles_for_any_shape(compiled: Callable[[], Compiled], shape: tuple[int, ...]) -> None:
    norm, x = nn.BatchNorm2d(shape[1]), torch.zeros(shape, requires_grad=True)
    cuda._NormReLU.apply(x, None, norm.weight, norm.bias, norm).sum().backward()
    assert len(compiled()) == 6


@looks_inside
@compiles
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_batches_compile(compiled: Callable[[], Compiled], mode: str) -> None:
    compile_batches(mode)
    ((name, code),) = compiled()
    assert (name, code.n_spills) == ("crop_flip_normalise", 0)
    assert "st.global.v4.b32" in moves(code)


def compile_batches(mode: str) -> None:
    from resnet_train.kernels import triton_batch

    images, draws = torch.zeros(4, 32, 32, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    triton_batch.crop_flip_normalise[(4, 3)](
        *(images, draws, draws, draws, draws.bool(), torch.zeros(3, 256), torch.zeros(4, 32, 32, 3), 4),
        **{"HEIGHT": 32, "WIDTH": 32, "CHANNELS": 3, "REFLECT": mode == "reflect", "BLOCK": 1024},
    )


GPUS = {75: "T4, RTX 20", 80: "A100", 86: "RTX 30", 89: "RTX 40, L4", 90: "H100, H200", 120: "RTX 50"}


@of_triton("3.6", "3.7", "3.8")
@compiles
@pytest.mark.slow
@pytest.mark.parametrize(
    "capability",
    [pytest.param(one, id=name, marks=[pytest.mark.thorough] * (one not in (75, 90))) for one, name in GPUS.items()],
)
def test_everything_compiles_for_every_gpu(
    compiled: Callable[[], Compiled], monkeypatch: pytest.MonkeyPatch, capability: int
) -> None:
    """Without registers in memory, in each type."""
    import triton

    monkeypatch.setattr(triton.runtime.driver, "_active", _CompilesOnly(capability))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for channels, added in itertools.product((64, 100), (False, True)):
            norm = nn.BatchNorm2d(channels)
            x = torch.zeros(2, channels, 8, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
            shortcut = torch.zeros_like(x) if added else None
            y = cuda._NormReLU.apply(x.requires_grad_(), shortcut, norm.weight, norm.bias, norm)
            y.backward(y)
            cuda._inference(norm, x, shortcut)
    for mode in ("zeros", "reflect"):
        compile_batches(mode)
    code = compiled()
    norms = ["forward_sums", "forward_totals", "forward_apply", "backward_sums", "backward_totals", "backward_apply"]
    assert {name for name, _ in code} == {*norms, "inference", "crop_flip_normalise"}
    most = max(one.n_regs for _, one in code)
    print(f"Triton {triton.__version__}, {GPUS[capability]}: {len(code)} kernels, at most {most} registers")
    assert {name: one.n_spills for name, one in code if one.n_spills} == {}
    assert most <= 128  # of 255; 512 threads fit on a multiprocessor


# --------------------------------------------------------------------------------------------------------------- choice


def test_words_for_the_header() -> None:
    triton = pytest.importorskip("triton")
    assert cuda.prepare() == (f"batch norm, addition and ReLU in one, by Triton {triton.__version__}")


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "resnet_train.kernels.triton_kernels", raising=False)
    monkeypatch.delattr(kernels, "triton_kernels", raising=False)
    cuda.kernels.cache_clear()
    with pytest.raises(native.Unavailable, match=r"^Triton cannot be imported: "):
        cuda.prepare()
    found = cuda.BatchNorm2d(16).norm_relu(torch.randn(2, 16, 4, 4))
    assert type(found.grad_fn).__name__ == "ReluBackward0"
