"""The group ``model``: two families of residual networks."""

from __future__ import annotations

from dataclasses import dataclass

from resnet_train.config import checks
from resnet_train.errors import ConfigError

MAX_DEPTH = 10_004  # deeper ones take minutes to be built; the paper ends at 1202

MAX_WIDTH = 64


@dataclass
class ModelConfig:
    """What both families share."""

    name: str  # for the header, the run directory and the tables
    depth: int  # layers with weights
    shortcut: str  # A: zero padding, no parameters; B: 1x1 convolution where the shape changes
    residual: bool  # false: the plain counterpart, the same layers without shortcuts
    width: float  # multiplies the channels of every stage
    preactivation: bool  # norm and activation before each convolution (He et al. 2016)
    dropout: float  # probability, before the last layer
    activation: str  # relu, sigmoid, tanh
    init: str  # he, glorot, default (PyTorch's own)
    zero_init_residual: bool  # the last norm of each block starts at scale 0
    conv_bias: bool  # convolutions with a bias, which the norm behind them makes superfluous


@dataclass
class CifarResNetConfig(ModelConfig):
    """6n+2 layers in three stages of 16, 32, 64 channels (He et al. 2015, section 4.2)."""


@dataclass
class ResNetConfig(ModelConfig):
    """18 to 152 layers in four stages (He et al. 2015, table 1)."""

    stem: str  # cifar: 3x3; imagenet: 7x7 stride 2 and max-pooling


def check_model(model: ModelConfig) -> None:
    """Raise `ConfigError` for a network that does not exist."""
    if isinstance(model, ResNetConfig):
        checks.choice("model.stem", model.stem)
        if model.depth not in (18, 34, 50, 101, 152):
            raise ConfigError(f"model.depth: expected 18, 34, 50, 101 or 152 in this family, got {model.depth}")
    elif not 8 <= model.depth <= MAX_DEPTH or (model.depth - 2) % 6:
        raise ConfigError(
            f"model.depth: expected 6n + 2 (8, 14, 20, 32, ... {MAX_DEPTH}) in this family, got {model.depth}"
        )
    checks.choice("model.shortcut", model.shortcut)
    checks.choice("model.activation", model.activation)
    checks.choice("model.init", model.init)
    checks.number("model.width", model.width, above=0, at_most=MAX_WIDTH)
    checks.number("model.dropout", model.dropout, at_least=0, below=1)
    if model.zero_init_residual and not model.residual:
        raise ConfigError(
            "model.zero_init_residual=true contradicts model.residual=false: without shortcuts the network would put "
            "out zeros; set one of the two"
        )
