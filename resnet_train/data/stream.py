"""Random access to training batch number ``step``, and the batches of an evaluation.

The training examples form one endless stream: a permutation of the data set for epoch 0, another for epoch 1, and so
on. Batch ``step`` is the piece ``[step * batch_size, (step + 1) * batch_size)`` of it. So every batch is full, every
image is seen once an epoch, and any batch can be made at any time: order and augmentation of an image depend on the
seed and the epoch, mixing depends on the seed and the step, and nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from resnet_train.config.dataset import AugmentConfig
from resnet_train.data import augment
from resnet_train.data.augment import CropMode, Draws
from resnet_train.data.balance import balanced_order
from resnet_train.data.dataset import Split
from resnet_train.data.transfer import Ahead, send
from resnet_train.seeding import derive, generator

PERMUTED_STEPS = 256  # whose permutations go to the device at once: half a MiB for batches of 256


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
        balanced: bool = False,
        channels_last: bool = True,
        crop_flip_normalise: augment.CropFlipNormalise = augment.crop_flip_normalise,
    ) -> None:
        self.split = split.to(device)
        self.labels = send(self.split.labels, device)
        self.batch_size = batch_size
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.crop_flip_normalise = crop_flip_normalise
        self.seed = seed
        self.balanced = balanced
        self.augment = augment
        self.crop_mode = cast(CropMode, augment.crop_mode)  # checked by the configuration
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)
        self.num_classes = num_classes
        self.device = device
        self._epochs: dict[int, tuple[Tensor, Draws]] = {}  # order in host memory, all draws on the device
        self._one_hot = torch.eye(num_classes, device=device)
        self._permutations: tuple[int, Tensor] = -1, torch.empty(0)  # number of a block of steps, (steps, B)
        self._ahead = None  # who fetches the images, where the device has no room for them
        if self.split.images.device.type != device.type:
            self._ahead = Ahead(self.split.images, device, order=self._order)
            self._places = torch.arange(batch_size, device=device)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images ``(B, C, H, W)`` float32, and their labels.

        Labels are int64 ``(B,)``, or with mixup or CutMix a distribution, float32 ``(B, num_classes)``.
        """
        options, images = self.augment, self.split.images
        draws = self._draws(step)
        labels = self.labels[draws.index]
        if self._ahead is not None:
            images = self._ahead.fetch(step)
            draws = replace(draws, index=self._places)
        images = self.crop_flip_normalise(
            images,
            draws,
            padding=options.crop_padding,
            mode=self.crop_mode,
            mean=self.mean,
            std=self.std,
        ).contiguous(memory_format=self.layout)
        if options.cutout:
            images = augment.cutout(images, centre_y=draws.cutout_y, centre_x=draws.cutout_x, size=options.cutout)
        if options.mixup or options.cutmix:
            return self._mix(images, self._one_hot[labels], step)
        return images, labels

    def _mix(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mixup or CutMix; with both switched on, each batch takes one of them by a fair coin."""
        rng = random.Random(derive(self.seed, "mix", step))
        permutation = self._permutation(step)
        mixup, cutmix = self.augment.mixup, self.augment.cutmix
        take_mixup = bool(mixup) and (not cutmix or rng.random() < 0.5)
        alpha = mixup if take_mixup else cutmix
        lam = rng.betavariate(alpha, alpha)
        if take_mixup:
            return augment.mixup(images, targets, permutation=permutation, lam=lam)
        height, width = images.shape[2:]
        centre_y, centre_x = rng.randrange(height), rng.randrange(width)
        return augment.cutmix(images, targets, permutation=permutation, lam=lam, centre_y=centre_y, centre_x=centre_x)

    def _permutation(self, step: int) -> Tensor:
        """Which image each image of a batch is mixed with ``(B,)``; on its way to the device with those of others."""
        block, place = divmod(step, PERMUTED_STEPS)
        if self._permutations[0] != block:
            # "partner" names the permutation in the seed: another word would draw other numbers.
            steps = range(block * PERMUTED_STEPS, (block + 1) * PERMUTED_STEPS)
            drawn = [torch.randperm(self.batch_size, generator=generator(self.seed, "partner", one)) for one in steps]
            self._permutations = block, send(torch.stack(drawn), self.device)
        return self._permutations[1][place]

    def _draws(self, step: int) -> Draws:
        """The draws of one batch."""
        return Draws.cat([self._epoch(epoch)[1][span] for epoch, span in self._spans(step)])

    def _order(self, step: int) -> Tensor:
        """The images of one batch, ``(B,)`` in host memory."""
        return torch.cat([self._epoch(epoch)[0][span] for epoch, span in self._spans(step)])

    def _spans(self, step: int) -> Iterator[tuple[int, slice]]:
        """The epochs that a batch lies in, which may end one and begin the next, and which part of them it is."""
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        while start < stop:
            epoch, offset = divmod(start, len(self.split))
            length = min(stop - start, len(self.split) - offset)
            yield epoch, slice(offset, offset + length)
            start += length

    def _epoch(self, epoch: int) -> tuple[Tensor, Draws]:
        """Order and draws of one epoch; those of this epoch and the one before are kept."""
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
            if self.balanced:
                order = balanced_order(self.split.labels.cpu(), generator(self.seed, "balanced", epoch))
                drawn = replace(drawn, index=order)
            self._epochs[epoch] = drawn.index, drawn.to(self.device)
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
            normalised = augment.normalise(send(images, self.device), self.mean, self.std)
            yield normalised.contiguous(memory_format=self.layout), send(labels, self.device)
