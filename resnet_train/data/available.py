"""What can be told of a data set by names alone, before anything is imported or read that takes time."""

from __future__ import annotations

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
)
from resnet_train.config.medmnist import SUBSETS
from resnet_train.data import archive, cifar, idx, image_archive, imagefolder, medmnist, published, stl10, svhn
from resnet_train.data.files import folder_of, one_line_errors


def check_available(dataset: DatasetConfig) -> None:
    """Raise `ConfigError` where the files are missing and nothing can get them; looks at names and tables of labels."""
    if isinstance(dataset, SyntheticConfig):
        return
    with one_line_errors(folder_of(getattr(dataset, "root", None))):
        match dataset:
            case CifarConfig():
                archive.check_obtainable(cifar.archive_of(dataset), published.source_of(dataset))
            case IdxConfig():
                idx.check_files(dataset)
            case MedMNISTConfig():
                file = medmnist.file_of(dataset.subset, SUBSETS[dataset.subset])
                published.check_file_obtainable(file, published.source_of(dataset))
            case SVHNConfig():
                svhn.check_files(dataset)
            case STL10Config():
                archive.check_obtainable(stl10.STL10, published.source_of(dataset))
            case ImageArchiveConfig():
                archive.check_obtainable(image_archive.tree_of(dataset).archive, published.source_of(dataset))
            case ImageFolderConfig():
                imagefolder.classes_of(imagefolder.source_of(dataset, folder_of(dataset.root)))


def num_classes(dataset: DatasetConfig) -> int:
    """Number of classes; of the user's own images, that of their labels. Raises `ConfigError` where there are none."""
    match dataset:
        case MedMNISTConfig():
            return len(SUBSETS[dataset.subset].classes)
        case SyntheticConfig():
            return dataset.num_classes
        case ImageFolderConfig():
            root = folder_of(dataset.root)
            with one_line_errors(root):
                return len(imagefolder.classes_of(imagefolder.source_of(dataset, root)))
    assert dataset.NUM_CLASSES is not None, f"no classes for {type(dataset).__name__}"
    return dataset.NUM_CLASSES
