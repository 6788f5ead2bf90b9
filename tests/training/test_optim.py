"""The parameter groups, and a few steps against the published formulas."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from resnet_train.models.resnet import CifarResNet, ResNet
from resnet_train.models.variant import Variant
from resnet_train.training.optim import adamw, load_optimizer, parameter_groups, sgd

MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: CifarResNet(8, Variant("A", width=0.25, conv_bias=True)),
    "preactivation": lambda: CifarResNet(8, Variant("B", width=0.25, preactivation=True)),
    "bottleneck": lambda: ResNet(50, Variant("B", width=0.05)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("decay_norm_and_bias", [False, True])
def test_groups_hold_every_parameter_once(name: str, decay_norm_and_bias: bool) -> None:
    """Weights of convolutions and linear layers decay, everything else only if asked for."""
    model = MODELS[name]()
    groups = parameter_groups(model, weight_decay=0.1, decay_norm_and_bias=decay_norm_and_bias)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            decays = decay_norm_and_bias or (isinstance(module, nn.Conv2d | nn.Linear) and key == "weight")
            assert decay[id(parameter)] == (0.1 if decays else 0.0), (module, key)


@pytest.fixture
def model() -> nn.Module:
    """One weight that decays, one bias that does not, and gradients for them."""
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    set_gradients(layer, seed=1)
    return layer


def set_gradients(layer: nn.Module, *, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draws)


def values(layer: nn.Module) -> list[tuple[Tensor, Tensor, bool]]:
    """Of each parameter: value and gradient in double precision, and whether it decays by itself."""
    found = []
    for parameter in layer.parameters():
        assert parameter.grad is not None
        found.append((parameter.detach().double(), parameter.grad.double(), parameter.ndim > 1))
    return found


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("everything", [False, True])
def test_sgd(model: nn.Module, nesterov: bool, everything: bool) -> None:
    optimizer = sgd(model, lr=0.5, momentum=0.9, nesterov=nesterov, weight_decay=0.1, decay_norm_and_bias=everything)
    velocity = [torch.zeros(())] * 2
    for step in range(3):
        set_gradients(model, seed=step)
        expected = []
        for index, (weight, gradient, decays) in enumerate(values(model)):
            gradient = gradient + (0.1 * weight if decays or everything else 0)
            velocity[index] = 0.9 * velocity[index] + gradient
            expected.append(weight - 0.5 * (gradient + 0.9 * velocity[index] if nesterov else velocity[index]))
        optimizer.step()
        for parameter, wanted in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.detach().double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("everything", [False, True])
def test_adamw(model: nn.Module, everything: bool) -> None:
    optimizer = adamw(model, lr=0.01, beta1=0.8, beta2=0.95, eps=0.1, weight_decay=0.1, decay_norm_and_bias=everything)
    first, second = [torch.zeros(())] * 2, [torch.zeros(())] * 2
    for step in range(1, 4):
        set_gradients(model, seed=step)
        expected = []
        for index, (weight, gradient, decays) in enumerate(values(model)):
            first[index] = 0.8 * first[index] + 0.2 * gradient
            second[index] = 0.95 * second[index] + 0.05 * gradient**2
            direction = first[index] / (1 - 0.8**step) / ((second[index] / (1 - 0.95**step)).sqrt() + 0.1)
            shrunk = weight * (1 - 0.01 * 0.1) if decays or everything else weight
            expected.append(shrunk - 0.01 * direction)
        optimizer.step()
        for parameter, wanted in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.detach().double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_fused_kernels_agree_with_the_plain_ones() -> None:
    """On a whole network, where each step starts from the step before."""
    torch.manual_seed(0)
    network = CifarResNet(8, Variant("A", width=0.25))
    for kind in ("sgd", "adamw"):
        fused, plain = copy.deepcopy(network), copy.deepcopy(network)
        if kind == "sgd":
            one: torch.optim.Optimizer = sgd(
                fused, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2, decay_norm_and_bias=True
            )
            other: torch.optim.Optimizer = torch.optim.SGD(
                plain.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2, foreach=False
            )
        else:
            one = adamw(fused, lr=0.01, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=1e-2, decay_norm_and_bias=True)
            other = torch.optim.AdamW(
                plain.parameters(), lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=1e-2, foreach=False
            )
        for step in range(4):
            for layer, optimizer in ((fused, one), (plain, other)):
                set_gradients(layer, seed=step)
                optimizer.step()
        for parameter, wanted in zip(fused.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(parameter, wanted, rtol=1e-4, atol=1e-6)
        states = chain(one.state.values(), other.state.values())
        assert all(tensor.dtype == torch.float32 for state in states for tensor in state.values())


@pytest.fixture(params=["sgd", "adamw"])
def build(request: pytest.FixtureRequest) -> Callable[..., tuple[nn.Module, torch.optim.Optimizer]]:
    """A network and its optimizer as this project builds it, or unfused as on a device without fused ones."""

    def make(*, weight_decay: float = 1e-2, fused: bool = True) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network, shared = CifarResNet(8, Variant("A", width=0.25)), {"weight_decay": weight_decay, "lr": 0.1}
        if request.param == "sgd":
            optimizer: torch.optim.Optimizer = sgd(
                network, momentum=0.9, nesterov=True, decay_norm_and_bias=True, **shared
            )
        else:
            optimizer = adamw(network, beta1=0.9, beta2=0.99, eps=1e-8, decay_norm_and_bias=True, **shared)
        if not fused:
            for group in optimizer.param_groups:
                group["fused"], group["foreach"] = False, False
        return network, optimizer

    return make


def train(network: nn.Module, optimizer: torch.optim.Optimizer, *, seeds: range) -> None:
    for seed in seeds:
        set_gradients(network, seed=seed)
        optimizer.step()


@pytest.mark.parametrize("saved_fused", [True, False])
def test_a_state_is_loaded_as_this_device_has_it(
    build: Callable[..., tuple[nn.Module, torch.optim.Optimizer]], saved_fused: bool
) -> None:
    """From a device with another kind of optimizer, whose groups say so, and with a learning rate of its own kind."""
    network, other = build(fused=saved_fused)
    train(network, other, seeds=range(3))
    saved = copy.deepcopy(other.state_dict())
    for group in saved["param_groups"]:
        group |= {"lr": torch.tensor(0.1), "capturable": True, "fused": saved_fused, "foreach": not saved_fused}
    for values in saved["state"].values():  # not fused, AdamW counts in the default type, on the CPU
        if not saved_fused and "step" in values:
            values["step"] = values["step"].double()
    here, optimizer = build()
    here.load_state_dict(network.state_dict())
    options = [{**group, "params": None} for group in optimizer.param_groups]
    load_optimizer(optimizer, saved)
    assert [group["lr"] for group in optimizer.param_groups] == [torch.tensor(0.1).item()] * 2
    assert [{**group, "params": None, "lr": 0.1} for group in optimizer.param_groups] == options
    for parameter, values in optimizer.state.items():
        for value in values.values():
            assert (value.dtype, value.device) == (torch.float32, parameter.device)
    train(network, other, seeds=range(3, 6))
    train(here, optimizer, seeds=range(3, 6))
    for one, wanted in zip(here.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-6)


def test_a_value_that_was_changed_on_purpose_counts(
    build: Callable[..., tuple[nn.Module, torch.optim.Optimizer]],
) -> None:
    """By ``resume_force``: what the configuration says, not what was saved."""
    network, other = build()
    train(network, other, seeds=range(1))
    _, optimizer = build(weight_decay=0.5)
    load_optimizer(optimizer, other.state_dict())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_the_state_of_another_optimizer_is_refused(
    build: Callable[..., tuple[nn.Module, torch.optim.Optimizer]], model: nn.Module
) -> None:
    network, optimizer = build()
    another: torch.optim.Optimizer = torch.optim.SGD(
        parameter_groups(network, weight_decay=0, decay_norm_and_bias=True)
    )
    if isinstance(optimizer, torch.optim.SGD):
        another = torch.optim.AdamW(another.param_groups)
    with pytest.raises(ValueError, match=r"^its optimizer is not the (SGD|AdamW) of this run$"):
        load_optimizer(optimizer, another.state_dict())
    with pytest.raises(ValueError, match="parameter group"):
        fewer = parameter_groups(model, weight_decay=0, decay_norm_and_bias=True)
        load_optimizer(optimizer, type(optimizer)(fewer, lr=1).state_dict())
