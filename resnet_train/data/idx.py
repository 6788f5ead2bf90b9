"""Fashion-MNIST from its official IDX files: gzip, verified by the MD5 of what is inside (gzip's headers differ).

Debian and Ubuntu have them in a package, ``dataset-fashion-mnist``. IDX: big-endian sizes behind a magic number whose
last byte is their count (Yann LeCun's page on MNIST).
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnet_train.config.dataset import FashionMNISTConfig
from resnet_train.data.files import Files, Images, folder_of, one_line_errors
from resnet_train.errors import ConfigError
from resnet_train.runs.data_identity import identify

# MD5 of the unpacked files. Those of the archives stand in torchvision 0.29, datasets/mnist.py; these are of what the
# official archives hold.
FILES = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
# The order of the labels: table 2 of Xiao et al. 2017 (arXiv 1708.07747).
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def load_fashion_mnist(dataset: FashionMNISTConfig) -> Files:
    """Read 60,000 and 10,000 grey images as ``(N, 28, 28, 3)``, three equal channels.

    Raises `ConfigError` where files are missing or are not what was published.
    """
    check_files(dataset)
    root = folder_of(dataset.root)
    with one_line_errors(root):
        arrays = [read_idx(root, name, md5) for name, md5 in FILES.items()]
    train, test = (
        Images(np.repeat(images[..., None], 3, axis=3), labels.astype(np.int64))
        for images, labels in (arrays[:2], arrays[2:])
    )
    sizes = {"train": len(train.labels), "test": len(test.labels)}
    return Files(train, test, CLASSES, identify(CLASSES, sizes, " ".join(FILES.values())))


def check_files(dataset: FashionMNISTConfig) -> None:
    """Raise `ConfigError` where a file is missing; looks at names only."""
    root = folder_of(dataset.root)
    for name in FILES:
        if not any(path.is_file() for path in places(root, name)):
            raise ConfigError(
                f"dataset.root: expected {name}.gz in {root}, got none; on Debian and Ubuntu install "
                f"dataset-fashion-mnist, or name the folder of the four official files with dataset.root=FOLDER"
            )


def places(root: Path, name: str) -> tuple[Path, Path]:
    """Packed or not."""
    return root / f"{name}.gz", root / name


def read_idx(root: Path, name: str, md5: str) -> NDArray[np.uint8]:
    """The array of one file, ``(N, H, W)`` or ``(N,)``; raises `ConfigError` if it is not what was published."""
    path = next(path for path in places(root, name) if path.is_file())
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(
            f"{path}: expected a gzip file, got one that is corrupt ({error}); provide it again"
        ) from error
    got = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if got != md5:
        raise ConfigError(f"{path}: expected MD5 {md5} of what it holds, got {got}; provide the official file")
    dimensions = content[3]
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
