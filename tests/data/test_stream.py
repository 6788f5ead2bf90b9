"""The endless stream of batches against its definition, mixing, and evaluation."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from resnet_train.config.dataset import AugmentConfig
from resnet_train.data.augment import cutmix, mixup
from resnet_train.data.dataset import Split
from resnet_train.data.stream import PERMUTED_STEPS, EvalData, TrainData
from resnet_train.data.transfer import Ahead
from resnet_train.seeding import derive, generator

CPU = torch.device("cpu")
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
PLAIN = AugmentConfig(crop_padding=0, crop_mode="zeros", flip=False, cutout=0, mixup=0.0, cutmix=0.0)
EVERYTHING = AugmentConfig(crop_padding=2, crop_mode="zeros", flip=True, cutout=3, mixup=0.5, cutmix=1.0)


def numbered(count: int, size: int = 4) -> Split:
    """Image ``i`` has the value ``i`` everywhere and the label ``i``."""
    values = torch.arange(count)
    return Split(values.to(torch.uint8)[:, None, None, None].expand(count, size, size, 3).contiguous(), values)


def noise(count: int, size: int = 6) -> Split:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (count, size, size, 3), dtype=torch.uint8, generator=draws)
    return Split(images, torch.arange(count) % 5)


def stream(split: Split, augment: AugmentConfig = EVERYTHING, *, batch_size: int = 3, seed: int = 0) -> TrainData:
    return TrainData(
        split,
        batch_size=batch_size,
        seed=seed,
        augment=augment,
        mean=[0.0] * 3 if augment.mixup or augment.cutmix else MEAN,
        std=[1.0] * 3 if augment.mixup or augment.cutmix else STD,
        num_classes=len(split),
        device=CPU,
    )


def same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("augment", [PLAIN, EVERYTHING])
def test_any_batch_in_any_order_is_the_one_of_the_sequence(augment: AugmentConfig) -> None:
    data = stream(noise(7), augment)
    sequence = [data.batch(step) for step in range(15)]
    again = stream(noise(7), augment)
    for step in [14, 0, 7, 7, 3, 2, 13, 1, 0, 12, 6, 14]:
        assert same(again.batch(step), sequence[step]), step
    assert same(stream(noise(7), augment).batch(9), sequence[9])


@pytest.mark.parametrize(("count", "batch_size"), [(10, 3), (10, 10), (7, 5), (16, 4), (10, 7), (3, 8), (5, 1)])
def test_every_image_is_seen_once_an_epoch_and_every_batch_is_full(count: int, batch_size: int) -> None:
    data, epochs = stream(numbered(count), PLAIN, batch_size=batch_size), 6
    batches = [data.batch(step) for step in range(-(-epochs * count // batch_size))]
    assert all(images.shape == (batch_size, 3, 4, 4) for images, _ in batches)
    labels = torch.cat([labels for _, labels in batches])
    pixels = torch.cat([images[:, 0, 0, 0] for images, _ in batches]) * STD[0] + MEAN[0]
    assert torch.equal((255 * pixels).round().long(), labels), "labels belong to their images"
    orders = labels[: epochs * count].reshape(epochs, count).tolist()
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1, "each epoch has an order of its own"


def test_order_and_augmentation_depend_on_the_seed_and_the_epoch_not_on_the_batch_size() -> None:
    def first_epochs(batch_size: int, seed: int) -> Tensor:
        data = stream(noise(6), replace(EVERYTHING, mixup=0.0, cutmix=0.0), batch_size=batch_size, seed=seed)
        return torch.cat([data.batch(step)[0] for step in range(24 // batch_size)])

    assert torch.equal(first_epochs(4, seed=1), first_epochs(6, seed=1))
    epochs = [first_epochs(4, seed).split(6) for seed in (0, 1, 2)]
    for first, second in itertools.combinations(itertools.chain(*epochs), 2):
        assert not torch.equal(first, second)


def test_global_generators_neither_matter_nor_move() -> None:
    expected = [stream(noise(7)).batch(step) for step in range(4)]
    data = stream(noise(7))
    for step in range(4):
        torch.manual_seed(step)
        random.seed(step)
        np.random.seed(step)
        before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
        assert same(data.batch(step), expected[step])
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), str(np.random.get_state())) == before[1:]


def reference_batch(split: Split, augment: AugmentConfig, step: int, *, batch_size: int, seed: int) -> list[Tensor]:
    """The batch, image by image, from what is drawn for each epoch."""
    count, size = len(split), split.images.shape[1]
    images = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, count)
        draws = generator(seed, "epoch", epoch)
        offsets = 2 * augment.crop_padding + 1
        order = torch.randperm(count, generator=draws)
        top, left = (torch.randint(offsets, (count,), generator=draws)[place].item() for _ in range(2))
        mirrored = torch.rand(count, generator=draws)[place] < 0.5
        centre_y, centre_x = (int(torch.randint(size, (count,), generator=draws)[place]) for _ in range(2))
        image = split.images[order[place]].permute(2, 0, 1)
        mode = {"zeros": "constant", "reflect": "reflect"}[augment.crop_mode]
        image = TF.crop(TF.pad(image, [augment.crop_padding], padding_mode=mode), top, left, size, size)
        if augment.flip and mirrored:
            image = TF.hflip(image)
        image = TF.normalize(image.float() / 255, MEAN, STD)
        for row, column in itertools.product(range(size), repeat=2):
            start_y, start_x = centre_y - augment.cutout // 2, centre_x - augment.cutout // 2
            if 0 <= row - start_y < augment.cutout and 0 <= column - start_x < augment.cutout:
                image[:, row, column] = 0
        images.append(image)
    return images


@pytest.mark.parametrize(
    "augment",
    [
        PLAIN,
        replace(PLAIN, flip=True),
        replace(PLAIN, crop_padding=2),
        replace(PLAIN, crop_padding=3, crop_mode="reflect"),
        replace(PLAIN, cutout=3),
        replace(EVERYTHING, mixup=0.0, cutmix=0.0),
    ],
)
def test_each_image_is_augmented_as_drawn(augment: AugmentConfig) -> None:
    """Also in batch 2, which spans two epochs."""
    split = noise(11)
    data = stream(split, augment, batch_size=4, seed=3)
    for step in (0, 2, 5):
        images, _ = data.batch(step)
        expected = torch.stack(reference_batch(split, augment, step, batch_size=4, seed=3))
        torch.testing.assert_close(images, expected, rtol=0, atol=2e-6)


def test_every_second_image_is_mirrored_on_average() -> None:
    images = torch.arange(4, dtype=torch.uint8)[None, None, :, None].expand(1000, 4, 4, 3)
    split = Split(images, torch.zeros(1000, dtype=torch.int64))
    batch, _ = stream(split, replace(PLAIN, flip=True), batch_size=1000).batch(0)
    mirrored = (batch[:, 0, 0, 0] > batch[:, 0, 0, 3]).float().mean()
    assert mirrored.item() == pytest.approx(0.5, abs=0.05)


def test_the_draws_of_epochs_gone_by_are_let_go() -> None:
    """A long run needs no more memory than a short one."""
    data = stream(noise(4))
    for step in [*range(40), 3, 100, 0]:
        data.batch(step)
        assert len(data._epochs) <= 2


@pytest.mark.parametrize("augment", [PLAIN, EVERYTHING])
def test_images_that_are_fetched_ahead_give_the_same_batches(augment: AugmentConfig) -> None:
    """As where the device has no room for them; in any order."""
    data, fetched = stream(noise(7), augment), stream(noise(7), augment)
    fetched._ahead, fetched._places = Ahead(noise(7).images, CPU, order=fetched._order), torch.arange(3)
    fetched.split = Split(torch.zeros(1, 6, 6, 3, dtype=torch.uint8), fetched.split.labels)  # not looked at any more
    for step in [*range(8), 3, 14, 15, 0]:
        assert same(fetched.batch(step), data.batch(step)), step


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_images_that_a_gpu_has_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_the_gpu() -> TrainData:
        options = {"batch_size": 8, "seed": 0, "mean": MEAN, "std": STD, "num_classes": 40}
        return TrainData(noise(40), augment=EVERYTHING, device=torch.device("cuda", 0), **options)

    moved = on_the_gpu()
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _device: (0, 0))
    kept = on_the_gpu()
    assert (moved.split.images.device.type, kept.split.images.device.type) == ("cuda", "cpu")
    for step in range(12):
        assert same(kept.batch(step), moved.batch(step)), step


def test_permutations_do_not_depend_on_what_was_asked_for_before() -> None:
    """They are drawn for many steps at once, which must not show at the border."""
    data = stream(noise(7))
    border = [PERMUTED_STEPS - 1, PERMUTED_STEPS, 2 * PERMUTED_STEPS + 1, 0]
    for step in border:
        expected = torch.randperm(3, generator=generator(0, "partner", step))
        assert torch.equal(data._permutation(step), expected), step


def test_batches_are_channels_last_floats_of_the_data_set_that_stays_bytes() -> None:
    split = noise(7)
    for augment, labels_like in [
        (PLAIN, torch.empty(3, dtype=torch.int64)),
        (replace(EVERYTHING, cutmix=0.0), torch.empty(3, 7)),
        (replace(EVERYTHING, mixup=0.0), torch.empty(3, 7)),
    ]:
        data = stream(split, augment)
        images, labels = data.batch(2)
        assert (images.shape, images.dtype) == ((3, 3, 6, 6), torch.float32)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert (labels.shape, labels.dtype) == (labels_like.shape, labels_like.dtype)
        assert data.split.images.dtype == torch.uint8
        assert data.split.images.data_ptr() == split.images.data_ptr(), "copied without need"
    assert torch.equal(split.images, noise(7).images), "the data set was written to"


# ------------------------------------------------------------------------------------------------------- mixup, CutMix


@pytest.mark.parametrize(("mixup_alpha", "cutmix_alpha"), [(1.0, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_targets_are_distributions_that_say_what_was_mixed(mixup_alpha: float, cutmix_alpha: float) -> None:
    """Each image has one value, its label; so a mixed image's mean is the mean of its target, whatever mixed it."""
    data = stream(numbered(9, size=16), replace(PLAIN, mixup=mixup_alpha, cutmix=cutmix_alpha), batch_size=5)
    kinds = []
    for step in range(40):
        images, targets = data.batch(step)
        assert targets.shape == (5, 9)
        assert targets.min() >= 0
        torch.testing.assert_close(targets.sum(1), torch.ones(5))
        assert ((targets > 0).sum(1) <= 2).all()
        torch.testing.assert_close(255 * images.mean((1, 2, 3)), targets @ torch.arange(9.0), rtol=1e-4, atol=1e-4)
        uniform = (images.amax((1, 2, 3)) - images.amin((1, 2, 3)) < 1e-6).all()
        kinds.append("mixup" if uniform else "cutmix")
    fraction = kinds.count("mixup") / len(kinds)
    low, high = {(1.0, 0.0): (1.0, 1.0), (0.0, 1.0): (0.0, 0.25)}.get((mixup_alpha, cutmix_alpha), (0.25, 0.75))
    assert low <= fraction <= high, "with both, a fair coin; a CutMix of no pixel or all looks like mixup here"


