"""The group ``dataset``: what wrong values are answered, word for word; how many images remain to train on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from resnet_train.config.run import Config

# Overrides, and the whole message.
MESSAGES: list[tuple[str, str]] = [
    (
        "dataset.name=cifar100",
        "dataset.name: expected 'cifar10', which names the option itself, got 'cifar100'; "
        "to change the option write dataset=cifar100",
    ),
    ("dataset.val_size=-1", "dataset.val_size: expected a number >= 0, got -1"),
    ("dataset.val_size=50000", "dataset.val_size: expected fewer than the 50000 training images, got 50000"),
    ("dataset.train_size=0", "dataset.train_size: expected a number >= 1, got 0"),
    (
        "dataset.train_size=45001 dataset.val_size=5000",
        "dataset.train_size: expected at most 45000 (50000 images less val_size=5000), got 45001; "
        "try dataset.train_size=45000",
    ),
    (
        "dataset.mean=[0.5]",
        "dataset.mean: expected three numbers, one a channel (dataset.channels=3), got 1; give that of the images with "
        "as many channels",
    ),
    (
        "dataset.channels=1",
        "dataset.mean: expected one number (dataset.channels=1), got 3; give that of the images with as many channels",
    ),
    ("dataset.channels=2", "dataset.channels: expected 1 (grey) or 3 (colours), got 2"),
    (
        "dataset=medmnist dataset.val_size=10",
        "dataset.val_size: expected 0, since medmnist has validation images of its own, which are used, got 10; "
        "leave it out",
    ),
    (
        "dataset=medmnist dataset.subset=PathMNIST",
        "dataset.subset: expected one of pathmnist, dermamnist, octmnist, pneumoniamnist, retinamnist, breastmnist, "
        "bloodmnist, tissuemnist, organamnist, organcmnist, organsmnist, got 'PathMNIST'; did you mean "
        "dataset.subset=pathmnist?",
    ),
    (
        "dataset=medmnist dataset.subset=chestmnist",
        "dataset.subset: expected one of pathmnist, dermamnist, octmnist, pneumoniamnist, retinamnist, breastmnist, "
        "bloodmnist, tissuemnist, organamnist, organcmnist, organsmnist, got 'chestmnist'; its images have any number "
        "of labels each",
    ),
    ("dataset=imagenette dataset.image_size=2", "dataset.image_size: expected a number >= 4 and <= 4096, got 2"),
    (
        "dataset=mnist dataset.root=''",
        "dataset.root: expected the folder that holds the files of mnist, or will hold them, got nothing; add "
        "dataset.root=FOLDER, or unset RESNET_TRAIN_DATA where it is empty",
    ),
    ("dataset.mean=[0,0,nan]", "dataset.mean[2]: expected a number that is finite, got nan"),
    (
        "dataset.std=[1,1,1,1]",
        "dataset.std: expected three numbers, one a channel (dataset.channels=3), got 4; give that of the images with "
        "as many channels",
    ),
    ("dataset.std=[1,0,1]", "dataset.std[1]: expected a number > 0, got 0.0"),
    (
        "dataset.augment.crop_mode=zero",
        "dataset.augment.crop_mode: expected one of zeros, reflect, got 'zero'; "
        "did you mean dataset.augment.crop_mode=zeros?",
    ),
    ("dataset.augment.cutout=-1", "dataset.augment.cutout: expected a number >= 0 and <= 8192, got -1"),
    ("dataset.augment.mixup=-0.5", "dataset.augment.mixup: expected a number >= 0 and <= 1000, got -0.5"),
    ("dataset.augment.mixup=1e308", "dataset.augment.mixup: expected a number >= 0 and <= 1000, got 1e+308"),
    ("dataset.augment.cutmix=inf", "dataset.augment.cutmix: expected a number >= 0 and <= 1000, got inf"),
    ("dataset.augment.crop_padding=-1", "dataset.augment.crop_padding: expected a number >= 0 and < 32, got -1"),
    ("dataset.augment.crop_padding=32", "dataset.augment.crop_padding: expected a number >= 0 and < 32, got 32"),
    (
        "dataset=synthetic dataset.image_size=4",
        "dataset.augment.crop_padding: expected a number >= 0 and < 4, got 4",
    ),
    ("dataset=synthetic dataset.image_size=3", "dataset.image_size: expected a number >= 4 and <= 4096, got 3"),
    ("dataset=synthetic dataset.num_classes=1", "dataset.num_classes: expected a number >= 2 and <= 1e+06, got 1"),
    ("dataset=synthetic dataset.num_train=0", "dataset.num_train: expected a number >= 1 and <= 1e+09, got 0"),
    (
        "dataset=synthetic dataset.num_train=99999999999999",
        "dataset.num_train: expected a number >= 1 and <= 1e+09, got 99999999999999",
    ),
    ("dataset=synthetic dataset.num_test=0", "dataset.num_test: expected a number >= 1 and <= 1e+09, got 0"),
    (
        "dataset=imagefolder",
        "dataset.root: expected the folder that holds train/ and val/ with one folder a class, got nothing; "
        "add dataset.root=FOLDER",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), MESSAGES, ids=[overrides for overrides, _ in MESSAGES])
def test_wrong_values_are_answered(overrides: str, message: str, refusal: Callable[[str], str]) -> None:
    assert refusal(overrides) == message


@pytest.mark.parametrize(
    "overrides",
    [
        "dataset.val_size=49999 batch_size=1 dataset.train_size=1",
        "dataset.augment.crop_padding=31 dataset.augment.cutout=100 dataset.mean=[-1,0,2]",
        "dataset=synthetic dataset.image_size=64 dataset.augment.crop_padding=63",
        "dataset=imagefolder dataset.root=photos batch_size=1000000 schedule.warmup=1000",  # as many as lie there
        "dataset.channels=1 dataset.mean=[0.48] dataset.std=[0.24]",
        "dataset=fashion_mnist dataset.channels=3",
        "dataset=medmnist dataset.subset=octmnist dataset.train_size=97477",
    ],
)
def test_values_at_the_edge_are_accepted(overrides: str, checked: Callable[[str], Config]) -> None:
    checked(overrides)


@pytest.mark.parametrize(
    ("overrides", "channels"),
    [
        ("dataset=fashion_mnist", 1),
        ("dataset=kmnist dataset.channels=3", 3),
        ("dataset=medmnist", 3),
        ("dataset=medmnist dataset.subset=breastmnist", 1),
        ("dataset=medmnist dataset.subset=breastmnist dataset.channels=3", 3),
        ("dataset=svhn", 3),
    ],
)
def test_there_are_as_many_means_as_channels(overrides: str, channels: int, checked: Callable[[str], Config]) -> None:
    dataset = checked(overrides).dataset
    assert (dataset.channels, len(dataset.mean), len(dataset.std)) == (channels,) * 3
