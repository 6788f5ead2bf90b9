"""The data set in memory as uint8, and random access to training batch number ``step``.

The training examples form one endless stream: a permutation of the data set for epoch 0, another for epoch 1, and so
on. Batch ``step`` is the piece ``[step * batch_size, (step + 1) * batch_size)`` of it. So every batch is full, every
image is seen once an epoch, and any batch can be made at any time: order and augmentation of an image depend on the
seed and the epoch, mixing depends on the seed and the step, and nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_train import augment
from resnet_train.config import (
    AugmentConfig,
    CifarConfig,
    DatasetConfig,
    ImageFolderConfig,
    SyntheticConfig,
    num_train_images,
)
from resnet_train.files import load_cifar, load_imagefolder
from resnet_train.seeding import derive, generator

SYNTHETIC_CHUNK = 4096  # images made at a time: bounds the memory beside the data set


@dataclass(frozen=True)
class Split:
    """Images as they are: uint8 ``(N, H, W, 3)``, and their labels, int64 ``(N,)``."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Split:
        """The images at ``index`` ``(M,)``."""
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> Split:
        """Move to ``device`` if it has room, labels in any case; the images stay in host memory where it has not.

        Room means that half of the free memory remains for the network.
        """
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if self.images.nbytes > free // 2:
                return self
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """All splits of a data set; ``val`` is held out of the training images and exists only if asked for."""

    train: Split
    val: Split | None
    test: Split
    classes: tuple[str, ...]

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.train.images.shape[1]


def load(config: DatasetConfig, *, seed: int) -> Dataset:
    """Read the data set, whole and in host memory, and hold out the validation split.

    Which images are held out, and which remain with ``train_size``, depends on the seed alone. Raises `ConfigError`
    where files are missing or damaged, or too few.
    """
    match config:
        case SyntheticConfig():
            train, test = synthetic(config, config.num_train, "train"), synthetic(config, config.num_test, "test")
            classes = tuple(f"pattern {label}" for label in range(config.num_classes))
        case CifarConfig() | ImageFolderConfig():
            files = load_cifar(config) if isinstance(config, CifarConfig) else load_imagefolder(config)
            # torch refuses read-only memory, which a memory map is: copy it
            train, test = (
                Split(torch.tensor(split.images), torch.from_numpy(split.labels)) for split in (files.train, files.test)
            )
            classes = files.classes
        case _:
            raise TypeError(f"no data set for {type(config).__name__}")
    num_train = num_train_images(config, len(train))
    if num_train == len(train):
        return Dataset(train, None, test, classes)
    order = torch.randperm(len(train), generator=generator(seed, "split"))
    held_out, used = order[: config.val_size], order[config.val_size : config.val_size + num_train]
    val = train.take(held_out.sort().values) if config.val_size else None
    return Dataset(train.take(used.sort().values), val, test, classes)


