"""Random access to training batch number ``step``, and the batches of an evaluation.

The training examples form one endless stream: a permutation of the data set for epoch 0, another for epoch 1, and so
on. Batch ``step`` is the piece ``[step * batch_size, (step + 1) * batch_size)`` of it. So every batch is full, every
image is seen once an epoch, and any batch can be made at any time: order and augmentation of an image depend on the
seed and the epoch, mixing depends on the seed and the step, and nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_train.config.dataset import AugmentConfig
from resnet_train.data import augment
from resnet_train.data.augment import CropMode, Draws
from resnet_train.data.dataset import Split
from resnet_train.seeding import derive, generator


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
        self.crop_mode = cast(CropMode, augment.crop_mode)  # checked by the configuration
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)
        self.num_classes = num_classes
        self.device = device
        self._epochs: dict[int, Draws] = {}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images ``(B, C, H, W)`` float32, and their labels.

        Labels are int64 ``(B,)``, or with mixup or CutMix a distribution, float32 ``(B, num_classes)``.
        """
        options = self.augment
        draws = self._draws(step)
        images = self.crop_flip_normalise(
            self.split.images,
            draws,
            padding=options.crop_padding,
            mode=self.crop_mode,
            mean=self.mean,
            std=self.std,
        ).contiguous(memory_format=self.layout)
        labels = self.split.labels[draws.index].to(self.device, non_blocking=True)
        if options.cutout:
            images = augment.cutout(
                images,
                centre_y=draws.cutout_y.to(self.device),
                centre_x=draws.cutout_x.to(self.device),
                size=options.cutout,
            )
        if options.mixup or options.cutmix:
            return self._mix(images, F.one_hot(labels, self.num_classes).float(), step)
        return images, labels

    def _mix(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mixup or CutMix; with both switched on, each batch takes one of them by a fair coin."""
        rng = random.Random(derive(self.seed, "mix", step))
        # "partner" names the permutation in the seed: another word would draw other numbers.
        permutation = torch.randperm(len(images), generator=generator(self.seed, "partner", step)).to(self.device)
        mixup, cutmix = self.augment.mixup, self.augment.cutmix
        take_mixup = bool(mixup) and (not cutmix or rng.random() < 0.5)
        alpha = mixup if take_mixup else cutmix
        lam = rng.betavariate(alpha, alpha)
        if take_mixup:
            return augment.mixup(images, targets, permutation=permutation, lam=lam)
        height, width = images.shape[2:]
        centre_y, centre_x = rng.randrange(height), rng.randrange(width)
        return augment.cutmix(images, targets, permutation=permutation, lam=lam, centre_y=centre_y, centre_x=centre_x)

    def _draws(self, step: int) -> Draws:
        """The draws of one batch, which may end one epoch and begin the next."""
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        pieces = []
        while start < stop:
            epoch, offset = divmod(start, len(self.split))
            length = min(stop - start, len(self.split) - offset)
            pieces.append(self._epoch(epoch)[offset : offset + length])
            start += length
        return Draws.cat(pieces)

    def _epoch(self, epoch: int) -> Draws:
        """The draws of one epoch, on the images' device; those of this epoch and the one before are kept."""
        if epoch not in self._epochs:
            self._epochs = {number: kept for number, kept in self._epochs.items() if number == epoch - 1}
            size, count = self.split.images.shape[1], len(self.split)
            rng = generator(self.seed, "epoch", epoch)
            offsets = 2 * self.augment.crop_padding + 1
            drawn = Draws(  # in this order, on which all numbers of a run depend
                index=torch.randperm(count, generator=rng),
                offset_y=torch.randint(offsets, (count,), generator=rng),
                offset_x=torch.randint(offsets, (count,), generator=rng),
                flip=(torch.rand(count, generator=rng) < 0.5) & self.augment.flip,
                cutout_y=torch.randint(size, (count,), generator=rng),
                cutout_x=torch.randint(size, (count,), generator=rng),
            )
            self._epochs[epoch] = drawn.to(self.split.images.device)
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
        """Images ``(B, C, H, W)`` float32, labels ``(B,)``; the last batch may be smaller."""
        for images, labels in zip(
            self.split.images.split(self.batch_size), self.split.labels.split(self.batch_size), strict=True
        ):
            normalised = augment.normalise(images.to(self.device), self.mean, self.std)
            yield normalised.contiguous(memory_format=self.layout), labels.to(self.device)
