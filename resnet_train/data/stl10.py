"""STL-10 from the official binary archive: its labelled images, verified by MD5. Without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from resnet_train.config.dataset import STL10Config
from resnet_train.data.archive import Archive, obtain
from resnet_train.data.files import Files, Images, one_line_errors
from resnet_train.data.published import Source, check_md5, md5_of_bytes, source_of
from resnet_train.runs.data_identity import identify

# The sums stand in torchvision 0.29, datasets/stl10.py; the classes in class_names.txt of the archive.
STL10 = Archive(
    title="STL-10",
    filename="stl10_binary.tar.gz",
    md5="91f7769df0f17e558f3565bffb0c7dfb",
    folder="stl10_binary",
    train={
        "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
        "train_y.bin": "5a34089d4802c674881badbb80307741",
    },
    test={
        "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
        "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
    },
)
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def load_stl10(dataset: STL10Config) -> Files:
    """Read 5,000 and 8,000 images ``(N, 96, 96, 3)``, after getting and unpacking the archive where needed.

    Of the archive the 100,000 images without labels are not unpacked. Raises `ConfigError` where the files are missing,
    cannot be downloaded, or are not what was published.
    """
    return read_archive(STL10, source_of(dataset))


def read_archive(archive: Archive, source: Source) -> Files:
    """Get and read the four files; raises as `load_stl10`."""
    with one_line_errors(source.root):
        folder = obtain(archive, source)
        train, test = (read_split(folder, files) for files in (archive.train, archive.test))
    sizes = {"train": len(train.labels), "test": len(test.labels)}
    return Files(train, test, CLASSES, identify(CLASSES, sizes, " ".join(archive.files.values())))


def read_split(folder: Path, files: dict[str, str]) -> Images:
    """Images, whose planes of red, green and blue are stored by column, and labels from 1."""
    contents = []
    for name, md5 in files.items():
        content = (folder / name).read_bytes()
        check_md5(folder / name, md5, md5_of_bytes(content))
        contents.append(np.frombuffer(content, np.uint8))
    images, labels = contents
    by_column = images.reshape(-1, 3, 96, 96)  # (N, channel, column, row)
    return Images(np.ascontiguousarray(by_column.transpose(0, 3, 2, 1)), labels.astype(np.int64) - 1)
