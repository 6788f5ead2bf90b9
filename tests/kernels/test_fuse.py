"""Networks before and after `fuse`: another class for each module, the same network."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_train.config.run import Config
from resnet_train.kernels import cpu
from resnet_train.kernels.choose import PLAIN, Backend
from resnet_train.kernels.fuse import FUSED, FusedBasicBlock, fuse
from resnet_train.models.resnet import BasicBlock, CifarResNet, ResNet
from resnet_train.models.variant import OPTION_A, OPTION_B, Variant
from resnet_train.training.plan import build_plan
from resnet_train.training.setup import build_state, build_step_options
from resnet_train.training.step import at_least_float, train_step, update_ema

pytestmark = pytest.mark.usefixtures("compiler")

Network = CifarResNet | ResNet


def drawn(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5
    return values.contiguous(memory_format=torch.channels_last)


def cifar(depth: int = 8, variant: Variant = OPTION_A, **options: Any) -> Callable[[], Network]:
    return lambda: CifarResNet(depth, replace(variant, **options))


def resnet(depth: int, stem: Any = "cifar", **options: Any) -> Callable[[], Network]:
    return lambda: ResNet(depth, replace(OPTION_B, width=0.25, **options), stem=stem)


NETWORKS: dict[str, Callable[[], Network]] = {
    "option A": cifar(20),
    "option B": cifar(20, OPTION_B),
    "preactivation, option A": cifar(20, preactivation=True),
    "preactivation, option B": cifar(20, OPTION_B, preactivation=True),
    "biases": cifar(conv_bias=True),
    "preactivation with biases": cifar(conv_bias=True, preactivation=True),
    "zero-init": cifar(zero_init_residual=True),
    "preactivation with zero-init": cifar(zero_init_residual=True, preactivation=True),
    "plain": cifar(20, residual=False),
    "plain with preactivation": cifar(20, residual=False, preactivation=True),
    "plain18": resnet(18, residual=False),
    "dropout": cifar(dropout=0.5),
    "tanh": cifar(activation="tanh"),
    **{f"resnet{depth}, {stem}": resnet(depth, stem) for depth in (18, 50) for stem in ("cifar", "imagenet")},
    **{
        f"preactivated {depth}, {stem}": resnet(depth, stem, preactivation=True)
        for depth in (18, 50)
        for stem in ("cifar", "imagenet")
    },
    "resnet18, option A": resnet(18, shortcut="A"),
    "resnet50, zero-init": resnet(50, zero_init_residual=True),
}
# How far off a fused network may be after two steps, relative to the size of all values together. What is right follows
# from rounding, and from what networks make of it. Results are rounded to the 24 bits of float32 or the 8 of bfloat16:
# by a fused operation once, by plain ones up to three times, by Winograd's algorithm in other places. Norms pass errors
# on at their size, layers add theirs. But a value that rounding moves across zero opens or closes a ReLU, whose whole
# gradient comes or goes: a share e of all values lies within an error e of zero, which gives gradients an error of
# sqrt(e), and the next step amplifies it: with 50 layers to a third of the gradient in float32, to all of it in
# bfloat16. So no number holds for all networks. What holds is that a fused network is no further from float64 than the
# plain one: up to a factor, for chance, and in float32 up to what a few such values make where the other has none.
TIMES = 2.5
A_FEW_VALUES = {
    "fp32": {"outputs": 1e-4, "gradients": 0.05, "statistics": 1e-5},
    "bf16": {"outputs": 0.0, "gradients": 0.0, "statistics": 0.0},
}
LOOKED_AT_CLOSELY = [
    *("option A", "preactivation, option A", "preactivation with biases", "plain"),
    *("resnet18, cifar", "resnet18, imagenet", "resnet18, option A", "resnet50, cifar", "preactivated 50, cifar"),
]


def pair(build: Callable[[], Network]) -> tuple[Network, Network]:
    torch.manual_seed(0)
    plain = build().to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain)
    fuse(fused, cpu.LEAVES)
    return plain, fused


def two_steps(model: Network, precision: str) -> dict[str, Tensor]:
    """Outputs, gradients and statistics of two steps, in one tensor each."""
    size = 64 if model.conv1.kernel_size == (7, 7) else 16
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    torch.manual_seed(1)  # for dropout
    outputs, gradients = [], []
    for seed in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = model(drawn(16, 3, size, size, seed=seed).to(model.fc.weight.dtype))
        optimizer.zero_grad()
        nn.functional.cross_entropy(at_least_float(logits), torch.arange(16) % 10).backward()
        outputs.append(logits.detach().flatten())
        gradients.append(gradients_of(model))
        optimizer.step()
    statistics = [value.flatten() for name, value in model.named_buffers() if "running" in name]
    assert all(value == 2 for name, value in model.named_buffers() if "num_batches" in name)
    return {
        "outputs": torch.cat(outputs).double(),
        "gradients": torch.cat(gradients).double(),
        "statistics": torch.cat(statistics).double(),
    }


def gradients_of(model: nn.Module) -> Tensor:
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(found) == len(list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in found])


def distance(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_two_steps(name: str, precision: str) -> None:
    plain, fused = pair(NETWORKS[name])
    exact = two_steps(copy.deepcopy(plain).double(), "fp32")
    expected, found = two_steps(plain, precision), two_steps(fused, precision)
    if name == "tanh":
        assert all(torch.equal(found[part], expected[part]) for part in expected), "left alone"
    for part, few in A_FEW_VALUES[precision].items():
        assert distance(found[part], exact[part]) < TIMES * distance(expected[part], exact[part]) + few, part


@pytest.mark.parametrize("name", LOOKED_AT_CLOSELY)
def test_the_gradient_of_each_parameter(name: str) -> None:
    """A value that rounding moves across the zero of a ReLU changes one by some percent, in float32 of both."""
    losses, gradients = [], []
    for model in pair(NETWORKS[name]):
        size = 64 if model.conv1.kernel_size == (7, 7) else 16
        torch.manual_seed(1)
        loss = nn.functional.cross_entropy(model(drawn(16, 3, size, size)), torch.arange(16) % 10)
        loss.backward()
        losses.append(loss.item())
        gradients.append({key: value.grad for key, value in model.named_parameters()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for key, expected in gradients[0].items():
        found = gradients[1][key]
        assert found is not None and expected is not None
        assert (found - expected).norm() < 0.15 * expected.norm() + 1e-6, key  # a bias before a norm has none


@pytest.mark.parametrize("name", NETWORKS)
def test_names_order_and_weights_stay(name: str) -> None:
    plain, fused = pair(NETWORKS[name])
    for listed in ("named_parameters", "named_buffers", "named_modules"):
        assert [key for key, _ in getattr(plain, listed)()] == [key for key, _ in getattr(fused, listed)()]
    weights = fused.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in plain.state_dict().items())
    assert [vars(module).keys() for module in plain.modules()] == [vars(module).keys() for module in fused.modules()]
    plain.load_state_dict(weights)
    fused.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_module_is_another_and_a_second_time_changes_nothing(name: str) -> None:
    _, fused = pair(NETWORKS[name])
    types = [type(module) for module in fused.modules()]
    if name != "tanh":
        assert not {*FUSED, nn.Conv2d, nn.BatchNorm2d} & set(types)
    fuse(fused, cpu.LEAVES)
    assert [type(module) for module in fused.modules()] == types


@pytest.mark.parametrize("name", ["option B", "preactivated 50, cifar"])
def test_a_moving_average_is_a_copy(name: str) -> None:
    """Fused as well, with weights of its own, and it follows."""
    plain, fused = pair(NETWORKS[name])
    averages = [copy.deepcopy(model).requires_grad_(False).eval() for model in (plain, fused)]
    assert [type(module) for module in averages[1].modules()] == [type(module) for module in fused.modules()]
    two_steps(fused, "fp32")
    assert torch.equal(averages[1].fc.weight, averages[0].fc.weight), "the copy does not train with the original"
    plain.load_state_dict(fused.state_dict())
    for average, model in zip(averages, (plain, fused), strict=True):
        update_ema(average, model, decay=0.9)
    assert all(torch.equal(averages[1].state_dict()[key], value) for key, value in averages[0].state_dict().items())
    with torch.inference_mode():
        found, expected = averages[1](drawn(4, 3, 16, 16)), averages[0](drawn(4, 3, 16, 16))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_fused_network_can_be_pickled() -> None:
    _, fused = pair(cifar())
    again = pickle.loads(pickle.dumps(fused))
    assert [type(module) for module in again.modules()] == [type(module) for module in fused.modules()]


# ------------------------------------------------------------------------------------------------- what is left alone


class OwnBlock(BasicBlock):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_a_block_of_somebody_else_is_left_alone_with_what_is_in_it() -> None:
    model = CifarResNet(14)
    first, second = model.layer1
    first.__class__ = OwnBlock
    fuse(model, cpu.LEAVES)
    assert type(first) is OwnBlock
    assert (type(first.conv1), type(first.bn1)) == (nn.Conv2d, nn.BatchNorm2d)
    assert type(second) is FusedBasicBlock
    model(drawn(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("name", "module"),
    [("relu", nn.Tanh()), ("relu", nn.ReLU6()), ("bn1", nn.Identity()), ("bn2", nn.GroupNorm(4, 16))],
    ids=["tanh", "ReLU6", "no norm", "group norm"],
)
def test_a_block_with_another_norm_or_activation_is_left_alone(name: str, module: nn.Module) -> None:
    model = CifarResNet(14)
    setattr(model.layer1[0], name, module)
    plain = copy.deepcopy(model)
    fuse(model, cpu.LEAVES)
    assert type(model.layer1[0]) is BasicBlock
    assert type(model.layer1[1]) is FusedBasicBlock
    x = drawn(2, 16, 8, 8)
    assert torch.equal(model.layer1[0](x), plain.layer1[0](x))


def test_modules_that_are_not_of_these_networks_are_left_alone() -> None:
    block = BasicBlock(16, 16, 1, None, OPTION_A)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), block)
    fuse(model, cpu.LEAVES)
    assert [type(module) for module in model] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, FusedBasicBlock]


def test_a_network_that_does_not_fit_the_kernels_computes_the_same() -> None:
    """Channels that are not a multiple of 16, and float64: PyTorch's own operations, to the bit."""
    for width, dtype in ((0.3, torch.float32), (1.0, torch.float64)):
        plain, fused = pair(cifar(width=width))
        x = drawn(4, 3, 8, 8).to(dtype)
        assert torch.equal(fused.to(dtype)(x), plain.to(dtype)(x))


# ------------------------------------------------------------------------------------------------------ longer training


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("bf16", 2**-8)])
def test_fifty_steps_are_those_of_plain_kernels(compose: Callable[..., Config], precision: str, bound: float) -> None:
    """Against plain ones in float32: why these bounds, and what deeper networks do, says docs/performance.md."""
    config = compose("model=resnet20", "model.depth=8", "device=cpu")
    fused = Backend("fused", "", lambda model: fuse(model, cpu.LEAVES))
    losses: list[list[float]] = []
    for arithmetic, backend in ((precision, fused), ("fp32", PLAIN)):
        plan = replace(build_plan(config), precision=arithmetic, backend=backend)
        state, options = build_state(config, plan, num_classes=10), build_step_options(config, plan)
        images = [drawn(32, 3, 16, 16, seed=seed) for seed in range(2)]
        labels = torch.arange(32) % 10
        losses.append(
            [train_step(state, images[step % 2], labels, lr=0.001, options=options).loss.item() for step in range(50)]
        )
    assert losses[0] == pytest.approx(losses[1], rel=bound)
    assert losses[1][-1] < 0.95 * losses[1][0], "something was learned"
