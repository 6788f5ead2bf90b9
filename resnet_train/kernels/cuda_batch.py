"""Crop, flip and normalise in one kernel on a GPU, as `resnet_train.kernels.cpu.crop_flip_normalise` on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from resnet_train.data import augment
from resnet_train.kernels import cuda

# A 32x32 image is 3 blocks of 1024 values, 8 a thread.
_WARPS = 4
_BLOCK = 1024


def crop_flip_normalise(
    images: Tensor, draws: augment.Draws, *, padding: int, mode: augment.CropMode, mean: Tensor, std: Tensor
) -> Tensor:
    """`augment.crop_flip`, then `augment.normalise`, to the bit: the values are looked up in a table made by it."""
    count, height, width, channels = len(draws), *images.shape[1:]
    if not (cuda.runs_on(images.device) and images.is_contiguous() and count):
        return augment.crop_flip_normalise(images, draws, padding=padding, mode=mode, mean=mean, std=std)
    drawn = (draws.index, draws.offset_y, draws.offset_x, draws.flip)
    index, offset_y, offset_x, flip = (tensor.contiguous() for tensor in drawn)
    out = torch.empty(count, height, width, channels, dtype=torch.float32, device=images.device)
    from resnet_train.kernels import triton_batch  # there is Triton: `cuda.runs_on` has asked

    with cuda.on(images.device):
        triton_batch.crop_flip_normalise[(count, -(-height * width * channels // _BLOCK))](
            *(images, index, offset_y, offset_x, flip, _table(mean, std), out, padding),
            HEIGHT=height,
            WIDTH=width,
            CHANNELS=channels,
            REFLECT=mode == "reflect",
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )
    return out.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _Table:
    """The normalised value of each byte, ``(channels, 256)``, and what it was made from.

    It holds mean and deviation themselves, so that no other tensor can come to be at their address: identity then
    means the same tensors, and the versions that nothing was written into them. To compare values would wait for the
    device.
    """

    mean: Tensor
    std: Tensor
    versions: tuple[int, int]
    values: Tensor


_latest_table: _Table | None = None  # one is enough: a run has one mean


def _table(mean: Tensor, std: Tensor) -> Tensor:
    global _latest_table
    if mean.is_inference() or std.is_inference():  # these have no versions
        return augment.normalised_bytes(mean, std)
    versions = mean._version, std._version
    latest = _latest_table
    if latest is not None and latest.mean is mean and latest.std is std and latest.versions == versions:
        return latest.values
    values = augment.normalised_bytes(mean, std)
    if not (mean.is_cuda and torch.cuda.is_current_stream_capturing()):  # what is captured has not been computed yet
        _latest_table = _Table(mean, std, versions, values)
    return values
