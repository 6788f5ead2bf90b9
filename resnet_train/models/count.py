"""How large a network is, and how far its layers see: parameters, multiply-adds, receptive fields.

The one counter: the header of a run, `resnet-bench` and ``summary=true`` all ask here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from resnet_train.models.resnet import Block


@dataclass(frozen=True)
class Layer:
    """What a module without children does with one image."""

    multiply_adds: int  # none but in convolutions and fully connected layers
    values_in: int
    values_out: int
    pixels_out: int = 0  # of a convolution
    name: str = ""  # of the module: layer1.0.conv1
    parameters: int = 0  # scalars
    shape: tuple[int, ...] = ()  # of the output: (C, H, W), or (features,)
    kernel: int = 1  # pixels a side
    stride: int = 1
    receptive_field: int = 1  # side, in pixels of the image, of what a value depends on; it may exceed the image
    jump: int = 1  # pixels of the image from one value to the next

    @property
    def has_weights(self) -> bool:
        """Whether it is a convolution or fully connected."""
        return self.multiply_adds > 0


@dataclass(frozen=True)
class Field:
    """The part of the image that a value depends on."""

    size: int = 1
    jump: int = 1

    def through(self, kernel: int, stride: int) -> Field:
        """That of the values behind a window of ``kernel`` pixels (Araujo et al. 2019, distill.pub, equation 2)."""
        return Field(self.size + (kernel - 1) * self.jump, self.jump * stride)


def num_parameters(model: nn.Module) -> int:
    """Number of scalars in weights, scales, shifts and biases, frozen or not."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, image_size: int) -> int:
    """Multiply-adds of one forward pass over one image, counted in convolutions and fully connected layers."""
    return sum(layer.multiply_adds for layer in layers(model, image_size))


def layers(model: nn.Module, image_size: int) -> list[Layer]:
    """Every convolution and fully connected layer, in the order in which an image passes through them."""
    return [layer for layer in trace(model, image_size) if layer.has_weights]


def trace(model: nn.Module, image_size: int) -> list[Layer]:
    """Every convolution, norm, pooling and fully connected layer that an image passes through, in this order.

    Nothing is computed: no images, ``(0, channels, image_size, image_size)``, pass through, in float64, which no fused
    kernel takes. For the meta device PyTorch would import torch.compile. The model itself is left as it was.

    Receptive fields are those of the longest path: a shortcut, which pads or has a 1x1 convolution, starts with the
    field in front of its block and never has the larger one at the end.
    """
    found: list[Layer] = []
    here = in_front_of_block = Field()

    def enter(*_: object) -> None:
        nonlocal in_front_of_block
        in_front_of_block = here

    def note(name: str, parameters: int, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal here
        kernel, stride = window(module, inputs[0])
        is_shortcut = "downsample" in name.split(".")
        field = (in_front_of_block if is_shortcut else here).through(kernel, stride)
        if not is_shortcut:
            here = field
        found.append(
            Layer(
                multiply_adds=multiply_adds_of(module, output),
                values_in=math.prod(inputs[0].shape[1:]),
                values_out=math.prod(output.shape[1:]),
                pixels_out=math.prod(output.shape[2:]) if isinstance(module, nn.Conv2d) else 0,
                name=name,
                parameters=parameters,
                shape=tuple(output.shape[1:]),
                kernel=kernel,
                stride=stride,
                receptive_field=field.size,
                jump=field.jump,
            )
        )

    was_training = model.training
    hooks = [module.register_forward_pre_hook(enter) for module in model.modules() if isinstance(module, Block)]
    hooks += [
        module.register_forward_hook(partial(note, name, num_parameters(module)))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.MaxPool2d | nn.AdaptiveAvgPool2d | nn.Linear)
    ]
    try:
        shadow = {
            name: torch.zeros((), dtype=torch.float64, device="cpu").expand(tensor.shape)
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }
        model.eval()
        with torch.no_grad():
            images = torch.empty(0, channels_of(model), image_size, image_size, dtype=torch.float64, device="cpu")
            torch.func.functional_call(model, shadow, images)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return found


def channels_of(model: nn.Module) -> int:
    """Channels of the images that a network takes: those of its first convolution."""
    return next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))


def multiply_adds_of(module: nn.Module, output: Tensor) -> int:
    """Those of one image: each position of the output takes every weight once."""
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return 0
    return math.prod(output.shape[2:]) * module.weight.numel()  # weights (out, in / groups, kh, kw) or (out, in)


def window(module: nn.Module, image: Tensor) -> tuple[int, int]:
    """Pixels, a side, that one value of ``module`` depends on, and pixels from there to those of the next value."""
    match module:
        case nn.Conv2d():
            return module.kernel_size[0], module.stride[0]
        case nn.MaxPool2d():
            assert isinstance(module.kernel_size, int) and isinstance(module.stride, int)
            return module.kernel_size, module.stride
        case nn.AdaptiveAvgPool2d():  # to one pixel, which has no next one
            return image.shape[-1], 1
    return 1, 1
