"""Faster operations on the CPU: batch norm, the addition of a shortcut and ReLU as one, and 3x3 convolutions.

`norm_act` takes the place of `resnet_train.resnet.norm_act` in a network; it computes with ``csrc/norm_act.cpp`` where
that can serve and calls the other where it cannot: tensors that are not on the CPU, activations other than ReLU,
channels that are not a multiple of 16, other types than float32 and bfloat16.

In float32 both agree to rounding. In bfloat16 this one rounds once where the other rounds after each of its operations.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_train import native, resnet
from resnet_train.data import augment

_LANES = 16  # kLanes of csrc/norm_act.cpp
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def prepare(precision: str) -> str:
    """Compile what is needed and return a few words on it for the run's header. Raises `native.Unavailable`."""
    native.load_norm_act()
    native.load_winograd()
    native.load_batch()
    native.install_allocator()
    parts = "batch norm, addition and ReLU in one"
    if precision != "bf16" or not multiplies_bf16():
        parts += ", 3x3 convolutions by Winograd's algorithm"
    elif has_weight_grad():
        parts += ", the gradients of 3x3 convolutions' weights with AMX"
    return f"{parts} (compiled with {native.compiler()[1]})"


@cache
def multiplies_bf16() -> bool:
    """Whether the processor has instructions for bf16 products (AVX512-BF16 or AMX)."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe, bool)()) for probe in probes)


@cache
def has_weight_grad() -> bool:
    """Whether the processor has AMX tiles, with which `Conv2d` has a faster gradient in bfloat16."""
    try:
        native.load_conv_weight_grad()
    except native.Unavailable:
        return False
    return True


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` with faster 3x3 convolutions of stride 1, padding 1 and channels in multiples of 16.

    By Winograd's algorithm, forward and backward (``csrc/winograd.cpp``), where 4x4 tiles cover the image without much
    left over: values are float32, or bfloat16 under autocast, all computation is float32. Where the processor has
    bfloat16 products and autocast asks for them, those are taken, PyTorch's own; with AMX tiles the gradient of the
    weights is computed otherwise (``csrc/conv_weight_grad.cpp``), summed in float32 and never rounded to bfloat16.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in, H, W) -> (N, out, H', W')``."""
        if self._is_plain_3x3() and x.device.type == "cpu" and self.weight.dtype == torch.float32:
            autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
            if autocast == torch.bfloat16 and multiplies_bf16():
                learns = torch.is_grad_enabled() and self.weight.requires_grad
                if x.dtype == torch.bfloat16 and learns and has_weight_grad():
                    return _Conv3x3.apply(x, self.weight)  # type: ignore[no-any-return]
            elif autocast in _NAMES and x.dtype in _NAMES and fills_tiles(x.shape[2], x.shape[3]):
                return _Winograd.apply(x.to(autocast), self.weight)  # type: ignore[no-any-return]
        if self._would_be_emulated(x):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float()).to(torch.bfloat16)
        return super().forward(x)

    def _would_be_emulated(self, x: Tensor) -> bool:
        """Whether PyTorch would convolve in bfloat16 without instructions for it: many times slower than float32."""
        return (
            x.device.type == "cpu"
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and not multiplies_bf16()
        )

    def _is_plain_3x3(self) -> bool:
        return (
            self.kernel_size == (3, 3)
            and self.stride == self.padding == self.dilation == (1, 1)
            and self.padding_mode == "zeros"
            and self.groups == 1
            and self.bias is None
            and self.in_channels % _LANES == self.out_channels % _LANES == 0
        )


