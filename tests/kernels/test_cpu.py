"""The faster operations of the CPU against PyTorch's, which they take the place of."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_train.data import augment
from resnet_train.kernels import cpu, native

pytestmark = pytest.mark.usefixtures("compiler")


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def norm_of(channels: int) -> cpu.BatchNorm2d:
    """With scales of both signs, shifts, and statistics that are not those of a new one."""
    norm = cpu.BatchNorm2d(channels)
    draws = torch.Generator().manual_seed(9)
    with torch.no_grad():
        norm.weight.normal_(generator=draws)
        norm.bias.normal_(generator=draws)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_(generator=draws)
    norm.running_var.uniform_(0.5, 2, generator=draws)
    return norm


def plain(norm: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    out: Tensor = norm(x)
    return nn.functional.relu(out if shortcut is None else out + shortcut)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------------------ norm_relu

SHAPES = [(7, 16, 1, 1), (3, 16, 5, 7), (4, 32, 8, 8), (2, 48, 3, 3), (64, 16, 32, 32), (1, 2048, 4, 4)]


def both_ways(shape: tuple[int, ...], *, dtype: torch.dtype, shortcut: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """Results, gradients and statistics of the fused operation and of PyTorch's in float64, on the same values."""
    x, added = drawn(*shape, dtype=dtype), drawn(*shape, seed=1, dtype=dtype)
    weight = drawn(*shape, seed=2, dtype=dtype)
    results: list[dict[str, Tensor]] = []
    for function, kind in ((cpu.BatchNorm2d.norm_relu, dtype), (plain, torch.float64)):
        norm = norm_of(shape[1])
        norm = norm.double() if kind == torch.float64 else norm
        inputs = [tensor.to(kind).detach().requires_grad_() for tensor in ((x, added) if shortcut else (x,))]
        y = function(norm, *inputs)
        (y.double() * weight.double()).sum().backward()
        found = {"y": y, "running_mean": norm.running_mean, "running_var": norm.running_var}
        found |= {"grad_weight": norm.weight.grad, "grad_bias": norm.bias.grad}
        found |= {f"grad_{name}": tensor.grad for name, tensor in zip(("x", "shortcut"), inputs, strict=False)}
        assert all(tensor is not None for tensor in found.values())
        assert norm.num_batches_tracked == 1
        results.append({name: tensor.detach() for name, tensor in found.items() if tensor is not None})
    return {name: (results[0][name], results[1][name]) for name in results[0]}


