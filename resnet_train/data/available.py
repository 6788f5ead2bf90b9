"""Whether a data set can be had, before anything is imported or read that takes time."""

from __future__ import annotations

from resnet_train.config.dataset import CifarConfig, DatasetConfig, FashionMNISTConfig, ImageFolderConfig
from resnet_train.data import cifar, idx, imagefolder
from resnet_train.data.files import folder_of, one_line_errors


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
                imagefolder.class_names(imagefolder.split_folders(root)[0])
