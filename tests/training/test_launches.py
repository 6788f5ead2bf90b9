"""Fewer operations a step, and the same bits; how many there are is written down in docs/performance.md."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_train.config.dataset import AugmentConfig
from resnet_train.data.dataset import Split
from resnet_train.data.stream import TrainData
from resnet_train.models.resnet import CifarResNet, ResNet
from resnet_train.models.variant import Variant
from resnet_train.training import optim
from resnet_train.training.cuda_graph import GraphedStep
from resnet_train.training.freeze import freeze
from resnet_train.training.launches import FewLaunches
from resnet_train.training.state import TrainState
from resnet_train.training.step import StepOptions, train_step
from tests.training.emulated_graph import EmulatedRecorder


def quarter(depth: int, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = CifarResNet if depth == 20 or depth == 8 else ResNet
    return model(depth, Variant(options.pop("shortcut", "A"), width=0.25, **options), num_classes=4)


def partly_frozen() -> nn.Module:
    model = quarter(8)
    freeze(model, ["conv1", "bn1", "layer1"])
    return model


NETWORKS = {
    "frozen": partly_frozen,
    "resnet8": lambda: quarter(8),
    "biases": lambda: quarter(8, conv_bias=True, shortcut="B"),
    "preactivation": lambda: quarter(8, preactivation=True),
    "resnet18": lambda: quarter(18, shortcut="B"),
}


def state_of(model: nn.Module, *, ema: bool = False, loss_scale: float | None = None) -> TrainState:
    model = model.to(memory_format=torch.channels_last)
    return TrainState(
        model,
        optim.sgd(model, lr=1.0, momentum=0.9, nesterov=True, weight_decay=1e-2, decay_norm_and_bias=False),
        torch.amp.GradScaler("cpu", enabled=loss_scale is not None, init_scale=loss_scale or 1.0),
        copy.deepcopy(model).requires_grad_(False).eval() if ema else None,
    )


def batch(seed: int = 0, *, size: int = 8) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, size, size, generator=draws).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(4, (4,), generator=draws)


class Operations(TorchDispatchMode):
    """Counts what a device would have to launch: everything but views and fresh memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name: str = func.overloadpacket.__name__
        aliases = [returned.alias_info for returned in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if not (is_view or name.startswith(("empty", "new_empty", "_record_function", "as_strided", "detach"))):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("options", "loss_scale"),
    [
        (StepOptions(), None),
        (StepOptions(precision="bf16"), None),
        (StepOptions(precision="bf16", accumulate=2, clip_grad_norm=0.1, ema_decay=0.9), 2.0**10),
    ],
    ids=str,
)
def test_steps_are_those_of_the_network_itself_bit_for_bit(
    network: str, options: StepOptions, loss_scale: float | None
) -> None:
    states = [state_of(NETWORKS[network](), ema=options.ema_decay is not None, loss_scale=loss_scale) for _ in range(2)]
    forward = FewLaunches(states[1].model, precision=options.precision)
    for step in range(3):
        plain = train_step(states[0], *batch(step), lr=0.1, options=options)
        few = train_step(states[1], *batch(step), lr=0.1, options=options, forward=forward)
        assert torch.equal(plain.loss, few.loss)
        for (name, one), other in zip(states[0].model.named_parameters(), states[1].model.parameters(), strict=True):
            assert type(other) is nn.Parameter
            if not one.requires_grad:
                assert one.grad is None and other.grad is None, name
                continue
            assert one.grad is not None and other.grad is not None
            assert torch.equal(one.grad, other.grad), name
            assert one.grad.stride() == other.grad.stride(), name
    for networks in ((state.model for state in states), (state.eval_model for state in states)):
        first, second = (network.state_dict() for network in networks)
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    counted = {
        norm.num_batches_tracked
        for norm in states[1].model.modules()
        if isinstance(norm, nn.BatchNorm2d) and next(norm.parameters()).requires_grad
    }
    assert {int(counter) for counter in counted} == {3 * options.accumulate}


