"""Batch norm, the addition of a shortcut and ReLU as one operation on a GPU.

What `resnet_train.kernels.cpu` is for the CPU, in the same form: `BatchNorm2d` computes with
`resnet_train.kernels.triton_kernels` where that can serve, else as PyTorch does. Memory traffic is what it saves: a
step of a norm with ReLU reads or writes a tensor of its size 8 times instead of 13, one with a shortcut, whose result
has two uses, 14 times instead of 19.

In float32 both agree to rounding. In bfloat16 and float16 this one rounds once where the other rounds after each of
its operations. Results depend on shapes and values alone, never on the order in which a GPU runs programs: nothing is
summed by atomic operations. Nothing waits for the device, so all of it can be captured in a CUDA graph, once a first
call has compiled the kernels.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from resnet_train.kernels import native
from resnet_train.kernels.fuse import Classes, FusedBatchNorm2d

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# A tile is 32 rows x 64 columns. In two bytes each of its rows is a cache line of 128, read by 8 threads with 16 bytes
# each, and a warp reads 4 lines with one instruction; narrower, a line would be shared with another program.
_COLUMNS = 64
_TILE = 32 * _COLUMNS
# Sums: 256 threads, so 8 values a thread from each tile and 2 x 8 registers to sum in. Tiles are read in groups, before
# the first value is used: 4 of two-byte values and 2 of float32, that is 64 bytes a thread (4 loads of 16). Backward,
# from two or three tensors, half as many of each.
_SUM_WARPS = 8
_FORWARD_GROUP_BYTES, _BACKWARD_GROUP_BYTES = 8, 4  # bytes a value x tiles a group
# Programs that sum: up to 80 registers a thread, of 65,536, let 3 x 256 threads run on a multiprocessor, so 384 are
# one wave on the 132 of an H100 or H200 (396 places). Each has 64 bytes x 256 threads = 16 KiB on the way, 48 KiB a
# multiprocessor; to read 4.3 TB/s with answers after 1 us takes 4.3 MB / 132 = 32 KiB. The partial sums are then
# 384 x 64 x 2 x 4 bytes = 192 KiB, however large the tensor. A smaller one has fewer programs, of 4 tiles or more.
# Numbers of the device at hand play no part, since the result would depend on them.
_SUM_PROGRAMS, _SUM_TILES = 384, 4
# Apply: 128 threads, so 16 values a thread from each tile: 2 loads of 16 bytes on the way from each tensor in two
# bytes, 4 in float32. With 39 to 72 registers 7 to 12 programs run on a multiprocessor. At most 4096, so that each has
# several tiles of a large tensor for one load of its channels' scales: 4 of 64 MiB in two bytes, in 3 to 5 waves.
_APPLY_WARPS = 4
_APPLY_PROGRAMS = 4096
# Totals: 8 channels a program are a sector of 32 bytes in each row of partial sums; 256 threads read 512 rows of them
# at once: all the chunks there are, unless rows were folded.
_TOTAL_WARPS = 8
_TOTAL_ROWS, _TOTAL_CHANNELS = 512, 8


def prepare() -> str:
    """Import what is needed and return a few words on it for the run's header. Raises `native.Unavailable`."""
    kernels()
    import triton

    if torch.cuda.is_available():
        try:  # it compiles a small C file for the driver when first asked: better here than in the first step
            triton.runtime.driver.active.get_current_target()
        except Exception as error:
            raise native.Unavailable(f"Triton {triton.__version__} does not work here: {error}") from error
    return f"batch norm, addition and ReLU in one, by Triton {triton.__version__}"


