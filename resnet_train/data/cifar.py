"""CIFAR from the official archives: unpacked, verified by MD5 and read as arrays. Without torch.

A folder, an archive or a mirror is as good as another, and no byte is used that differs from what was published.
"""

from __future__ import annotations

import io
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_train.config.dataset import Cifar10Config, Cifar100Config, CifarConfig
from resnet_train.data.archive import Archive, obtain
from resnet_train.data.files import Files, Images, one_line_errors
from resnet_train.data.published import TIMEOUT_SECONDS, check_md5, md5_of_bytes, source_of
from resnet_train.errors import ConfigError
from resnet_train.runs.data_identity import identify


@dataclass(frozen=True)
class CifarArchive(Archive):
    """A .tar.gz of pickled batches."""

    label_key: bytes = b"labels"
    classes_key: bytes = b"label_names"


# The sums of the archives stand on https://www.cs.toronto.edu/~kriz/cifar.html, those of the files in torchvision
# 0.29, datasets/cifar.py.
CIFAR10 = CifarArchive(
    title="CIFAR-10",
    filename="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
    label_key=b"labels",
    classes_key=b"label_names",
)
CIFAR100 = CifarArchive(
    title="CIFAR-100",
    filename="cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
    label_key=b"fine_labels",
    classes_key=b"fine_label_names",
)


def load_cifar(dataset: CifarConfig, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Files:
    """Read CIFAR, after getting and unpacking it where needed; ``timeout_seconds`` without a byte end a download.

    Images are ``(50_000, 32, 32, 3)`` and ``(10_000, 32, 32, 3)``, in the order of the files. Raises `ConfigError`
    where files are missing, cannot be downloaded, are corrupt, or cannot be written.
    """
    archive, source = archive_of(dataset), source_of(dataset, timeout_seconds=timeout_seconds)
    with one_line_errors(source.root):
        return read_batches(archive, obtain(archive, source))


def archive_of(dataset: CifarConfig) -> CifarArchive:
    """What was published under the name that the configuration asks for."""
    match dataset:
        case Cifar10Config():
            return CIFAR10
        case Cifar100Config():
            return CIFAR100
    raise AssertionError(f"no archive for {type(dataset).__name__}")


def read_batches(archive: CifarArchive, folder: Path) -> Files:
    """Read all files of an unpacked archive; raises `ConfigError` for the first that is corrupt."""
    with ThreadPoolExecutor() as pool:  # digests and copies of whole files let other threads run
        train, test = (
            join_batches(
                list(pool.map(lambda name, md5: read_verified(folder / name, md5), files, files.values())),
                archive.label_key,
                pool,
            )
            for files in (archive.train, archive.test)
        )
    ((meta_name, meta_md5),) = archive.meta.items()
    names = read_verified(folder / meta_name, meta_md5)[archive.classes_key]
    classes = tuple(name.decode() for name in names)
    images = {"train": len(train.labels), "test": len(test.labels)}
    published = " ".join(archive.files.values())  # every byte was compared with them
    return Files(train, test, classes, identity=identify(classes, images, published))


def join_batches(batches: list[dict[bytes, Any]], label_key: bytes, pool: ThreadPoolExecutor) -> Images:
    """Join batches of ``data`` uint8 ``(N, 3072)``, planes of red, green and blue one after the other, and labels."""
    planes = [batch[b"data"].reshape(-1, 3, 32, 32) for batch in batches]  # (N, 3, 32, 32)
    ends = list(itertools.accumulate(map(len, planes)))
    images = np.empty((ends[-1], 32, 32, 3), np.uint8)
    parts = np.split(images, ends[:-1])
    list(pool.map(lambda part, one: np.copyto(part, one.transpose(0, 2, 3, 1)), parts, planes))
    return Images(images, np.concatenate([np.asarray(batch[label_key], dtype=np.int64) for batch in batches]))


def read_verified(path: Path, md5: str) -> dict[bytes, Any]:
    """Unpickle the very bytes whose MD5 was checked; raises `ConfigError` if they are not what was published."""
    content = path.read_bytes()
    check_md5(path, md5, md5_of_bytes(content))
    try:
        batch: dict[bytes, Any] = ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{path}: expected arrays and lists, got {error}; delete it and get it from the data set's own page"
        ) from error
    return batch


# numpy renamed numpy.core to numpy._core in 2.0; a pickle names the module of the numpy that wrote it. Asking an array
# how it is rebuilt gives the function without naming either.
RECONSTRUCT = np.empty(0, np.uint8).__reduce__()[0]
ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and plain values, and runs nothing: a pickle can otherwise call any function by its name."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the four names that the files use; raises ``UnpicklingError`` for any other."""
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"a call of {module}.{name}")
        return ADMITTED[module, name]