@pytest.mark.parametrize(("mixup_alpha", "cutmix_alpha"), [(0.2, 0.0), (1.0, 0.0), (0.0, 0.7), (0.2, 0.7)])
def test_lam_and_permutation_are_those_drawn_for_the_step(mixup_alpha: float, cutmix_alpha: float) -> None:
    plain = stream(noise(8), replace(EVERYTHING, mixup=0.0, cutmix=0.0), batch_size=5, seed=4)
    plain.mean, plain.std = torch.zeros(3), torch.ones(3)
    options = replace(EVERYTHING, mixup=mixup_alpha, cutmix=cutmix_alpha)
    data = stream(noise(8), options, batch_size=5, seed=4)
    for step in range(6):
        draws = random.Random(derive(4, "mix", step))
        permutation = torch.randperm(5, generator=generator(4, "partner", step))
        takes_mixup = mixup_alpha > 0 and (cutmix_alpha == 0 or draws.random() < 0.5)
        alpha = mixup_alpha if takes_mixup else cutmix_alpha
        lam = draws.betavariate(alpha, alpha)
        images, labels = plain.batch(step)
        targets = F.one_hot(labels, 8).float()
        if takes_mixup:
            expected = mixup(images, targets, permutation=permutation, lam=lam)
        else:
            y, x = draws.randrange(6), draws.randrange(6)
            expected = cutmix(images, targets, permutation=permutation, lam=lam, centre_y=y, centre_x=x)
        assert same(data.batch(step), expected)


# ----------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 500, [3])])
def test_evaluation_sees_every_image_once_in_order(count: int, batch_size: int, sizes: list[int]) -> None:
    split = noise(count)
    data = EvalData(split, batch_size=batch_size, mean=MEAN, std=STD, device=CPU)
    for _ in range(2):
        batches = list(data)
        assert [len(labels) for _, labels in batches] == sizes
        assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels)
        images = torch.cat([images for images, _ in batches])
        expected = TF.normalize(split.images.permute(0, 3, 1, 2).float() / 255, MEAN, STD)
        torch.testing.assert_close(images, expected, rtol=0, atol=2e-6)
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images, _ in batches)
    assert data.split.images.data_ptr() == split.images.data_ptr()
