"""The splits of a data set, in memory as bytes: what a run trains, validates and tests on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_train.config.dataset import (
    CifarConfig,
    DatasetConfig,
    IdxConfig,
    ImageArchiveConfig,
    ImageFolderConfig,
    MedMNISTConfig,
    STL10Config,
    SVHNConfig,
    SyntheticConfig,
    num_train_images,
)
from resnet_train.data.cifar import load_cifar
from resnet_train.data.decode import with_channels
from resnet_train.data.files import Files, Images
from resnet_train.data.idx import load_idx
from resnet_train.data.image_archive import load_image_archive
from resnet_train.data.imagefolder import load_imagefolder
from resnet_train.data.medmnist import load_medmnist
from resnet_train.data.stl10 import load_stl10
from resnet_train.data.svhn import load_svhn
from resnet_train.runs.data_identity import DataIdentity, identify
from resnet_train.seeding import derive, generator

SYNTHETIC_CHUNK = 4096  # images made at a time: bounds the memory beside the data set


@dataclass(frozen=True)
class Split:
    """Images as they are: uint8 ``(N, H, W, C)`` of 1 or 3 channels, and their labels, int64 ``(N,)``."""

    images: Tensor
    labels: Tensor
    paths: tuple[str, ...] = ()  # below dataset.root, where each image is a file

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Split:
        """The images at ``index`` ``(M,)``."""
        paths = tuple(self.paths[number] for number in index.tolist()) if self.paths else ()
        return Split(self.images[index], self.labels[index], paths)

    def to(self, device: torch.device) -> Split:
        """Move to ``device`` if it has room, labels in any case; the images stay in host memory where it has not.

        Room means that half of the free memory remains for the network.
        """
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if self.images.nbytes > free // 2:
                return self
        return Split(self.images.to(device), self.labels.to(device), self.paths)


@dataclass(frozen=True)
class Dataset:
    """All splits of a data set; ``val`` comes with it, or is held out of the training images if asked for."""

    train: Split
    val: Split | None
    test: Split
    classes: tuple[str, ...]
    identity: DataIdentity
    left_out: str = ""  # files beside the images, in words
    taken: str = ""  # which images serve as what, in words

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.train.images.shape[1]


def load_dataset(config: DatasetConfig, *, seed: int) -> Dataset:
    """Read the data set, whole and in host memory, and hold out the validation split.

    Which images are held out, and which remain with ``train_size``, depends on the seed, and on the names of the images
    where they have any. Raises `ConfigError` where files are missing or corrupt, or too few.
    """
    val: Split | None = None
    names: tuple[str, ...] = ()
    left_out = taken = ""
    if isinstance(config, SyntheticConfig):
        train, test = synthetic(config, config.num_train, "train"), synthetic(config, config.num_test, "test")
        classes = tuple(f"pattern {label}" for label in range(config.num_classes))
        images = {"train": config.num_train, "test": config.num_test}
        identity = identify(classes, images, f"synthetic, {config.image_size} pixels")
    else:
        files = read_files(config)
        train, test = (
            split_from(split, config.channels, paths)
            for split, paths in ((files.train, files.train_paths), (files.test, files.test_paths))
        )
        val = None if files.val is None else split_from(files.val, config.channels, files.val_paths)
        classes, identity, names = files.classes, files.identity, files.names
        left_out, taken = files.left_out, files.taken
    num_train = num_train_images(config, len(train))
    if num_train == len(train):
        return Dataset(train, val, test, classes, identity, left_out, taken)
    order = draw_order(len(train), names, seed=seed)
    held_out, used = order[: config.val_size], order[config.val_size : config.val_size + num_train]
    if config.val_size:
        val = train.take(held_out.sort().values)
    return Dataset(train.take(used.sort().values), val, test, classes, identity, left_out, taken)


def split_from(images: Images, channels: int, paths: tuple[str, ...] = ()) -> Split:
    """What a file held, in as many channels as are asked for."""
    # torch refuses read-only memory, which a memory map is: copy it
    return Split(torch.tensor(with_channels(images.images, channels)), torch.from_numpy(images.labels), paths)


def read_files(config: DatasetConfig) -> Files:
    """What the files of a data set hold; raises `ConfigError` where they are missing or corrupt."""
    match config:
        case CifarConfig():
            return load_cifar(config)
        case IdxConfig():
            return load_idx(config)
        case MedMNISTConfig():
            return load_medmnist(config)
        case SVHNConfig():
            return load_svhn(config)
        case STL10Config():
            return load_stl10(config)
        case ImageArchiveConfig():
            return load_image_archive(config)
        case ImageFolderConfig():
            return load_imagefolder(config)
    raise TypeError(f"no data set for {type(config).__name__}")


def draw_order(num_images: int, names: tuple[str, ...], *, seed: int) -> Tensor:
    """The order in which training images are held out, and then used, ``(num_images,)``.

    Images that have names are drawn by them: with one that is added or removed, at most one other changes sides.
    """
    if not names:
        return torch.randperm(num_images, generator=generator(seed, "split"))
    hashes = [derive(seed, "split", name.encode(errors="surrogatepass").hex()) for name in names]
    return torch.tensor(sorted(range(num_images), key=hashes.__getitem__))


def synthetic(config: SyntheticConfig, num_images: int, split: str) -> Split:
    """Make ``num_images`` synthetic images: a coarse 4x4 pattern of colours for each class, shifted, under noise.

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
    return Split(torch.from_numpy(with_channels(images.numpy(), config.channels)), labels)