@pytest.mark.parametrize("shortcut", [False, True], ids=["alone", "shortcut"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm_relu_in_float32(shape: tuple[int, ...], shortcut: bool) -> None:
    for name, (found, expected) in both_ways(shape, dtype=torch.float32, shortcut=shortcut).items():
        assert found.dtype == torch.float32
        size = expected.abs().max().item() if name.startswith("grad") else 1.0
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * size, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("shortcut", [False, True], ids=["alone", "shortcut"])
@pytest.mark.parametrize("shape", [(4, 32, 8, 8), (64, 16, 32, 32)], ids=str)
def test_norm_relu_in_bfloat16(shape: tuple[int, ...], shortcut: bool) -> None:
    """Results are rounded once: to 8 bits of significand, so by 2^-8 at the most, plus what float32 leaves."""
    found = both_ways(shape, dtype=torch.bfloat16, shortcut=shortcut)
    assert found["y"][0].dtype == torch.bfloat16
    torch.testing.assert_close(found["y"][0].double(), found["y"][1], rtol=2**-8 + 1e-5, atol=1e-5)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(found[name][0].double(), found[name][1], rtol=1e-5, atol=1e-5)
    for name in ("grad_x", *(["grad_shortcut"] if shortcut else [])):
        # y that rounds to zero or from it moves the gate of a few values
        near = (found[name][0].double() - found[name][1]).abs() <= 2**-8 * found[name][1].abs() + 2e-3
        assert near.double().mean() > 0.9999, name
    for name in ("grad_weight", "grad_bias"):
        size = found[name][1].abs().max()
        assert (found[name][0].double() - found[name][1]).abs().max() < 0.005 * size, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shortcut", [False, True], ids=["alone", "shortcut"])
def test_norm_relu_does_not_depend_on_the_number_of_threads(
    threads: Callable[[int], None], dtype: torch.dtype, shortcut: bool
) -> None:
    found = []
    for number in (1, 2, 3):
        threads(number)
        norm, x = norm_of(16), drawn(64, 16, 32, 32, dtype=dtype).requires_grad_()
        y = norm.norm_relu(x, drawn(64, 16, 32, 32, seed=1, dtype=dtype) if shortcut else None)
        (y * drawn(64, 16, 32, 32, seed=2, dtype=dtype)).sum().backward()
        assert norm.running_var is not None and norm.weight.grad is not None and x.grad is not None
        found.append((y, norm.running_var, norm.weight.grad, x.grad))
    for one, two, three in zip(*found, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@pytest.mark.parametrize("shortcut", [False, True], ids=["alone", "shortcut"])
def test_norm_relu_in_evaluation(shortcut: bool) -> None:
    norm, x = norm_of(32).eval(), drawn(4, 32, 5, 5)
    added = drawn(4, 32, 5, 5, seed=1) if shortcut else None
    with torch.inference_mode():
        found, expected = norm.norm_relu(x, added), plain(norm, x, added)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize("training", [False, True])
def test_a_value_that_is_no_number_passes_through(training: bool) -> None:
    x = drawn(2, 16, 4, 4)
    x[1, 3, 2, 2] = torch.nan
    with torch.no_grad():
        found = norm_of(16).train(training).norm_relu(x)
        expected = plain(norm_of(16).train(training), x)
    assert torch.equal(found.isnan(), expected.isnan())
    assert found.isnan().any()


@pytest.mark.parametrize(
    ("norm", "x", "shortcut"),
    [
        (norm_of(12), drawn(2, 12, 4, 4), None),
        (norm_of(16).double(), drawn(2, 16, 4, 4, dtype=torch.float64), None),
        (norm_of(16).eval(), drawn(2, 16, 4, 4).requires_grad_(), None),
        (norm_of(16).eval().requires_grad_(False), drawn(2, 16, 4, 4), drawn(2, 16, 4, 4, seed=1).requires_grad_()),
        (cpu.BatchNorm2d(16, momentum=None), drawn(2, 16, 4, 4), None),
        (cpu.BatchNorm2d(16, affine=False), drawn(2, 16, 4, 4), None),
    ],
    ids=["12 channels", "float64", "gradient in evaluation", "gradient of the shortcut", "mean of all", "no scale"],
)
def test_what_it_cannot_serve_is_left_to_pytorch(norm: cpu.BatchNorm2d, x: Tensor, shortcut: Tensor | None) -> None:
    other = copy.deepcopy(norm)
    found = norm.norm_relu(x, shortcut)
    assert torch.equal(found, plain(other, x, shortcut))
    assert found.requires_grad == (x.requires_grad or shortcut is not None or (norm.training and norm.affine))


def test_one_value_a_channel_is_refused_as_it_is_by_pytorch() -> None:
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        norm_of(16).norm_relu(drawn(1, 16, 1, 1))


# -------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize(
    ("height", "width", "padding"), [(6, 5, 0), (6, 5, 1), (5, 6, 4), (32, 32, 4), (4, 4, 3), (3, 7, 2)]
)
def test_batches_are_the_same_to_the_bit(
    mode: augment.CropMode, height: int, width: int, padding: int, channels: int
) -> None:
    draws_of_bytes = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, height, width, channels), dtype=torch.uint8, generator=draws_of_bytes)
    draws = list(itertools.product(range(2 * padding + 1), range(2 * padding + 1), [False, True]))
    offset_y, offset_x, flip = (torch.tensor(column) for column in zip(*draws, strict=True))
    index = torch.arange(len(draws)) % 5
    drawn = augment.Draws(index, offset_y, offset_x, flip, cutout_y=index, cutout_x=index)
    found, expected = (
        function(
            images,
            drawn,
            padding=padding,
            mode=mode,
            mean=torch.tensor([0.4914, 0.4822, 0.4465][:channels]),
            std=torch.tensor([0.2470, 0.2435, 0.2616][:channels]),
        )
        for function in (cpu.crop_flip_normalise, augment.crop_flip_normalise)
    )
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()


# -------------------------------------------------------------------------------------------------------- convolutions

# count, channels in and out, height, width: whole tiles and cut ones, all but one pixel of the last, panels and half
# panels, several chunks and parts.
IMAGES = [
    (3, 16, 16, 8, 8),
    (2, 16, 32, 5, 7),
    (2, 48, 16, 9, 4),
    (5, 32, 80, 4, 4),
    (1, 64, 128, 3, 4),
    (40, 16, 16, 32, 32),
    (6, 192, 192, 6, 10),
]
MULTIPLIES_BF16 = cpu.multiplies_bf16()


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


