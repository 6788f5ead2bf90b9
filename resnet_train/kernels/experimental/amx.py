"""The gradient of the weights of 3x3 convolutions in bfloat16, by AMX tiles (``csrc/conv_weight_grad.cpp``).

The rest is `resnet_train.kernels.cpu`. The gradient is summed in float32 and never rounded to bfloat16.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_train.kernels import cpu, native


def prepare(precision: str) -> cpu.Parts:
    """Compile what is needed. Raises `native.Unavailable`."""
    if precision != "bf16":
        raise native.Unavailable(f"AMX multiplies bf16, this run computes in {precision}")
    load_conv_weight_grad()
    others = cpu.prepare(precision, by_name=True)
    reason = f"the gradients of 3x3 convolutions' weights with AMX; {others.reason}"
    return replace(others, reason=reason, leaves={**others.leaves, nn.Conv2d: Conv2d})


@cache
def load_conv_weight_grad() -> ctypes.CDLL:
    """The compiled ``csrc/conv_weight_grad.cpp``. Raises `native.Unavailable`."""
    if not torch.cpu._is_amx_tile_supported():
        raise native.Unavailable("this processor has no AMX tiles")
    library = native.load("conv_weight_grad.cpp", [*native.FAST, "-mamx-tile", "-mamx-bf16"], package=__package__)
    library.conv_weight_grad_allowed.argtypes, library.conv_weight_grad_allowed.restype = [], ctypes.c_int
    if not library.conv_weight_grad_allowed():
        raise native.Unavailable("the system does not allow AMX tiles")
    library.conv_weight_grad.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_long] * 5]
    library.conv_weight_grad.restype = None
    return library


class Conv2d(cpu.Conv2d):
    """`cpu.Conv2d` with another gradient of the weights, where a 3x3 convolution is made in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in, H, W) -> (N, out, H', W')``."""
        in_bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == x.dtype == torch.bfloat16
        learns = torch.is_grad_enabled() and self.weight.requires_grad
        if in_bf16 and learns and self.is_plain_3x3(x):
            return _Conv3x3.apply(x, self.weight)  # type: ignore[no-any-return]
        return super().forward(x)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x, low = cpu.rows(x), cpu.rows(weight.to(x.dtype))
        ctx.save_for_backward(x, low)
        return F.conv2d(x, low, padding=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = cpu.rows(gradient)
        grad_x, grad_weight = None, None
        if ctx.needs_input_grad[0]:
            ones, zeros, only_x = [1, 1], [0, 0], [True, False, False]
            grad_x = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, ones, ones, ones, False, zeros, 1, only_x
            )[0]
        if ctx.needs_input_grad[1]:
            grad_weight = torch.empty_like(weight, dtype=torch.float32)
            load_conv_weight_grad().conv_weight_grad(
                *cpu.pointers(x, gradient, grad_weight), *cpu.image_size(x), x.shape[1], weight.shape[0]
            )
        return grad_x, grad_weight
