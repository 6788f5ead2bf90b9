"""Batches, steps and evaluations on a GPU that is not there: PyTorch's fake tensors know devices, and no values.

Whatever would make the host wait for the device is found: values that are read, copies out of pageable memory, and
tensors of two devices in one operation, which PyTorch refuses. The backward pass alone cannot run without a driver;
tests/training/test_meta.py has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_train.config.dataset import AugmentConfig
from resnet_train.data.dataset import Split
from resnet_train.data.stream import EvalData, TrainData
from resnet_train.models.resnet import CifarResNet
from resnet_train.models.variant import OPTION_B
from resnet_train.training import optim
from resnet_train.training.launches import FewLaunches
from resnet_train.training.state import TrainState
from resnet_train.training.step import StepOptions, evaluate, grad_norm, train_step

OLD = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11)
pytestmark = pytest.mark.skipif(
    OLD or torch.cuda.is_available(), reason="a real GPU is asked instead, or fake tensors of this torch want a driver"
)
CUDA = torch.device("cuda", 0)
PLAIN = AugmentConfig(crop_padding=4, crop_mode="zeros", flip=True, cutout=0, mixup=0.0, cutmix=0.0)
ROOM, NO_ROOM = 2**36, 2**10


class Watch(TorchDispatchMode):
    """Notes what the host would wait for."""

    READ = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2")
    # These have no form without values. All they do is written into their first arguments.
    WITHOUT_FAKE = ("_fused_sgd_", "_fused_adamw_", "_amp_update_scale_", "_amp_foreach_non_finite_check_and_unscale_")

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.sent: list[str] = []  # copies to the device that are made in their turn
        self._pinned: list[Tensor] = []

    def _is_pinned(self, tensor: Tensor) -> bool:
        return any(tensor is one for one in self._pinned)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in self.WITHOUT_FAKE:
            devices = {leaf.device.type for leaf in _pytree.tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
            self.waits += [f"{name} of {devices}"] * (devices != {"cuda"})
            return None
        if name in ("pin_memory", "_pin_memory"):
            out = torch.empty_like(args[0])
            self._pinned.append(out)
            return out
        out = func(*args, **kwargs)
        if kwargs.get("pin_memory") or (name == "detach" and self._is_pinned(args[0])):
            self._pinned.append(out)
        if name in self.READ:
            self.waits.append(name)
        if name in ("_to_copy", "copy_", "to"):  # the last in inference mode
            source, target = (args[1], args[0]) if name == "copy_" else (args[0], out)
            if source.device != target.device:
                later = kwargs.get("non_blocking", False) or (name == "copy_" and args[2:] == (True,))
                text = f"{source.device.type} to {target.device.type} {tuple(source.shape)}"
                in_turn = later and self._is_pinned(source) and target.device.type == "cuda"
                (self.sent if in_turn else self.waits).append(text)
        return out


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Within fake tensors, with a GPU that PyTorch believes to be there; says how many bytes of it are free."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: True)

    def say(bytes_: int) -> None:
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda _device: (bytes_, ROOM))

    say(ROOM)
    with FakeTensorMode(allow_non_fake_inputs=False), torch.autograd.set_multithreading_enabled(False):
        yield say


class AtOnce(ThreadPoolExecutor):
    """Fake tensors are for one thread."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future


def fake_split(count: int = 64) -> Split:
    return Split(torch.zeros(count, 16, 16, 3, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64))


def train_data(options: AugmentConfig = PLAIN) -> TrainData:
    return TrainData(
        fake_split(),
        batch_size=8,
        seed=0,
        augment=options,
        mean=[0.5] * 3,
        std=[0.2] * 3,
        num_classes=10,
        device=CUDA,
    )


