"""How large a network is: its parameters and the multiply-adds of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """A convolution or a fully connected layer, for one image."""

    multiply_adds: int
    values_in: int
    values_out: int
    pixels_out: int = 0  # of a convolution


def num_parameters(model: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def multiply_adds(model: nn.Module, image_size: int) -> int:
    """Multiply-adds of one forward pass over one image, counted in convolutions and fully connected layers."""
    return sum(layer.multiply_adds for layer in layers(model, image_size))


def layers(model: nn.Module, image_size: int) -> list[Layer]:
    """Every convolution and fully connected layer, in the order in which an image passes through them.

    Nothing is computed: a ``(1, 3, image_size, image_size)`` image without data (the meta device) passes through
    ``model`` with parameters that have no data either. The model itself is left as it was.
    """
    found: list[Layer] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = cast(Tensor, module.weight)  # (out, in / groups, kh, kw) or (out, in)
        positions = output[0, 0].numel()
        pixels = positions if isinstance(module, nn.Conv2d) else 0
        found.append(Layer(positions * weight.numel(), inputs[0].numel(), output.numel(), pixels))

    was_training = model.training
    hooks = [
        module.register_forward_hook(note) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    try:
        shadow = {
            name: torch.empty_like(tensor, device="meta")
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }
        model.eval()
        with torch.no_grad():
            torch.func.functional_call(model, shadow, torch.empty(1, 3, image_size, image_size, device="meta"))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return found