def convolved(layer: nn.Conv2d, x: Tensor, gradient: Tensor, precision: str) -> list[Tensor]:
    """Result, gradient of the images and of the weights."""
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        y = layer(x)
    y.backward(gradient.to(y.dtype))
    assert x.grad is not None and layer.weight.grad is not None
    return [y.detach(), x.grad, layer.weight.grad]


class ByWinograd(cpu.Conv2d):
    """Whatever the processor multiplies faster."""

    def forward(self, x: Tensor) -> Tensor:
        return cpu._Winograd.apply(x, self.weight)  # type: ignore[no-any-return]


def both_convolutions(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """By Winograd's algorithm, by PyTorch, and by PyTorch in float64, all of the same values."""
    count, channels_in, channels_out, height, width = shape
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    x = drawn(count, channels_in, height, width, dtype=dtype).relu()
    gradient = drawn(count, channels_out, height, width, seed=1, dtype=dtype)
    torch.manual_seed(0)
    layer = ByWinograd(channels_in, channels_out, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    plain = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    plain.load_state_dict(layer.state_dict())
    exact = copy.deepcopy(plain).double()
    return (
        convolved(layer, x, gradient, precision),
        convolved(plain.to(memory_format=torch.channels_last), x.float(), gradient.float(), "fp32"),
        convolved(exact, x.double(), gradient.double(), "fp32"),
    )


@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_winograd_in_float32(shape: tuple[int, ...]) -> None:
    """Off by three to four times what PyTorch's is, which adds up fewer roundings: a few units of the last digit."""
    found, plain, expected = both_convolutions(shape, torch.float32)
    for name, one, other, exact in zip(("y", "grad_x", "grad_weight"), found, plain, expected, strict=True):
        assert one.shape == exact.shape
        assert one.stride() == other.stride()
        assert relative(one, exact) < 2e-6, name
        assert relative(one, exact) < 6 * relative(other, exact) + 1e-6, name
        torch.testing.assert_close(one.double(), exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item(), msg=name)


@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_winograd_in_bfloat16(shape: tuple[int, ...]) -> None:
    """Of values in bfloat16, and rounded to it once: 8 bits. The gradient of the weights is not rounded."""
    found, _, expected = both_convolutions(shape, torch.bfloat16)
    for name, one, exact, bound in zip(("y", "grad_x"), found, expected, (2**-8, 2**-8), strict=False):
        assert one.dtype == torch.bfloat16
        atol = 1e-5 * exact.abs().max().item()
        torch.testing.assert_close(one.double(), exact, rtol=bound, atol=atol, msg=name)
    assert found[2].dtype == torch.float32
    assert relative(found[2], expected[2]) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_processors_own_products_are_taken_in_bfloat16_where_it_has_them(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = cpu.Conv2d(32, 16, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = drawn(4, 32, 8, 8, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        if dtype == torch.bfloat16 and MULTIPLIES_BF16:
            expected = nn.functional.conv2d(x, layer.weight, padding=1)
        else:
            expected = cpu._Winograd.apply(x, layer.weight)
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_winograd_does_not_depend_on_the_number_of_threads(threads: Callable[[int], None], dtype: torch.dtype) -> None:
    found = []
    for number in (1, 2, 3, 5):
        threads(number)
        found.append([both_convolutions(shape, dtype)[0] for shape in [(40, 16, 32, 16, 16), (3, 160, 128, 4, 4)]])
    for other in found[1:]:
        for ones, others in zip(found[0], other, strict=True):
            assert all(torch.equal(one, two) for one, two in zip(ones, others, strict=True))


@pytest.mark.parametrize("source", ["winograd.cpp", "norm_act.cpp"])
@pytest.mark.slow
def test_registers_of_another_width(source: str, tmp_path: Path) -> None:
    """The code for AVX-512, made of narrower instructions where the processor lacks it: the same to rounding."""
    library = tmp_path / "wide.so"
    options = [
        "-std=c++17",
        "-O1",
        "-march=native",
        "-fopenmp",
        "-shared",
        "-fPIC",
        "-Wno-psabi",
    ]
    path = Path(native.__file__).parent / "csrc" / source
    subprocess.run([native.compiler()[0], *options, "-DRESNET_TRAIN_WIDE", "-o", library, path], check=True)
    load = "load_winograd" if source == "winograd.cpp" else "load_norm_act"
    script = f"""
import ctypes, pathlib
from resnet_train.kernels import native
wide = ctypes.CDLL({str(library)!r})
narrow = native.{load}()
for name in {[*CONVOLUTIONS] if source == "winograd.cpp" else [*NORMS]}:
    getattr(wide, name).argtypes, getattr(wide, name).restype = getattr(narrow, name).argtypes, None
native.{load} = lambda: wide
from tests.kernels import test_cpu
import torch
for dtype in (torch.float32, torch.bfloat16):
    test_cpu.check_all({source!r}, dtype)
print("checked")
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.stdout == "checked\n", done.stderr


CONVOLUTIONS = [
    f"winograd_{name}_{dtype}" for name in ("convolve", "weight_gradient") for dtype in ("float32", "bfloat16")
]
NORMS = [
    f"norm_act_{name}_{dtype}" for name in ("forward", "inference", "backward") for dtype in ("float32", "bfloat16")
]


def check_all(source: str, dtype: torch.dtype) -> None:
    """What the tests of one file check, for the code that is loaded."""
    if source == "winograd.cpp":
        for shape in IMAGES:
            if dtype == torch.float32:
                test_winograd_in_float32(shape)
            else:
                test_winograd_in_bfloat16(shape)
        return
    for shape in SHAPES:
        if dtype == torch.float32:
            for shortcut in (False, True):
                test_norm_relu_in_float32(shape, shortcut)
    if dtype == torch.bfloat16:
        test_norm_relu_in_bfloat16((4, 32, 8, 8), True)
    test_norm_relu_in_evaluation(True)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"in_channels": 16, "out_channels": 16, "stride": 2}, 8),
        ({"in_channels": 3, "out_channels": 16}, 8),
        ({"in_channels": 16, "out_channels": 24}, 8),
        ({"in_channels": 16, "out_channels": 16, "bias": True}, 8),
        ({"in_channels": 16, "out_channels": 16, "groups": 2}, 8),
        ({"in_channels": 16, "out_channels": 16, "dilation": 2, "padding": 2}, 8),
        ({"in_channels": 16, "out_channels": 16, "padding_mode": "circular"}, 8),
        ({"in_channels": 16, "out_channels": 16}, 2),
    ],
    ids=str,
)
def test_other_convolutions_are_left_to_pytorch(options: dict[str, Any], size: int) -> None:
    results = []
    for kind in (cpu.Conv2d, nn.Conv2d):
        torch.manual_seed(0)
        layer = kind(kernel_size=3, **{"padding": 1, "bias": False, **options}).to(memory_format=torch.channels_last)
        x = drawn(4, options["in_channels"], size, size)
        gradient = drawn(4, options["out_channels"], *layer(x).shape[2:], seed=1)
        results.append(convolved(layer, x, gradient, "fp32"))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (32, 32, True),
        (4, 4, True),
        (2, 4, True),
        (2, 3, False),
        (2, 2, False),
        (1, 1, False),
        (5, 7, True),
        (9, 9, True),
    ],
)
def test_tiles_must_be_filled_by_half(height: int, width: int, expected: bool) -> None:
    assert cpu.fills_tiles(height, width) == expected


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_gradients_that_nobody_needs_are_not_made(frozen: str) -> None:
    layer, x = cpu.Conv2d(16, 16, 3, padding=1, bias=False), drawn(2, 16, 8, 8).requires_grad_(frozen != "x")
    layer.weight.requires_grad_(frozen != "weight")
    layer(x).sum().backward()
    assert (x.grad is None) == (frozen == "x")
    assert (layer.weight.grad is None) == (frozen == "weight")


def test_images_in_another_layout() -> None:
    layer, x = cpu.Conv2d(16, 32, 3, padding=1, bias=False), drawn(2, 16, 8, 8)
    found = layer(x.contiguous())
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, layer(x))


@pytest.mark.parametrize(
    ("channels", "options"),
    [((3, 16), {}), ((16, 32), {"stride": 2}), ((16, 16), {"bias": True})],
    ids=str,
)
def test_bfloat16_is_not_emulated(channels: tuple[int, int], options: dict[str, Any]) -> None:
    """Of values in bfloat16, rounded once where the processor lacks products of it, a few times where it has them."""
    torch.manual_seed(0)
    layer = cpu.Conv2d(*channels, 3, **{"padding": 1, "bias": False, **options})
    x = drawn(4, channels[0], 8, 8, dtype=torch.bfloat16)
    gradient = drawn(4, channels[1], *layer(x.float()).shape[2:], seed=1, dtype=torch.bfloat16)
    found = convolved(layer, x, gradient, "bf16")
    layer.zero_grad()
    expected = convolved(copy.deepcopy(layer).double(), x.double(), gradient.double(), "fp32")
    assert [tensor.dtype for tensor in found] == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert all(relative(one, exact) < 0.01 for one, exact in zip(found, expected, strict=True))
