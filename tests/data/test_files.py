"""What all readers of files share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_train.config.dataset import Cifar10Config
from resnet_train.data.cifar import load_cifar
from resnet_train.errors import ConfigError


def test_a_root_that_cannot_be_written_is_one_line(
    tmp_path: Path, cifar10: Callable[..., Cifar10Config], exactly: Callable[[str], str]
) -> None:
    (tmp_path / "file").touch()
    root = tmp_path / "file" / "root"
    message = (
        f"dataset.root: expected to read and write files in {root}, got Not a directory ({root}); see to its "
        f"permissions and free space, or add dataset.root=FOLDER"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        load_cifar(cifar10(root, download=True, mirrors=("http://127.0.0.1:1/",)))
