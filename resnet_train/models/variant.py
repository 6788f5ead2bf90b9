"""What a network varies besides its size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

Stem = Literal["cifar", "imagenet"]
Shortcut = Literal["A", "B"]
Activation = Literal["relu", "sigmoid", "tanh"]
Init = Literal["he", "glorot", "default"]

ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


@dataclass(frozen=True)
class Variant:
    """The keys of ``conf/model/*.yaml``, without depth and stem."""

    shortcut: Shortcut  # where the shape changes; A: zero padding, no parameters; B: 1x1 convolution
    residual: bool = True  # false: the plain counterpart, the same layers without shortcuts
    width: float = 1.0  # multiplies the channels of every stage
    preactivation: bool = False  # norm and activation before each convolution: models/preact.py
    dropout: float = 0.0  # probability, before the classifier
    activation: Activation = "relu"
    conv_bias: bool = False  # superfluous where a norm follows
    init: Init = "he"
    zero_init_residual: bool = False  # every block starts as its shortcut

    def new_activation(self) -> nn.Module:
        """A module of its own, though it has no parameters: hooks can tell it from others."""
        return ACTIVATIONS[self.activation]()


OPTION_A, OPTION_B = Variant("A"), Variant("B")
