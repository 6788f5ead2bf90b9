"""Faster operations on the CPU: batch norm, the addition of a shortcut and ReLU as one, and 3x3 convolutions.

`BatchNorm2d` computes with ``csrc/norm_act.cpp`` where that can serve and leaves to PyTorch what it cannot: tensors
that are not on the CPU, channels that are not a multiple of 16, other types than float32 and bfloat16. `Conv2d` does so
with ``csrc/winograd.cpp``. `resnet_train.kernels.fuse` puts both into a network.

In float32 they agree with PyTorch's to rounding. In bfloat16 they round once where PyTorch rounds after each operation.
"""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnet_train.data import augment
from resnet_train.kernels import native
from resnet_train.kernels.fuse import Classes, FusedBatchNorm2d

_LANES = 16  # kLanes of csrc/simd.h
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class Parts:
    """What of this module can be had."""

    reason: str  # a few words for the run's header
    leaves: Classes  # for `fuse`
    crop_flip_normalise: augment.CropFlipNormalise


def prepare(precision: str, *, by_name: bool) -> Parts:
    """Compile what is needed, file by file; what fails is left to PyTorch. Raises `native.Unavailable` if all fails.

    A file without OpenMP computes on one thread: where PyTorch has several, it is taken only if asked for ``by_name``.
    """
    usable, left_out, threads = set(), [], torch.get_num_threads()
    for load in (native.load_norm_act, native.load_winograd, native.load_batch):
        try:
            library = load()
        except native.Unavailable as error:
            left_out.append(str(error))
            continue
        if threads > 1 and not library.has_openmp():
            left_out.append(f"{native.compiler()[1]} has no OpenMP: one thread instead of {threads}")
            if not by_name:
                continue
        usable.add(load)
    if not usable:
        raise native.Unavailable(left_out[0])
    norm, winograd, batch = (load in usable for load in (native.load_norm_act, native.load_winograd, native.load_batch))
    names = ["batch norm, addition and ReLU in one"] * norm
    if winograd and (precision != "bf16" or not multiplies_bf16()):
        names.append("3x3 convolutions by Winograd's algorithm")
    if not norm and batch:
        names.append("batches from a table")
    notes = [f"compiled with {native.compiler()[1]}", *(f"but {text}" for text in dict.fromkeys(left_out))]
    leaves: dict[type[nn.Module], type[nn.Module]] = {nn.BatchNorm2d: BatchNorm2d if norm else FusedBatchNorm2d}
    if winograd:
        leaves[nn.Conv2d] = Conv2d
    return Parts(
        f"{', '.join(names)} ({'; '.join(notes)})",
        leaves,
        crop_flip_normalise if batch else augment.crop_flip_normalise,
    )


@cache
def has_amx() -> bool:
    """Whether the processor has AMX, Intel's tiles for matrix multiplications."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


@cache
def has_bf16() -> bool:
    """Whether the processor has instructions for bf16 matrix multiplications (AVX512-BF16 or AMX)."""
    return has_amx() or bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


@cache
def multiplies_bf16() -> bool:
    """Whether the processor multiplies matrices faster in bf16 than in fp32: by AMX, or by AVX512-BF16 of AMD.

    AVX512-BF16 of Intel, where a virtual machine hides AMX, reached half the speed of fp32 (docs/performance.md).
    """
    return has_amx() or (has_bf16() and not _is_intel())


def _is_intel() -> bool:
    try:
        said = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        said = platform.processor()
    return "GenuineIntel" in said


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` with faster 3x3 convolutions of stride 1, padding 1 and channels in multiples of 16.

    By Winograd's algorithm, forward and backward (``csrc/winograd.cpp``), where 4x4 tiles cover the image without much
    left over: values are float32, or bfloat16 under autocast, all computation is float32. Where the processor
    multiplies bfloat16 faster and autocast asks for it, PyTorch's own convolutions are taken.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in, H, W) -> (N, out, H', W')``."""
        if self.is_plain_3x3(x) and fills_tiles(x.shape[2], x.shape[3]):
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
            multiplied = dtype == torch.bfloat16 and multiplies_bf16()
            if not multiplied and dtype in _NAMES and x.dtype in _NAMES:
                return _Winograd.apply(x.to(dtype), self.weight)  # type: ignore[no-any-return]
        if self._is_slower_in_bf16(x):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float()).to(torch.bfloat16)
        return super().forward(x)

    def is_plain_3x3(self, x: Tensor) -> bool:
        """Whether this is a convolution, on the CPU and with weights in float32, that the C++ files have."""
        return (
            self.kernel_size == (3, 3)
            and self.stride == self.padding == self.dilation == (1, 1)
            and self.padding_mode == "zeros"
            and self.groups == 1
            and self.bias is None
            and self.in_channels % _LANES == self.out_channels % _LANES == 0
            and self.weight.dtype == torch.float32
            and x.device.type == "cpu"
        )

    def _is_slower_in_bf16(self, x: Tensor) -> bool:
        """Whether PyTorch would convolve in bfloat16 though float32 is faster: many times, without instructions."""
        return (
            x.device.type == "cpu"
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and not multiplies_bf16()
        )


