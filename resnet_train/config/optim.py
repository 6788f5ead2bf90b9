"""The group ``optim``: the optimizer, its peak learning rate and its coefficients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from resnet_train.config import checks
from resnet_train.errors import ConfigError


@dataclass
class OptimConfig:
    """What all optimizers share."""

    NAME: ClassVar[str]

    name: str
    lr: float  # peak learning rate, for the global batch
    weight_decay: float
    decay_norm_and_bias: bool  # false: weight decay for weights of convolutions and the classifier only


@dataclass
class SGDConfig(OptimConfig):
    """Stochastic gradient descent."""

    NAME: ClassVar[str] = "sgd"

    momentum: float
    nesterov: bool


@dataclass
class AdamWConfig(OptimConfig):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017, 1711.05101)."""

    NAME: ClassVar[str] = "adamw"

    beta1: float
    beta2: float
    eps: float


def check_optim(optim: OptimConfig) -> None:
    """Raise `ConfigError` for learning rates and coefficients out of range."""
    checks.option_name("optim", optim)
    checks.number("optim.lr", optim.lr, above=0)
    checks.number("optim.weight_decay", optim.weight_decay, at_least=0)
    match optim:
        case SGDConfig():
            checks.number("optim.momentum", optim.momentum, at_least=0, below=1)
            if optim.nesterov and optim.momentum == 0:
                raise ConfigError("optim.nesterov=true needs optim.momentum above 0, got 0; set optim.nesterov=false")
        case AdamWConfig():
            checks.number("optim.beta1", optim.beta1, at_least=0, below=1)
            checks.number("optim.beta2", optim.beta2, at_least=0, below=1)
            checks.number("optim.eps", optim.eps, above=0)
