"""Augmentation of whole batches: pure functions of the images and of draws that the caller passes in.

Images stay uint8 ``(N, H, W, C)``, of 1 or 3 channels, until `normalise`; crop and flip are one gather from the data
set itself, without a padded copy of it. Each function works on any device and gives the same values on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from resnet_train.data.transfer import send

CropMode = Literal["zeros", "reflect"]


@dataclass(frozen=True)
class Draws:
    """What is drawn for each image of a batch or an epoch: tensors ``(B,)``, all on one device."""

    index: Tensor  # int64: which image of the data set
    offset_y: Tensor  # int64 in [0, 2 * padding]: where the window of the crop begins in the padded image
    offset_x: Tensor
    flip: Tensor  # bool
    cutout_y: Tensor  # int64: the centre of the square, anywhere in the image
    cutout_x: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, piece: slice) -> Draws:
        return Draws(*(drawn[piece] for drawn in self._tensors()))

    def to(self, device: torch.device) -> Draws:
        """The same draws on ``device``."""
        return Draws(*(send(drawn, device) for drawn in self._tensors()))

    @staticmethod
    def cat(pieces: Sequence[Draws]) -> Draws:
        """The draws of all ``pieces``, one after the other; a single piece is returned as it is."""
        if len(pieces) == 1:
            return pieces[0]
        return Draws(*map(torch.cat, zip(*(piece._tensors() for piece in pieces), strict=True)))

    def _tensors(self) -> tuple[Tensor, ...]:
        return tuple(vars(self).values())


def crop_flip(images: Tensor, draws: Draws, *, padding: int, mode: CropMode) -> Tensor:
    """Take images ``draws.index`` out of ``images``, each shifted by its own offset and mirrored or not.

    The same as padding an image by ``padding`` pixels (with zeros, or mirrored at its border), cutting an H x W window
    at ``(offset_y, offset_x)``, then mirroring it left to right where ``flip`` is true.

    Args:
        images: uint8 ``(N, H, W, C)``.
        draws: on the device of ``images``.
        padding: pixels on each side.
        mode: what lies beyond the border.

    Returns:
        uint8 ``(B, H, W, C)``.
    """
    height, width = images.shape[1:3]
    device = images.device
    rows = torch.arange(-padding, height - padding, device=device) + draws.offset_y[:, None]  # (B, H)
    forwards = torch.arange(-padding, width - padding, device=device)
    backwards = torch.arange(width - 1 - padding, -1 - padding, -1, device=device)
    columns = torch.where(draws.flip[:, None], backwards, forwards) + draws.offset_x[:, None]  # (B, W)
    index = draws.index[:, None, None]
    if mode == "reflect":
        rows, columns = reflect(rows, height), reflect(columns, width)
        return images[index, rows[:, :, None], columns[:, None, :]]
    near_rows, near_columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    inside = (near_rows == rows)[:, :, None] & (near_columns == columns)[:, None, :]  # (B, H, W)
    return images[index, near_rows[:, :, None], near_columns[:, None, :]] * inside.unsqueeze(-1)


def crop_flip_normalise(
    images: Tensor, draws: Draws, *, padding: int, mode: CropMode, mean: Tensor, std: Tensor
) -> Tensor:
    """`crop_flip`, then `normalise`, all on one device: float32 ``(B, C, H, W)`` in channels_last."""
    return normalise(crop_flip(images, draws, padding=padding, mode=mode), mean, std)


class CropFlipNormalise(Protocol):
    """`crop_flip_normalise`, or a kernel that takes its place and gives the same values, to the bit."""

    def __call__(
        self, images: Tensor, draws: Draws, *, padding: int, mode: CropMode, mean: Tensor, std: Tensor
    ) -> Tensor:
        """As `crop_flip_normalise`."""
        ...


def reflect(position: Tensor, size: int) -> Tensor:
    """Mirror positions that lie outside ``[0, size)`` at the border pixel, which is not repeated."""
    position = position.abs()
    return torch.where(position >= size, 2 * (size - 1) - position, position)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """``(B, H, W, C)`` uint8 to ``(B, C, H, W)`` float32 in channels_last, with mean 0 and deviation 1 per channel.

    ``mean`` and ``std`` ``(C,)`` are in units of the full range, as torchvision's ``Normalize`` takes them.
    """
    scale = (255 * std).reciprocal()[:, None, None]
    shift = (-mean / std)[:, None, None]
    return images.permute(0, 3, 1, 2).to(torch.float32).mul_(scale).add_(shift)


def normalised_bytes(mean: Tensor, std: Tensor) -> Tensor:
    """What `normalise` makes of each byte: float32 ``(channels, 256)``, for kernels that look values up."""
    bytes_ = torch.arange(256, dtype=torch.uint8, device=mean.device)[None, :, None, None]
    return normalise(bytes_.expand(1, 256, 1, len(mean)), mean, std).reshape(len(mean), 256).contiguous()


def box(centre: Tensor, length: int, size: int) -> Tensor:
    """``(B, size)`` bool: positions within ``length`` pixels around ``centre`` ``(B,)``, clipped at the border."""
    place = torch.arange(length // 2, size + length // 2, device=centre.device) - centre[:, None]  # from its beginning
    return (place >= 0) & (place < length)


def cutout(images: Tensor, *, centre_y: Tensor, centre_x: Tensor, size: int) -> Tensor:
    """Set a square of ``size`` pixels around each centre to 0, the mean colour (DeVries and Taylor 2017, 1708.04552).

    ``images`` ``(B, C, H, W)`` normalised; centres ``(B,)`` anywhere in the image, so squares may stick out of it.
    """
    height, width = images.shape[2:]
    inside = box(centre_y, size, height)[:, :, None] & box(centre_x, size, width)[:, None, :]  # (B, H, W)
    return torch.where(inside[:, None], 0, images)  # masked_fill would give up channels_last


def mixup(images: Tensor, targets: Tensor, *, permutation: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Blend each image and target with those at ``permutation`` (Zhang et al. 2017, 1710.09412).

    ``images`` ``(B, C, H, W)``, ``targets`` ``(B, classes)``, ``permutation`` ``(B,)`` indices into the batch, ``lam``
    in ``[0, 1]`` is the weight of the first.
    """
    return (
        lam * images + (1 - lam) * images[permutation],
        lam * targets + (1 - lam) * targets[permutation],
    )


def cutmix(
    images: Tensor, targets: Tensor, *, permutation: Tensor, lam: float, centre_y: int, centre_x: int
) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of area ``1 - lam`` from the image at ``permutation`` (Yun et al. 2019, 1905.04899).

    One rectangle for the whole batch, around ``(centre_y, centre_x)`` and clipped at the border; targets are mixed by
    the area that was really pasted. Shapes as in `mixup`.
    """
    height, width = images.shape[2:]
    side = (1 - lam) ** 0.5
    top, left = centre_y - int(height * side) // 2, centre_x - int(width * side) // 2
    bottom, right = top + int(height * side), left + int(width * side)
    top, left, bottom, right = max(top, 0), max(left, 0), min(bottom, height), min(right, width)
    mixed = images.clone(memory_format=torch.preserve_format)
    mixed[:, :, top:bottom, left:right] = images[permutation, :, top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, kept * targets + (1 - kept) * targets[permutation]