def synthetic(config: SyntheticConfig, num_images: int, split: str) -> Split:
    """Make up ``num_images`` images: a coarse 4x4 pattern of colours for each class, shifted, under noise.

    The patterns belong to the data set, not to the run: they are the same for every seed.
    """
    size = config.image_size
    draws = generator(0, "synthetic", split)
    labels = torch.randint(config.num_classes, (num_images,), generator=draws)
    patterns = torch.rand(config.num_classes, 3, 4, 4, generator=generator(0, "synthetic", "patterns"))
    patterns = F.interpolate(patterns, size=(size, size), mode="bilinear").permute(0, 2, 3, 1)  # (classes, H, W, 3)
    images = torch.empty(num_images, size, size, 3, dtype=torch.uint8)
    for chunk, chunk_labels in zip(images.split(SYNTHETIC_CHUNK), labels.split(SYNTHETIC_CHUNK), strict=True):
        shift = torch.randint(-(size // 8), size // 8 + 1, (2, len(chunk), 1), generator=draws)
        rows, columns = (torch.arange(size) + shift) % size  # (M, H), (M, W)
        clean = patterns[chunk_labels[:, None, None], rows[:, :, None], columns[:, None, :]]
        noise = torch.randn(clean.shape, generator=draws)
        chunk.copy_((255 * (0.25 + 0.5 * clean + 0.1 * noise)).clamp(0, 255))
    return Split(images, labels)


@dataclass(frozen=True)
class _Epoch:
    """What was drawn for one epoch, one entry for each image in the order of the epoch, on the images' device."""

    index: Tensor
    offset_y: Tensor
    offset_x: Tensor
    flip: Tensor
    cutout_y: Tensor
    cutout_x: Tensor

    def slice(self, start: int, stop: int) -> tuple[Tensor, ...]:
        return tuple(
            draws[start:stop]
            for draws in (self.index, self.offset_y, self.offset_x, self.flip, self.cutout_y, self.cutout_x)
        )


class TrainData:
    """Random access to the batches of an endless, shuffled, augmented stream over one split."""

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        augment: AugmentConfig,
        mean: list[float],
        std: list[float],
        num_classes: int,
        device: torch.device,
        channels_last: bool = True,
        crop_flip_normalise: augment.CropFlipNormalise = augment.crop_flip_normalise,
    ) -> None:
        self.split = split.to(device)
        self.batch_size = batch_size
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.crop_flip_normalise = crop_flip_normalise
        self.seed = seed
        self.augment = augment
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)
        self.num_classes = num_classes
        self.device = device
        self._epochs: dict[int, _Epoch] = {}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images ``(B, 3, H, W)`` float32, and their labels.

        Labels are int64 ``(B,)``, or with mixup or CutMix a distribution, float32 ``(B, num_classes)``.
        """
        options = self.augment
        index, offset_y, offset_x, flip, cutout_y, cutout_x = self._draws(step)
        images = self.crop_flip_normalise(
            self.split.images,
            index,
            offset_y=offset_y,
            offset_x=offset_x,
            flip=flip,
            padding=options.crop_padding,
            mode=options.crop_mode,
            mean=self.mean,
            std=self.std,
        ).contiguous(memory_format=self.layout)
        labels = self.split.labels[index].to(self.device, non_blocking=True)
        if options.cutout:
            images = augment.cutout(
                images,
                centre_y=cutout_y.to(self.device),
                centre_x=cutout_x.to(self.device),
                size=options.cutout,
            )
        if options.mixup or options.cutmix:
            return self._mix(images, F.one_hot(labels, self.num_classes).float(), step)
        return images, labels

    def _mix(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mixup or CutMix; with both switched on, each batch takes one of them by a fair coin."""
        draws = random.Random(derive(self.seed, "mix", step))
        partner = torch.randperm(len(images), generator=generator(self.seed, "partner", step)).to(self.device)
        mixup, cutmix = self.augment.mixup, self.augment.cutmix
        take_mixup = bool(mixup) and (not cutmix or draws.random() < 0.5)
        alpha = mixup if take_mixup else cutmix
        share = draws.betavariate(alpha, alpha)
        if take_mixup:
            return augment.mixup(images, targets, partner=partner, share=share)
        height, width = images.shape[2:]
        centre_y, centre_x = draws.randrange(height), draws.randrange(width)
        return augment.cutmix(images, targets, partner=partner, share=share, centre_y=centre_y, centre_x=centre_x)

    def _draws(self, step: int) -> tuple[Tensor, ...]:
        """The draws of one batch, which may end one epoch and begin the next."""
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        pieces = []
        while start < stop:
            epoch, offset = divmod(start, len(self.split))
            length = min(stop - start, len(self.split) - offset)
            pieces.append(self._epoch(epoch).slice(offset, offset + length))
            start += length
        if len(pieces) == 1:
            return pieces[0]
        return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            self._epochs = {number: draws for number, draws in self._epochs.items() if number == epoch - 1}
            size, count = self.split.images.shape[1], len(self.split)
            draws = generator(self.seed, "epoch", epoch)
            offsets = 2 * self.augment.crop_padding + 1
            everything = (
                torch.randperm(count, generator=draws),
                torch.randint(offsets, (count,), generator=draws),
                torch.randint(offsets, (count,), generator=draws),
                (torch.rand(count, generator=draws) < 0.5) & self.augment.flip,
                torch.randint(size, (count,), generator=draws),
                torch.randint(size, (count,), generator=draws),
            )
            self._epochs[epoch] = _Epoch(*(drawn.to(self.split.images.device) for drawn in everything))
        return self._epochs[epoch]


class EvalData:
    """Every image of one split once, in order, without augmentation."""

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        mean: list[float],
        std: list[float],
        device: torch.device,
        channels_last: bool = True,
    ) -> None:
        self.split = split.to(device)
        self.batch_size = batch_size
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)
        self.device = device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images ``(B, 3, H, W)`` float32, labels ``(B,)``; the last batch may be smaller."""
        for images, labels in zip(
            self.split.images.split(self.batch_size), self.split.labels.split(self.batch_size), strict=True
        ):
            normalised = augment.normalise(images.to(self.device), self.mean, self.std)
            yield normalised.contiguous(memory_format=self.layout), labels.to(self.device)
