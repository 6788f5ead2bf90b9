"""The endless stream of batches against its definition, the splits, and the data sets as they arrive in memory."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from resnet_train.config.dataset import AugmentConfig, Cifar10Config, ImageFolderConfig, SyntheticConfig
from resnet_train.data.augment import cutmix, mixup
from resnet_train.data.dataset import Split, load_dataset
from resnet_train.data.stream import EvalData, TrainData
from resnet_train.errors import ConfigError
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


# ----------------------------------------------------------------------------------------------------------- the stream


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


# ----------------------------------------------------------------------------------------------------- mixup and CutMix


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
    share = kinds.count("mixup") / len(kinds)
    low, high = {(1.0, 0.0): (1.0, 1.0), (0.0, 1.0): (0.0, 0.25)}.get((mixup_alpha, cutmix_alpha), (0.25, 0.75))
    assert low <= share <= high, "with both, a fair coin; a CutMix of no pixel or all looks like mixup here"


@pytest.mark.parametrize(("mixup_alpha", "cutmix_alpha"), [(0.2, 0.0), (1.0, 0.0), (0.0, 0.7), (0.2, 0.7)])
def test_shares_and_partners_are_those_drawn_for_the_step(mixup_alpha: float, cutmix_alpha: float) -> None:
    plain = stream(noise(8), replace(EVERYTHING, mixup=0.0, cutmix=0.0), batch_size=5, seed=4)
    plain.mean, plain.std = torch.zeros(3), torch.ones(3)
    options = replace(EVERYTHING, mixup=mixup_alpha, cutmix=cutmix_alpha)
    data = stream(noise(8), options, batch_size=5, seed=4)
    for step in range(6):
        draws = random.Random(derive(4, "mix", step))
        partner = torch.randperm(5, generator=generator(4, "partner", step))
        takes_mixup = mixup_alpha > 0 and (cutmix_alpha == 0 or draws.random() < 0.5)
        alpha = mixup_alpha if takes_mixup else cutmix_alpha
        share = draws.betavariate(alpha, alpha)
        images, labels = plain.batch(step)
        targets = F.one_hot(labels, 8).float()
        if takes_mixup:
            expected = mixup(images, targets, partner=partner, share=share)
        else:
            y, x = draws.randrange(6), draws.randrange(6)
            expected = cutmix(images, targets, partner=partner, share=share, centre_y=y, centre_x=x)
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


# --------------------------------------------------------------------------------------------------------------- splits

SYNTHETIC = SyntheticConfig(
    name="synthetic",
    train_size=None,
    val_size=0,
    mean=MEAN,
    std=STD,
    augment=PLAIN,
    num_classes=4,
    image_size=8,
    num_train=60,
    num_test=20,
)


def keys(split: Split | None) -> list[bytes]:
    assert split is not None
    return [image.numpy().tobytes() + bytes([label]) for image, label in zip(split.images, split.labels, strict=True)]


def test_without_a_validation_split_all_images_train() -> None:
    data = load_dataset(SYNTHETIC, seed=0)
    assert (len(data.train), data.val, len(data.test), data.image_size) == (60, None, 20, 8)
    assert len(set(keys(data.train))) == 60, "the tests below need images that differ"


def test_the_validation_split_is_held_out_of_the_training_images_by_seed() -> None:
    whole = load_dataset(SYNTHETIC, seed=0)
    held_out = []
    for seed in (0, 1):
        data = load_dataset(replace(SYNTHETIC, val_size=15), seed=seed)
        assert (len(data.train), len(keys(data.val))) == (45, 15)
        assert sorted(keys(data.train) + keys(data.val)) == sorted(keys(whole.train))
        assert keys(data.test) == keys(whole.test)
        assert keys(data.val) == keys(load_dataset(replace(SYNTHETIC, val_size=15), seed=seed).val)
        held_out.append(set(keys(data.val)))
    assert held_out[0] != held_out[1]


def test_train_size_takes_some_of_what_is_left_by_seed() -> None:
    data, other = (load_dataset(replace(SYNTHETIC, val_size=15, train_size=20), seed=seed) for seed in (0, 1))
    assert (len(data.train), len(keys(data.val))) == (20, 15)
    assert not set(keys(data.train)) & set(keys(data.val))
    assert set(keys(data.train)) < set(keys(load_dataset(SYNTHETIC, seed=0).train))
    assert set(keys(data.train)) != set(keys(other.train))
    assert keys(data.val) == keys(load_dataset(replace(SYNTHETIC, val_size=15), seed=0).val), (
        "train_size moves no val image"
    )
    alone = load_dataset(replace(SYNTHETIC, train_size=20), seed=0)
    assert (len(alone.train), alone.val) == (20, None)
    everything = load_dataset(replace(SYNTHETIC, val_size=15, train_size=45), seed=0)
    assert len(everything.train) == 45


def test_more_images_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.val_size: expected fewer than the 60 training images, got 60$"):
        load_dataset(replace(SYNTHETIC, val_size=60), seed=0)


# ------------------------------------------------------------------------------------------------------------ data sets


def test_synthetic_images_are_the_same_for_every_seed_and_differ_between_splits() -> None:
    first, second = (load_dataset(replace(SYNTHETIC, num_test=60), seed=seed) for seed in (0, 1))
    assert keys(first.train) == keys(second.train)
    assert keys(first.test) == keys(second.test)
    assert not set(keys(first.train)) & set(keys(first.test))


@pytest.mark.parametrize(("num_classes", "image_size"), [(10, 32), (3, 12)])
def test_synthetic_images_are_learnable_bytes(num_classes: int, image_size: int) -> None:
    """The class with the nearest mean image is the right one far more often than by chance."""
    config = replace(SYNTHETIC, num_classes=num_classes, image_size=image_size, num_train=600, num_test=200)
    data = load_dataset(config, seed=0)
    assert data.train.images.shape == (600, image_size, image_size, 3)
    assert (data.train.images.dtype, data.train.labels.dtype) == (torch.uint8, torch.int64)
    assert set(data.train.labels.tolist()) == set(range(num_classes))
    assert len(data.classes) == num_classes
    train, test = (split.images.flatten(1).float() for split in (data.train, data.test))
    means = torch.stack([train[data.train.labels == label].mean(0) for label in range(num_classes)])
    found = torch.cdist(test, means).argmin(1)
    assert (found == data.test.labels).float().mean().item() > 0.8


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    colours = {
        "train/dog/1": (200, 0, 0),
        "train/cat/1": (0, 100, 0),
        "train/dog/2": (0, 0, 50),
        "val/dog/x": (9, 8, 7),
    }
    for name, colour in colours.items():
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 12), colour).save(path)
    config = ImageFolderConfig(
        name="imagefolder",
        train_size=None,
        val_size=0,
        mean=MEAN,
        std=STD,
        augment=PLAIN,
        root=str(tmp_path),
        image_size=8,
        cache=None,
    )
    data = load_dataset(config, seed=0)
    assert data.classes == ("cat", "dog")
    assert (data.train.labels.tolist(), data.test.labels.tolist(), data.val) == ([0, 1, 1], [1], None)
    assert (data.train.images.shape, data.train.images.dtype) == ((3, 8, 8, 3), torch.uint8)
    for image, name in zip(data.train.images, ["train/cat/1", "train/dog/1", "train/dog/2"], strict=True):
        assert torch.equal(image, torch.tensor(colours[name], dtype=torch.uint8).expand(8, 8, 3))


def test_cifar10_and_the_statistics_that_normalise_it(cifar10_root: Path) -> None:
    shipped = OmegaConf.load(Path(__file__).parents[1] / "conf/dataset/cifar10.yaml")
    config = Cifar10Config(
        name="cifar10",
        train_size=None,
        val_size=5000,
        mean=list(shipped.mean),
        std=list(shipped.std),
        augment=PLAIN,
        root=str(cifar10_root),
        download=False,
        mirrors=[],
    )
    data = load_dataset(config, seed=0)
    assert (len(data.train), len(data.test), data.image_size) == (45_000, 10_000, 32)
    assert data.classes[:2] == ("airplane", "automobile")
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    assert data.val is not None
    whole = torch.cat([data.train.images, data.val.images])
    for channel in range(3):
        share = torch.bincount(whole[..., channel].flatten(), minlength=256).double() / whole[..., channel].numel()
        value = torch.arange(256).double() / 255
        mean = (share * value).sum()
        assert round(mean.item(), 4) == config.mean[channel]
        assert round((share * (value - mean) ** 2).sum().sqrt().item(), 4) == config.std[channel]
