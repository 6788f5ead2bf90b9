"""Augmentation of whole batches: pure functions of the images and of draws that the caller passes in.

Images stay uint8 ``(N, H, W, 3)`` until `normalise`; crop and flip are one gather from the data set itself, without a
padded copy of it. Each function works on any device and gives the same values on all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

CropMode = Literal["zeros", "reflect"]


def crop_flip(
    images: Tensor,
    index: Tensor,
    *,
    offset_y: Tensor,
    offset_x: Tensor,
    flip: Tensor,
    padding: int,
    mode: CropMode,
) -> Tensor:
    """Take images ``index`` out of ``images``, each shifted by its own offset and mirrored or not.

    The same as padding an image by ``padding`` pixels (with zeros, or mirrored at its border), cutting an H x W window
    at ``(offset_y, offset_x)``, then mirroring it left to right where ``flip`` is true.

    Args:
        images: uint8 ``(N, H, W, 3)``.
        index, offset_y, offset_x, flip: ``(B,)``; offsets in ``[0, 2 * padding]``, flip is bool.

    Returns:
        uint8 ``(B, H, W, 3)``.
    """
    height, width = images.shape[1:3]
    rows = torch.arange(height, device=images.device) + (offset_y - padding)[:, None]  # (B, H)
    columns = torch.arange(width, device=images.device).expand(len(index), width)  # (B, W)
    columns = torch.where(flip[:, None], width - 1 - columns, columns) + (offset_x - padding)[:, None]
    if mode == "reflect":
        rows, columns = reflect(rows, height), reflect(columns, width)
        return images[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    inside_y, inside_x = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    cropped = images[index[:, None, None], rows[:, :, None], columns[:, None, :]]  # (B, H, W, 3)
    return cropped * (inside_y[:, :, None] & inside_x[:, None, :]).unsqueeze(-1)


def crop_flip_normalise(
    images: Tensor,
    index: Tensor,
    *,
    offset_y: Tensor,
    offset_x: Tensor,
    flip: Tensor,
    padding: int,
    mode: CropMode,
    mean: Tensor,
    std: Tensor,
) -> Tensor:
    """`crop_flip`, then `normalise` on the device where ``mean`` is: float32 ``(B, 3, H, W)`` in channels_last."""
    cropped = crop_flip(images, index, offset_y=offset_y, offset_x=offset_x, flip=flip, padding=padding, mode=mode)
    return normalise(cropped.to(mean.device, non_blocking=True), mean, std)


CropFlipNormalise = Callable[..., Tensor]  # crop_flip_normalise above, or what takes its place


def reflect(position: Tensor, size: int) -> Tensor:
    """Mirror positions that lie outside ``[0, size)`` at the border pixel, which is not repeated."""
    position = position.abs()
    return torch.where(position >= size, 2 * (size - 1) - position, position)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """``(B, H, W, 3)`` uint8 to ``(B, 3, H, W)`` float32 in channels_last, with mean 0 and deviation 1 per channel.

    ``mean`` and ``std`` ``(3,)`` are in units of the full range, as torchvision's ``Normalize`` takes them.
    """
    scale = (255 * std).reciprocal()[:, None, None]
    shift = (-mean / std)[:, None, None]
    return images.permute(0, 3, 1, 2).to(torch.float32).mul_(scale).add_(shift)


def box(centre: Tensor, length: int, size: int) -> Tensor:
    """``(B, size)`` bool: positions within ``length`` pixels around ``centre`` ``(B,)``, clipped at the border."""
    start = centre - length // 2
    position = torch.arange(size, device=centre.device)
    return (position >= start[:, None]) & (position < (start + length)[:, None])


def cutout(images: Tensor, *, centre_y: Tensor, centre_x: Tensor, size: int) -> Tensor:
    """Set a square of ``size`` pixels around each centre to 0, the mean colour (DeVries and Taylor 2017, 1708.04552).

    ``images`` ``(B, 3, H, W)`` normalised; centres ``(B,)`` anywhere in the image, so squares may stick out of it.
    """
    height, width = images.shape[2:]
    inside = box(centre_y, size, height)[:, :, None] & box(centre_x, size, width)[:, None, :]  # (B, H, W)
    return torch.where(inside[:, None], 0, images)  # masked_fill would give up channels_last


def mixup(images: Tensor, targets: Tensor, *, partner: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Blend each image and target with its partner's (Zhang et al. 2017, 1710.09412).

    ``images`` ``(B, 3, H, W)``, ``targets`` ``(B, classes)``, ``partner`` ``(B,)`` indices into the batch, ``share``
    in ``[0, 1]`` is what remains of the first.
    """
    return (
        share * images + (1 - share) * images[partner],
        share * targets + (1 - share) * targets[partner],
    )


def cutmix(
    images: Tensor, targets: Tensor, *, partner: Tensor, share: float, centre_y: int, centre_x: int
) -> tuple[Tensor, Tensor]:
    """Paste one rectangle of each partner, of area ``1 - share``, into each image (Yun et al. 2019, 1905.04899).

    One rectangle for the whole batch, around ``(centre_y, centre_x)`` and clipped at the border; targets are mixed by
    the area that was really pasted. Shapes as in `mixup`.
    """
    height, width = images.shape[2:]
    side = (1 - share) ** 0.5
    top, left = centre_y - int(height * side) // 2, centre_x - int(width * side) // 2
    bottom, right = top + int(height * side), left + int(width * side)
    top, left, bottom, right = max(top, 0), max(left, 0), min(bottom, height), min(right, width)
    mixed = images.clone(memory_format=torch.preserve_format)
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, kept * targets + (1 - kept) * targets[partner]
