"""MedMNIST from its official .npz files, verified by MD5. Without torch."""

from __future__ import annotations

import io

import numpy as np

from resnet_train.config.dataset import MedMNISTConfig
from resnet_train.config.medmnist import SUBSETS, Subset
from resnet_train.data.files import Files, Images, one_line_errors
from resnet_train.data.published import PublishedFile, Source, check_md5, md5_of_bytes, obtain_file, source_of
from resnet_train.runs.data_identity import identify


def file_of(name: str, subset: Subset) -> PublishedFile:
    """The file of a subset."""
    return PublishedFile(f"MedMNIST's {name}", f"{name}.npz", subset.md5, "medmnist")


def load_medmnist(dataset: MedMNISTConfig) -> Files:
    """Read the three official splits of ``dataset.subset``, after getting the file where needed.

    Images are ``(N, 28, 28, C)``, of as many channels as were published. Raises `ConfigError` where the file is
    missing, cannot be downloaded, or is not what was published.
    """
    return read_subset(dataset.subset, SUBSETS[dataset.subset], source_of(dataset))


def read_subset(name: str, subset: Subset, source: Source) -> Files:
    """Get and read one file; raises as `load_medmnist`."""
    with one_line_errors(source.root):
        path = obtain_file(file_of(name, subset), source)
        content = path.read_bytes()
    check_md5(path, subset.md5, md5_of_bytes(content))
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        train, val, test = (
            Images(
                arrays[f"{split}_images"].reshape(-1, 28, 28, subset.channels),
                arrays[f"{split}_labels"].reshape(-1).astype(np.int64),
            )
            for split in ("train", "val", "test")
        )
    sizes = {"train": len(train.labels), "val": len(val.labels), "test": len(test.labels)}
    identity = identify(subset.classes, sizes, subset.md5)
    return Files(train, test, subset.classes, identity, val=val)
