"""Street View House Numbers from the official .mat files, verified by MD5; scipy reads them. Without torch."""

from __future__ import annotations

import io
from importlib.util import find_spec

import numpy as np

from resnet_train.config.dataset import SVHNConfig
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

# The sums stand in torchvision 0.29, datasets/svhn.py. The 531,131 images of extra_32x32.mat are not read.
TRAIN = PublishedFile("SVHN", "train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373")
TEST = PublishedFile("SVHN", "test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3")
CLASSES = tuple("0123456789")


def check_files(dataset: SVHNConfig) -> None:
    """Raise `ConfigError` where a file is missing and cannot be had, or scipy is; looks at names only."""
    if find_spec("scipy") is None:
        raise ConfigError('dataset=svhn: its .mat files need scipy, got none; pip install "resnet-train[svhn]"')
    for file in (TRAIN, TEST):
        check_file_obtainable(file, source_of(dataset))


def load_svhn(dataset: SVHNConfig) -> Files:
    """Read 73,257 and 26,032 images ``(N, 32, 32, 3)``, after getting the files where needed.

    Raises `ConfigError` where files are missing, cannot be downloaded, or are not what was published.
    """
    check_files(dataset)
    return read_files(TRAIN, TEST, source_of(dataset))


def read_files(train: PublishedFile, test: PublishedFile, source: Source) -> Files:
    """Get and read both files; raises as `load_svhn`."""
    images, test_images = (read_mat(file, source) for file in (train, test))
    sizes = {"train": len(images.labels), "test": len(test_images.labels)}
    return Files(images, test_images, CLASSES, identify(CLASSES, sizes, f"{train.md5} {test.md5}"))


def read_mat(file: PublishedFile, source: Source) -> Images:
    """One split: ``X`` ``(32, 32, 3, N)``, and ``y`` ``(N, 1)``, in which 10 means the digit 0."""
    from scipy.io import loadmat

    with one_line_errors(source.root):
        path = obtain_file(file, source)
        content = path.read_bytes()
    check_md5(path, file.md5, md5_of_bytes(content))
    arrays = loadmat(io.BytesIO(content))
    images = np.ascontiguousarray(arrays["X"].transpose(3, 0, 1, 2))
    return Images(images, arrays["y"].reshape(-1).astype(np.int64) % 10)
