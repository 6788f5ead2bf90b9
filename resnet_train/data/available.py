"""What can be told of a data set by names alone, before anything is imported or read that takes time."""

from __future__ import annotations

from resnet_train.config.dataset import (
    Cifar100Config,
    CifarConfig,
    DatasetConfig,
    FashionMNISTConfig,
    ImageFolderConfig,
    SyntheticConfig,
)
from resnet_train.data import cifar, idx, imagefolder
from resnet_train.data.files import folder_of, one_line_errors
from resnet_train.data.folder_layout import layout


def check_available(dataset: DatasetConfig) -> None:
    """Raise `ConfigError` where the files are missing and nothing can get them; looks at names only."""
    match dataset:
        case CifarConfig():
            archive, root = cifar.archive_of(dataset), folder_of(dataset.root)
            with one_line_errors(root):
                cifar.check_obtainable(archive, root, mirrors=dataset.mirrors, download=dataset.download)
        case FashionMNISTConfig():
            idx.check_files(dataset)
        case ImageFolderConfig():
            root = folder_of(dataset.root)
            with one_line_errors(root):
                imagefolder.class_names(layout(dataset, root).train)


def num_classes(dataset: DatasetConfig) -> int:
    """Number of classes; of the user's own images, that of their folders. Raises `ConfigError` where there are none."""
    match dataset:
        case Cifar100Config():
            return 100
        case CifarConfig():
            return 10
        case FashionMNISTConfig():
            return len(idx.CLASSES)
        case SyntheticConfig():
            return dataset.num_classes
        case ImageFolderConfig():
            root = folder_of(dataset.root)
            with one_line_errors(root):
                return len(imagefolder.class_names(layout(dataset, root).train))
    raise AssertionError(f"no classes for {type(dataset).__name__}")