def fills_tiles(height: int, width: int) -> bool:
    """Whether at least half of the 4x4 tiles' pixels lie in the image: then Winograd's algorithm saves half or more."""
    tiles = -(-height // 4) * -(-width // 4)
    return 2 * height * width >= 16 * tiles


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = rows(x), rows(weight)
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, weight.shape[0], turned=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = rows(gradient.to(x.dtype))
        grad_x, grad_weight = None, None
        if ctx.needs_input_grad[0]:
            grad_x = _convolve(gradient, weight, weight.shape[1], turned=True)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.empty_like(weight)
            getattr(native.load_winograd(), f"winograd_weight_gradient_{_NAMES[x.dtype]}")(
                *pointers(x, gradient, grad_weight), *image_size(x), x.shape[1], weight.shape[0]
            )
        return grad_x, grad_weight


def _convolve(x: Tensor, weight: Tensor, channels_out: int, *, turned: bool) -> Tensor:
    count, height, width = image_size(x)
    y = torch.empty(count, channels_out, height, width, dtype=x.dtype, memory_format=torch.channels_last)
    getattr(native.load_winograd(), f"winograd_convolve_{_NAMES[x.dtype]}")(
        *pointers(x, weight, y), count, height, width, x.shape[1], channels_out, turned
    )
    return y


def image_size(x: Tensor) -> tuple[int, int, int]:
    """Number of images, height, width."""
    return x.shape[0], x.shape[2], x.shape[3]


class BatchNorm2d(FusedBatchNorm2d):
    """`FusedBatchNorm2d` in two passes over memory, forward and backward."""

    def norm_relu(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``relu(norm(x) + shortcut)``, all ``(N, C, H, W)``."""
        if not self._serves(x):
            return super().norm_relu(x, shortcut)
        if shortcut is not None:
            shortcut = shortcut.to(x.dtype)
        if self.training:
            return _NormReLU.apply(x, shortcut, self.weight, self.bias, self)  # type: ignore[no-any-return]
        sources = (x, shortcut, self.weight, self.bias)
        if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in sources):
            return super().norm_relu(x, shortcut)
        return _inference(self, x, shortcut)

    def _serves(self, x: Tensor) -> bool:
        return (
            self.affine
            and self.track_running_stats
            and self.momentum is not None
            and self.weight.dtype == torch.float32
            and x.device.type == "cpu"
            and x.dtype in _NAMES
            and x.shape[1] % _LANES == 0
            and x.numel() > x.shape[1]  # a single value a channel has no variance: PyTorch says so
        )


LEAVES: Classes = {nn.BatchNorm2d: BatchNorm2d, nn.Conv2d: Conv2d}


def crop_flip_normalise(
    images: Tensor, draws: augment.Draws, *, padding: int, mode: augment.CropMode, mean: Tensor, std: Tensor
) -> Tensor:
    """`augment.crop_flip`, then `augment.normalise`, to the bit: the values are looked up in a table made by it."""
    count, height, width, channels = len(draws), *images.shape[1:]
    table = augment.normalised_bytes(mean, std)
    drawn = (draws.index, draws.offset_y, draws.offset_x, draws.flip)
    index, offset_y, offset_x, flip = (tensor.contiguous() for tensor in drawn)
    out = torch.empty(count, height, width, channels)
    native.load_batch().crop_flip_normalise(
        *pointers(images.contiguous(), index, offset_y, offset_x, flip),
        *(count, height, width, channels, padding, mode == "reflect"),
        *pointers(table, out),
    )
    return out.permute(0, 3, 1, 2)


def _inference(norm: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None) -> Tensor:
    assert norm.running_mean is not None and norm.running_var is not None
    x, shortcut = rows(x), None if shortcut is None else rows(shortcut)
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    y = torch.empty_like(x)
    _function("inference", x)(*pointers(x, shortcut, y, scale, shift), *_size(x))
    return y


class _NormReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shortcut: Tensor | None, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d
    ) -> Tensor:
        assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
        assert norm.num_batches_tracked is not None
        x, shortcut = rows(x), None if shortcut is None else rows(shortcut)
        y = torch.empty_like(x)
        saved = torch.empty(4, x.shape[1])  # mean, 1 / standard deviation, and the scale and shift made of them
        _function("forward", x)(
            *pointers(x, shortcut, y, weight, bias, norm.running_mean, norm.running_var),
            norm.momentum,
            norm.eps,
            *_size(x),
            saved.data_ptr(),
        )
        norm.num_batches_tracked += 1
        # Without a shortcut the sign of y is computed again from x: less to read, and y need not be kept for it.
        ctx.save_for_backward(x, saved, None if shortcut is None else y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, saved, y = ctx.saved_tensors
        gradient = rows(gradient.to(x.dtype))
        grad_x, gated = torch.empty_like(x), None if y is None else torch.empty_like(x)  # gated: of the shortcut
        grad_weight, grad_bias = torch.empty_like(saved[0]), torch.empty_like(saved[0])
        _function("backward", x)(*pointers(gradient, x, y, gated, grad_x, saved, grad_weight, grad_bias), *_size(x))
        return grad_x, gated, grad_weight, grad_bias, None


def rows(x: Tensor) -> Tensor:
    """In channels_last: a table with a row for each pixel."""
    return x.contiguous(memory_format=torch.channels_last)


def _size(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[1], x.shape[1]


def pointers(*tensors: Tensor | None) -> list[int | None]:
    """Addresses for C, 0 for None."""
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _function(name: str, x: Tensor) -> ctypes._NamedFuncPointer:
    return getattr(native.load_norm_act(), f"norm_act_{name}_{_NAMES[x.dtype]}")  # type: ignore[no-any-return]
