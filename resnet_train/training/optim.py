"""Which optimizer (`build_optimizer`), and each optimizer over two parameter groups: what decays and what does not."""

from __future__ import annotations

from inspect import unwrap
from typing import Any

import torch
from torch import nn

from resnet_train.config.optim import AdamWConfig, OptimConfig, SGDConfig


class _NotCompiled(torch.optim.Optimizer):
    """An optimizer's methods without what PyTorch wraps them in for torch.compile, which nothing here applies to them.

    The first call of such a wrapper imports the compiler: a second and a half of every start.
    """

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)


class SGD(_NotCompiled, torch.optim.SGD):
    """See `torch.optim.SGD`."""

    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


class AdamW(_NotCompiled, torch.optim.AdamW):
    """See `torch.optim.AdamW`."""

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


def build_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over all parameters of ``model`` that train, on the device where they are."""
    shared = {"lr": config.lr, "weight_decay": config.weight_decay, "decay_norm_and_bias": config.decay_norm_and_bias}
    match config:
        case SGDConfig():
            return sgd(model, momentum=config.momentum, nesterov=config.nesterov, **shared)  # type: ignore[arg-type]
        case AdamWConfig():
            return adamw(model, beta1=config.beta1, beta2=config.beta2, eps=config.eps, **shared)  # type: ignore[arg-type]
        case _:
            raise TypeError(f"no optimizer for {type(config).__name__}")


def parameter_groups(model: nn.Module, *, weight_decay: float, decay_norm_and_bias: bool) -> list[dict[str, Any]]:
    """Weights of convolutions and linear layers decay; scales, shifts and biases (one dimension) only if asked for.

    Frozen parameters are in neither group: nothing decays them, and there is no momentum of theirs.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    return [
        {"params": weights, "weight_decay": weight_decay},
        {"params": others, "weight_decay": weight_decay if decay_norm_and_bias else 0.0},
    ]


def sgd(
    model: nn.Module, *, lr: float, momentum: float, nesterov: bool, weight_decay: float, decay_norm_and_bias: bool
) -> torch.optim.SGD:
    """SGD as one fused kernel per device; the learning rate is set before each step."""
    groups = parameter_groups(model, weight_decay=weight_decay, decay_norm_and_bias=decay_norm_and_bias)
    return SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=_can_fuse(model))


def adamw(
    model: nn.Module,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decay_norm_and_bias: bool,
) -> torch.optim.AdamW:
    """AdamW as one fused kernel per device; the learning rate is set before each step."""
    groups = parameter_groups(model, weight_decay=weight_decay, decay_norm_and_bias=decay_norm_and_bias)
    return AdamW(groups, lr=lr, betas=(beta1, beta2), eps=eps, fused=_can_fuse(model))


def zero_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give SGD the momentum of zero that its first step would make, for a first step that the loss scaler skips.

    The fused step makes the memory first and then skips, and what lies in that memory is momentum from then on. A
    first step from zero is the same to the bit: ``momentum * 0 + gradient``.
    """
    for group in optimizer.param_groups:
        if group.get("momentum"):
            for parameter in group["params"]:
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load the momentum and counters of a `state_dict`, whatever device and layout they had.

    The options of the parameter groups stay what they are, but for the learning rate, which is a number from here on.
    Those that were saved are of the device that saved them (``fused``, ``foreach``, ``capturable``) or of a
    configuration that has changed by intent. Raises ``ValueError`` where ``saved`` is of another optimizer or network.
    """
    groups = []
    for mine, theirs in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        if ("betas" in mine) != ("betas" in theirs):
            raise ValueError(f"its optimizer is not the {type(optimizer).__name__} of this run")
        groups.append({**mine, "params": theirs["params"], "lr": float(theirs["lr"])})
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    match_layout(optimizer)


def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give each tensor of the optimizer's state the strides of its parameter: fused steps walk both as one memory."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _can_fuse(model: nn.Module) -> bool:
    return all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters())