@pytest.mark.parametrize(
    "options",
    [
        StepOptions(precision="bf16"),
        StepOptions(precision="bf16", accumulate=2, clip_grad_norm=0.1, ema_decay=0.9),
    ],
    ids=str,
)
def test_it_can_be_recorded(options: StepOptions, assert_same: Callable[[Any, Any], None]) -> None:
    """Replays make the steps of the network itself."""
    states = [state_of(quarter(8), ema=options.ema_decay is not None) for _ in range(2)]
    recorder, forward = EmulatedRecorder(), FewLaunches(states[1].model, precision=options.precision)
    graphed = GraphedStep(states[1], options=options, recorder=recorder, forward=forward)
    for step in range(6):
        lr = 0.1 / (step + 1)
        expected = train_step(states[0], *batch(step), lr=torch.tensor(lr), options=options)
        assert torch.equal(graphed(*batch(step), lr=lr).loss, expected.loss)
    assert graphed.outcome.graph, graphed.outcome.reason
    assert_same(states[1].model.state_dict(), states[0].model.state_dict())
    assert_same(states[1].eval_model.state_dict(), states[0].eval_model.state_dict())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu_steps_are_those_of_the_network_itself_bit_for_bit(precision: str) -> None:
    options = StepOptions(precision=precision, ema_decay=0.9)
    states = [state_of(quarter(18, shortcut="B").cuda(), ema=True) for _ in range(2)]
    for state in states:
        state.scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16", init_scale=2.0**8)
    forward = FewLaunches(states[1].model, precision=precision)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        for step in range(3):
            images, labels = (tensor.cuda() for tensor in batch(step, size=32))
            plain = train_step(states[0], images, labels, lr=0.1, options=options)
            few = train_step(states[1], images, labels, lr=0.1, options=options, forward=forward)
            assert torch.equal(plain.loss, few.loss)
    for networks in ((state.model for state in states), (state.eval_model for state in states)):
        first, second = (network.state_dict() for network in networks)
        assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_what_computes_in_another_way_is_left_alone() -> None:
    """Norms that count in a kernel of their own, and those whose statistics are made by the count."""
    model = quarter(8)
    assert isinstance(model, CifarResNet)
    model.bn1 = nn.BatchNorm2d(4, momentum=None)

    class Counting(nn.BatchNorm2d):
        pass

    model.layer1[0].bn1.__class__ = Counting
    forward = FewLaunches(model, precision="fp32")
    forward(batch()[0])
    counters = [value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert {int(value) for value in counters} == {1}


def test_a_forward_pass_that_raises_leaves_the_network_whole() -> None:
    model = quarter(8)
    names = list(model.state_dict())
    forward = FewLaunches(model, precision="bf16")
    with pytest.raises(RuntimeError, match="channels"):
        forward(torch.zeros(2, 5, 8, 8))
    assert list(model.state_dict()) == names
    assert all(type(parameter) is nn.Parameter for parameter in model.parameters())


def operations(state: TrainState, options: StepOptions, *, few: bool) -> list[str]:
    forward = FewLaunches(state.model, precision=options.precision) if few else None
    images, labels = batch(size=32)
    train_step(state, images, labels, lr=0.1, options=options, forward=forward)
    with Operations() as found:
        train_step(state, images, labels, lr=0.1, options=options, forward=forward)
    return found.names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "precision", "few", "most"),
    [
        (20, "fp32", False, 178),
        (20, "fp32", True, 160),
        (20, "bf16", False, 223),
        (20, "bf16", True, 165),
        (18, "bf16", False, 216),
        (18, "bf16", True, 155),
    ],
)
def test_operations_a_step(depth: int, precision: str, few: bool, most: int) -> None:
    """The figures of docs/performance.md; a moving average adds two."""
    shortcut = "A" if depth == 20 else "B"
    options = StepOptions(precision=precision)
    names = operations(state_of(quarter(depth, shortcut=shortcut)), options, few=few)
    assert len(names) <= most, sorted(names)
    averaging = StepOptions(precision=precision, ema_decay=0.9)
    more = operations(state_of(quarter(depth, shortcut=shortcut), ema=True), averaging, few=few)
    assert len(more) == len(names) + 2, "a moving average is one operation for floats and one for counters"
    assert not few or names.count("_to_copy") <= 3, "images, logits and their gradient"


@pytest.mark.parametrize(
    ("augment", "number"),
    [
        ({}, 21),
        ({"crop_mode": "reflect"}, 23),
        ({"cutout": 8}, 34),
        ({"mixup": 0.2}, 30),
        ({"cutmix": 1.0}, 29),
    ],
    ids=str,
)
def test_operations_a_batch(augment: dict[str, Any], number: int) -> None:
    """With PyTorch's own kernels; those of `resnet_train.kernels` crop, flip and normalise in one."""
    options = {"crop_padding": 4, "crop_mode": "zeros", "flip": True, "cutout": 0, "mixup": 0.0, "cutmix": 0.0}
    data = TrainData(
        Split(torch.zeros(64, 8, 8, 3, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64)),
        batch_size=4,
        seed=0,
        augment=AugmentConfig(**{**options, **augment}),
        mean=[0.5] * 3,
        std=[0.2] * 3,
        num_classes=10,
        device=torch.device("cpu"),
    )
    data.batch(0)
    with Operations() as found:
        data.batch(1)
    assert len(found.names) == number, sorted(found.names)