AUGMENTATIONS = {
    "plain": PLAIN,
    "reflect": replace(PLAIN, crop_mode="reflect"),
    "cutout": replace(PLAIN, cutout=8),
    "mixup": replace(PLAIN, mixup=0.2),
    "cutmix": replace(PLAIN, cutmix=1.0),
    "everything": replace(PLAIN, cutout=8, mixup=0.2, cutmix=1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("room", [ROOM, NO_ROOM], ids=["on the device", "in host memory"])
def test_no_batch_waits(free: Callable[[int], None], augmentation: str, room: int) -> None:
    """From the first on, over the end of an epoch, with what is drawn for it."""
    free(room)
    with Watch() as watch:
        data = train_data(AUGMENTATIONS[augmentation])
        watch.waits.clear()  # the data set itself, once, and mean and deviation
        if data._ahead is not None:
            data._ahead._thread = AtOnce()
        for step in range(10):
            images, labels = data.batch(step)
            assert (images.device, labels.device) == (CUDA, CUDA)
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert labels.ndim == (2 if AUGMENTATIONS[augmentation].mixup or AUGMENTATIONS[augmentation].cutmix else 1)
    assert watch.waits == []
    fetched = [text for text in watch.sent if text == "cpu to cuda (8, 16, 16, 3)"]
    assert len(fetched) == (0 if room == ROOM else 10)
    draws = len(watch.sent) - len(fetched)
    assert draws <= 2 * 6 + 2, "draws go once an epoch, permutations once in hundreds of steps"


def onto_the_device(model: nn.Module) -> nn.Module:
    """`nn.Module.to` exchanges the storage of a parameter, which fake tensors do not have."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                moved = tensor.detach().to(CUDA)
                if moved.ndim == 4:
                    moved = moved.contiguous(memory_format=torch.channels_last)
                tensors[name] = nn.Parameter(moved) if isinstance(tensor, nn.Parameter) else moved
    return model


def network() -> nn.Module:
    return onto_the_device(CifarResNet(8, OPTION_B))


def scaler_of(*, enabled: bool) -> torch.amp.GradScaler:
    """It switches itself off where PyTorch sees no GPU."""
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    if enabled:
        vars(scaler).update(vars(torch.amp.GradScaler("cpu")) | {"_device": "cuda"})
    return scaler


STEPS = {
    "fp32": StepOptions(),
    "bf16": StepOptions(precision="bf16"),
    "fp16": StepOptions(precision="fp16"),
    "everything": StepOptions("fp16", accumulate=2, label_smoothing=0.1, clip_grad_norm=1.0, ema_decay=0.99),
}


@pytest.mark.parametrize(
    ("step", "optimizer", "mixing"),
    [
        *(("fp32", "sgd", False), ("bf16", "adamw", True), ("fp16", "sgd", True)),
        *(("everything", "sgd", False), ("everything", "adamw", True)),
    ],
)
@pytest.mark.usefixtures("free")
def test_no_step_waits(monkeypatch: pytest.MonkeyPatch, step: str, optimizer: str, mixing: bool) -> None:
    """All but its backward pass, which only leaves gradients here."""
    options, model = STEPS[step], network()
    if optimizer == "sgd":
        chosen: torch.optim.Optimizer = optim.sgd(
            model, lr=1, momentum=0.9, nesterov=True, weight_decay=5e-4, decay_norm_and_bias=True
        )
    else:
        chosen = optim.adamw(model, lr=1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, decay_norm_and_bias=False)
    ema = None if options.ema_decay is None else network().requires_grad_(False).eval()
    state = TrainState(model, chosen, scaler_of(enabled=options.precision == "fp16"), ema)

    def backward(loss: Tensor) -> None:
        assert loss.device == CUDA
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    data = train_data(replace(PLAIN, mixup=0.2) if mixing else PLAIN)
    lr, forward = torch.empty((), device=CUDA), FewLaunches(model, precision=options.precision)
    with Watch() as watch:
        train_step(state, *data.batch(0), lr=lr, options=options, forward=forward)
        watch.waits.clear()  # scale and counters of the optimizer, once
        output = train_step(state, *data.batch(1), lr=lr, options=options, forward=forward)
        norm = grad_norm(state, output)
    assert watch.waits == []
    assert {output.loss.device, output.accuracy.device, norm.device} == {CUDA}


@pytest.mark.parametrize("room", [ROOM, NO_ROOM], ids=["on the device", "in host memory"])
def test_an_evaluation_waits_at_its_end_alone(free: Callable[[int], None], room: int) -> None:
    free(room)
    with Watch() as watch:
        data = EvalData(fake_split(20), batch_size=8, mean=[0.5] * 3, std=[0.2] * 3, device=CUDA)
        model = network()
        watch.waits.clear()
        with pytest.raises(Exception, match="_local_scalar_dense"):
            evaluate(model, data, precision="bf16")
    assert watch.waits == []
    assert len(watch.sent) == (0 if room == ROOM else 2 * 3)


@pytest.mark.usefixtures("free")
def test_what_waits_is_seen() -> None:
    values = torch.zeros(3)
    with Watch() as watch:
        on_device = values.to(CUDA, non_blocking=True)
        values.pin_memory().to(CUDA)
        on_device.cpu()
        with pytest.raises(RuntimeError, match="device"):
            _ = on_device + values
        with pytest.raises(Exception, match="_local_scalar_dense"):
            on_device.sum().item()
    assert watch.waits == ["cpu to cuda (3,)"] * 2 + ["cuda to cpu (3,)"]


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("dtype", "backend"), [(torch.float32, "Cudnn"), (torch.float16, "Cudnn"), (torch.bfloat16, "Native")], ids=str
)
def test_which_batch_norm_pytorch_takes(
    dtype: torch.dtype, backend: str, training: bool, layout: torch.memory_format
) -> None:
    """No requirement: it tells when docs/performance.md has to be changed."""
    if not hasattr(torch._C, "_select_batch_norm_backend"):
        pytest.skip(f"torch {torch.__version__} does not say")
    images = torch.empty(128, 64, 32, 32, device=CUDA, dtype=dtype).contiguous(memory_format=layout)
    of_channels = [torch.empty(64, device=CUDA) for _ in range(4)]
    assert torch._C._select_batch_norm_backend(images, *of_channels, training, 1e-5).name == backend
