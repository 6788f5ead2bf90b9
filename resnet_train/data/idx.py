"""MNIST, Fashion-MNIST and Kuzushiji-MNIST from their official files, in the format IDX, verified by MD5.

IDX: big-endian sizes behind a magic number whose last byte is their count (Yann LeCun's page on MNIST). The names of
the files are the same in all three. Debian and Ubuntu have Fashion-MNIST as a package, ``dataset-fashion-mnist``, whose
gzip headers are its own: there what they hold is verified.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnet_train.config.dataset import FashionMNISTConfig, IdxConfig, KMNISTConfig, MNISTConfig
from resnet_train.data.files import Files, Images, one_line_errors
from resnet_train.data.published import (
    PublishedFile,
    Source,
    check_file_obtainable,
    check_md5,
    md5_of_bytes,
    obtain_file,
    source_of,
)
from resnet_train.errors import ConfigError
from resnet_train.runs.data_identity import identify

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class IdxFiles:
    """The four files of a data set."""

    title: str
    folder: str  # torchvision's, below dataset.root
    classes: tuple[str, ...]  # in label order
    packed: tuple[str, ...]  # MD5 of the .gz files, in the order of `NAMES`
    unpacked: tuple[str, ...] = ()  # MD5 of what they hold; where it is known, any gzip header will do, and none

    def files(self) -> list[PublishedFile]:
        """The packed files."""
        pairs = zip(NAMES, self.packed, strict=True)
        return [PublishedFile(self.title, f"{name}.gz", md5, self.folder) for name, md5 in pairs]


# The sums of the .gz files and the classes of MNIST and KMNIST stand in torchvision 0.29, datasets/mnist.py. Those of
# what they hold are of files at hand; for MNIST many programs name the same.
MNIST = IdxFiles(
    title="MNIST",
    folder="MNIST/raw",
    classes=tuple("0123456789"),
    packed=(
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    unpacked=(
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
)
FASHION_MNIST = IdxFiles(
    title="Fashion-MNIST",
    folder="FashionMNIST/raw",
    # Table 2 of Xiao et al. 2017 (arXiv 1708.07747).
    classes=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    packed=(
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    unpacked=(
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
)
KMNIST = IdxFiles(
    title="Kuzushiji-MNIST",
    folder="KMNIST/raw",
    classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    packed=(
        "bdb82020997e1d708af4cf47b453dcf7",
        "e144d726b3acfaa3e44228e80efcd344",
        "5c965bf0a639b31b8f53240b1b52f4d7",
        "7320c461ea6c1c855c0b718fb2a4b134",
    ),
)


def published_as(dataset: IdxConfig) -> IdxFiles:
    """The files that the configuration asks for."""
    match dataset:
        case MNISTConfig():
            return MNIST
        case FashionMNISTConfig():
            return FASHION_MNIST
        case KMNISTConfig():
            return KMNIST
    raise AssertionError(f"no IDX files for {type(dataset).__name__}")


def load_idx(dataset: IdxConfig) -> Files:
    """Read 60,000 and 10,000 grey images as ``(N, 28, 28, 1)``, after getting the files where needed.

    Raises `ConfigError` where files are missing, cannot be downloaded, or are not what was published.
    """
    return read_files(published_as(dataset), idx_source(dataset))


def check_files(dataset: IdxConfig) -> None:
    """Raise `ConfigError` where a file is missing and cannot be had; looks at names only."""
    published = published_as(dataset)
    source = idx_source(dataset)
    for file in published.files():
        check_file_obtainable(file, source, also=unpacked_names(published, file))


def idx_source(dataset: IdxConfig) -> Source:
    """Where the files are looked for; Debian's folder too, unless the environment names another."""
    debian = isinstance(dataset, FashionMNISTConfig) and not os.environ.get("RESNET_TRAIN_FASHION_MNIST")
    return source_of(dataset, others=(DEBIAN,) if debian else ())


def unpacked_names(published: IdxFiles, file: PublishedFile) -> tuple[str, ...]:
    """Under which names the file is taken besides: its own without .gz, where its content can be verified."""
    return (file.name.removesuffix(".gz"),) if published.unpacked else ()


def read_files(published: IdxFiles, source: Source) -> Files:
    """Get and read the four files; raises as `load_idx`."""
    with one_line_errors(source.root):
        paths = [obtain_file(file, source, also=unpacked_names(published, file)) for file in published.files()]
        sums = published.unpacked or published.packed
        arrays = [read_idx(path, md5, packed_sum=not published.unpacked) for path, md5 in zip(paths, sums, strict=True)]
    train, test = (Images(images[..., None], labels.astype(np.int64)) for images, labels in (arrays[:2], arrays[2:]))
    sizes = {"train": len(train.labels), "test": len(test.labels)}
    return Files(train, test, published.classes, identify(published.classes, sizes, " ".join(sums)))


def read_idx(path: Path, md5: str, *, packed_sum: bool) -> NDArray[np.uint8]:
    """The array of one file, ``(N, H, W)`` or ``(N,)``; ``md5`` is that of the file, or of what it holds.

    Raises `ConfigError` if it is not what was published.
    """
    content = path.read_bytes()
    if packed_sum:
        check_md5(path, md5, md5_of_bytes(content))
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(
            f"{path}: expected a gzip file, got one that is corrupt ({error}); delete it, or provide it again"
        ) from error
    got = md5_of_bytes(content)
    if not packed_sum and got != md5:
        raise ConfigError(f"{path}: expected MD5 {md5} of what it holds, got {got}; provide the official file")
    dimensions = content[3]
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    assert len(content) == 4 + 4 * dimensions + math.prod(shape), "a published file of another form"
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