class BatchNorm2d(FusedBatchNorm2d):
    """`FusedBatchNorm2d` in one kernel a pass over memory."""

    def norm_relu(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``relu(norm(x) + shortcut)``, all ``(N, C, H, W)``."""
        if not _serves(self, x, shortcut):
            return super().norm_relu(x, shortcut)
        if shortcut is not None:
            shortcut = shortcut.to(x.dtype)
        if self.training:
            return _NormReLU.apply(x, shortcut, self.weight, self.bias, self)  # type: ignore[no-any-return]
        sources = (x, shortcut, self.weight, self.bias)
        if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in sources):
            return super().norm_relu(x, shortcut)
        return _inference(self, x, shortcut)


LEAVES: Classes = {nn.BatchNorm2d: BatchNorm2d}


def _serves(norm: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None) -> bool:
    return (
        norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.weight.dtype == torch.float32
        and norm.weight.device == x.device
        and x.dtype in _DTYPES
        and x.dim() == 4
        and x.shape[1] == norm.num_features
        and x.numel() > x.shape[1]  # a single value a channel has no variance: PyTorch says so
        and x.numel() // x.shape[1] < 2**30  # rows are counted in 32 bits
        and (shortcut is None or (shortcut.shape == x.shape and shortcut.device == x.device))
        and runs_on(x.device)
    )


@cache
def kernels() -> Any:
    """The module of the kernels. Raises `native.Unavailable`."""
    try:
        from resnet_train.kernels import triton_kernels
    except ImportError as error:
        raise native.Unavailable(f"Triton cannot be imported: {error}") from error
    return triton_kernels


def runs_on(device: torch.device) -> bool:
    """CUDA, or in Triton's interpreter the CPU."""
    try:
        return device.type == ("cpu" if kernels().INTERPRETED else "cuda")
    except native.Unavailable:
        return False


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Kernels are started on the current device, which need not be the one of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@dataclass(frozen=True)
class _Plan:
    """How a table of ``count`` rows and ``channels`` columns is dealt out: by its shape, and by nothing else."""

    count: int  # values a channel
    channels: int
    rows: int  # of the folded table
    width: int
    block_rows: int
    block_columns: int
    sum_grid: tuple[int, int]
    apply_grid: tuple[int, int]

    @property
    def total_grid(self) -> tuple[int]:
        """Programs that add up the partial sums."""
        return (-(-self.channels // _TOTAL_CHANNELS),)

    @property
    def chunks(self) -> int:
        """Partial sums of each column."""
        return self.sum_grid[1]

    @property
    def length(self) -> int:
        """Partial sums of each channel."""
        return self.chunks * (self.width // self.channels)


@cache
def _plan(count: int, channels: int) -> _Plan:
    # Rows are folded until tiles are full: 16 channels by 4, 48 by 4, 8 by 8, 64 not at all. It makes the width a
    # multiple of 64 as well, without which Triton could not load 16 bytes at a time. 32x32 images have rows enough for
    # that with any number of channels; where rows are odd, tiles stick out.
    folded = 1
    while channels * folded % _COLUMNS and count % (2 * folded) == 0:
        folded *= 2
    rows, width = count // folded, channels * folded
    block_columns = min(_COLUMNS, 1 << (width - 1).bit_length())
    block_rows = _TILE // block_columns
    column_blocks, tiles = -(-width // block_columns), -(-rows // block_rows)
    chunks = max(1, min(-(-tiles // _SUM_TILES), _SUM_PROGRAMS // column_blocks))
    programs = max(1, min(tiles, _APPLY_PROGRAMS // column_blocks))
    return _Plan(
        count,
        channels,
        rows,
        width,
        block_rows,
        block_columns,
        (column_blocks, chunks),
        (column_blocks, programs),
    )


def _inference(norm: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None) -> Tensor:
    x, shortcut = _rows(x), None if shortcut is None else _rows(shortcut)
    plan, y = _plan_of(x), torch.empty_like(x)
    with on(x.device):
        kernels().inference[plan.apply_grid](
            *(x, shortcut, y, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps),
            *(plan.rows, plan.width, plan.channels),
            ROWS=plan.block_rows,
            COLUMNS=plan.block_columns,
            num_warps=_APPLY_WARPS,
        )
    return y


class _NormReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shortcut: Tensor | None, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d
    ) -> Tensor:
        x, shortcut = _rows(x), None if shortcut is None else _rows(shortcut)
        triton, plan, y = kernels(), _plan_of(x), torch.empty_like(x)
        shape = plan.rows, plan.width, plan.channels
        partial = x.new_empty(2, plan.chunks, plan.width, dtype=torch.float32)
        saved = x.new_empty(4, plan.channels, dtype=torch.float32)
        with on(x.device):
            triton.forward_sums[plan.sum_grid](
                *(x, partial, *shape),
                ROWS=plan.block_rows,
                COLUMNS=plan.block_columns,
                GROUPS=_FORWARD_GROUP_BYTES // x.element_size(),
                num_warps=_SUM_WARPS,
            )
            triton.forward_totals[plan.total_grid](
                *(x, partial, weight, bias, norm.running_mean, norm.running_var, norm.num_batches_tracked, saved),
                *(plan.count, plan.length, plan.channels, norm.momentum, norm.eps),
                LENGTH=_TOTAL_ROWS,
                CHANNELS=_TOTAL_CHANNELS,
                num_warps=_TOTAL_WARPS,
            )
            triton.forward_apply[plan.apply_grid](
                *(x, shortcut, y, saved, *shape),
                ROWS=plan.block_rows,
                COLUMNS=plan.block_columns,
                num_warps=_APPLY_WARPS,
            )
        # Without a shortcut the sign of y is computed again from x: less to read, and y need not be kept for it.
        ctx.save_for_backward(x, saved, None if shortcut is None else y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, saved, y = ctx.saved_tensors
        gradient = _rows(gradient.to(x.dtype))
        triton, plan, grad_x = kernels(), _plan_of(x), torch.empty_like(x)
        shape = plan.rows, plan.width, plan.channels
        gated = None if y is None else torch.empty_like(x)
        partial = x.new_empty(2, plan.chunks, plan.width, dtype=torch.float32)
        grad_weight, grad_bias, line = (
            torch.empty_like(saved[0]),
            torch.empty_like(saved[0]),
            torch.empty_like(saved[:2]),
        )
        with on(x.device):
            triton.backward_sums[plan.sum_grid](
                *(gradient, x, y, gated, saved, partial, *shape),
                ROWS=plan.block_rows,
                COLUMNS=plan.block_columns,
                GROUPS=_BACKWARD_GROUP_BYTES // x.element_size(),
                num_warps=_SUM_WARPS,
            )
            triton.backward_totals[plan.total_grid](
                *(partial, saved, grad_weight, grad_bias, line, plan.count, plan.length, plan.channels),
                LENGTH=_TOTAL_ROWS,
                CHANNELS=_TOTAL_CHANNELS,
                num_warps=_TOTAL_WARPS,
            )
            # The gated gradient was written for the shortcut; where there is none, to make it again is less to move.
            triton.backward_apply[plan.apply_grid](
                *(gradient if gated is None else gated, x, grad_x, saved, line, *shape),
                GATED=gated is not None,
                ROWS=plan.block_rows,
                COLUMNS=plan.block_columns,
                num_warps=_APPLY_WARPS,
            )
        return grad_x, gated, grad_weight, grad_bias, None


def _rows(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _plan_of(x: Tensor) -> _Plan:
    return _plan(x.numel() // x.shape[1], x.shape[1])