def fills_tiles(height: int, width: int) -> bool:
    """Whether at least half of the 4x4 tiles' pixels lie in the image: then Winograd's algorithm saves half or more."""
    tiles = -(-height // 4) * -(-width // 4)
    return 2 * height * width >= 16 * tiles


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = _rows(x), _rows(weight)
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, weight.shape[0], turned=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = _rows(gradient.to(x.dtype))
        grad_x, grad_weight = None, None
        if ctx.needs_input_grad[0]:
            grad_x = _convolve(gradient, weight, weight.shape[1], turned=True)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.empty_like(weight)
            getattr(native.load_winograd(), f"winograd_weight_gradient_{_NAMES[x.dtype]}")(
                *_pointers(x, gradient, grad_weight), *_image_size(x), x.shape[1], weight.shape[0]
            )
        return grad_x, grad_weight


def _convolve(x: Tensor, weight: Tensor, channels_out: int, *, turned: bool) -> Tensor:
    count, height, width = _image_size(x)
    y = torch.empty(count, channels_out, height, width, dtype=x.dtype, memory_format=torch.channels_last)
    getattr(native.load_winograd(), f"winograd_convolve_{_NAMES[x.dtype]}")(
        *_pointers(x, weight, y), count, height, width, x.shape[1], channels_out, turned
    )
    return y


def _image_size(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[2], x.shape[3]


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x, low = _rows(x), _rows(weight.to(x.dtype))
        ctx.save_for_backward(x, low)
        return F.conv2d(x, low, padding=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = _rows(gradient)
        grad_x, grad_weight = None, None
        if ctx.needs_input_grad[0]:
            ones, zeros, only_x = [1, 1], [0, 0], [True, False, False]
            grad_x = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, ones, ones, ones, False, zeros, 1, only_x
            )[0]
        if ctx.needs_input_grad[1]:
            grad_weight = torch.empty_like(weight, dtype=torch.float32)
            native.load_conv_weight_grad().conv_weight_grad(
                *_pointers(x, gradient, grad_weight), *_image_size(x), x.shape[1], weight.shape[0]
            )
        return grad_x, grad_weight


def norm_act(
    norm: nn.Module, activation: nn.Module, x: Tensor, shortcut: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``activation(norm(x) + shortcut)``, twice: see `resnet_train.resnet.norm_act`. ``x`` ``(N, C, H, W)``."""
    if not _serves(norm, activation, x):
        return resnet.norm_act(norm, activation, x, shortcut)
    assert isinstance(norm, nn.BatchNorm2d)
    if shortcut is not None:
        shortcut = shortcut.to(x.dtype)
    if norm.training:
        return _NormAct.apply(x, shortcut, norm.weight, norm.bias, norm)  # type: ignore[no-any-return]
    if torch.is_grad_enabled() and (x.requires_grad or norm.weight.requires_grad):
        return resnet.norm_act(norm, activation, x, shortcut)
    y = _inference(norm, x, shortcut)
    return y, y


def crop_flip_normalise(
    images: Tensor, draws: augment.Draws, *, padding: int, mode: augment.CropMode, mean: Tensor, std: Tensor
) -> Tensor:
    """`augment.crop_flip`, then `augment.normalise`, to the bit: the values are looked up in a table made by it."""
    count, height, width = len(draws), *images.shape[1:3]
    bytes_ = torch.arange(256, dtype=torch.uint8)[None, :, None, None].expand(1, 256, 1, 3)
    table = augment.normalise(bytes_, mean, std).reshape(3, 256).contiguous()
    drawn = (draws.index, draws.offset_y, draws.offset_x, draws.flip)
    index, offset_y, offset_x, flip = (tensor.contiguous() for tensor in drawn)
    out = torch.empty(count, height, width, 3)
    native.load_batch().crop_flip_normalise(
        *_pointers(images.contiguous(), index, offset_y, offset_x, flip),
        *(count, height, width, padding, mode == "reflect"),
        *_pointers(table, out),
    )
    return out.permute(0, 3, 1, 2)


def _serves(norm: nn.Module, activation: nn.Module, x: Tensor) -> bool:
    return (
        isinstance(norm, nn.BatchNorm2d)
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.weight.dtype == torch.float32
        and isinstance(activation, nn.ReLU)
        and x.device.type == "cpu"
        and x.dtype in _NAMES
        and x.shape[1] % _LANES == 0
        and x.numel() > x.shape[1]  # a single value a channel has no variance: PyTorch says so
    )


def _inference(norm: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None) -> Tensor:
    assert norm.running_mean is not None and norm.running_var is not None
    x, shortcut = _rows(x), None if shortcut is None else _rows(shortcut)
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    y = torch.empty_like(x)
    _function("inference", x)(*_pointers(x, shortcut, y, scale, shift), *_size(x))
    return y


class _NormAct(torch.autograd.Function):
    """Returns the result twice, in the same memory, so that the gradients of both uses arrive apart,
    to be added here."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shortcut: Tensor | None, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d
    ) -> tuple[Tensor, Tensor]:
        assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
        assert norm.num_batches_tracked is not None
        x, shortcut = _rows(x), None if shortcut is None else _rows(shortcut)
        y = torch.empty_like(x)
        saved = torch.empty(4, x.shape[1])  # mean, 1 / standard deviation, and the scale and shift made of them
        _function("forward", x)(
            *_pointers(x, shortcut, y, weight, bias, norm.running_mean, norm.running_var),
            norm.momentum,
            norm.eps,
            *_size(x),
            saved.data_ptr(),
        )
        norm.num_batches_tracked += 1
        # Without a shortcut the sign of y is computed again from x: less to read, and y need not be kept for it.
        ctx.save_for_backward(x, saved, None if shortcut is None else y)
        ctx.set_materialize_grads(False)
        return y, y.new_empty(0).set_(y.untyped_storage(), 0, y.shape, y.stride())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, saved, y = ctx.saved_tensors
        first, *others = [_rows(gradient.to(x.dtype)) for gradient in gradients if gradient is not None]
        second = others[0] if others else None
        grad_x = torch.empty_like(x)
        gated = torch.empty_like(x) if y is not None or second is not None else None
        grad_weight, grad_bias = torch.empty_like(saved[0]), torch.empty_like(saved[0])
        _function("backward", x)(
            *_pointers(first, second, x, y, gated, grad_x, saved, grad_weight, grad_bias), *_size(x)
        )
        return grad_x, gated if y is not None else None, grad_weight, grad_bias, None


def _rows(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _size(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[1], x.shape[1]


def _pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _function(name: str, x: Tensor) -> ctypes._NamedFuncPointer:
    return getattr(native.load_norm_act(), f"norm_act_{name}_{_NAMES[x.dtype]}")  # type: ignore[no-any-return]
