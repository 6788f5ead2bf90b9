"""What is said about missing data before a run, and that it is said at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resnet_train.config.dataset import Cifar10Config, Cifar100Config, SyntheticConfig
from resnet_train.data.available import check_available
from resnet_train.data.cifar import CIFAR10, load_cifar
from resnet_train.errors import ConfigError


def test_missing_data_names_the_three_ways(
    tmp_path: Path, cifar10: Callable[..., Cifar10Config], ways: str, exactly: Callable[[str], str]
) -> None:
    message = (
        f"dataset.root: expected cifar-10-batches-py/ or cifar-10-python.tar.gz in {tmp_path}, got neither; "
        f"add dataset.download=true, {ways}"
    )
    for function in (check_available, load_cifar):
        with pytest.raises(ConfigError, match=exactly(message)):
            function(cifar10(tmp_path))


def test_missing_cifar100_names_its_own_files(
    tmp_path: Path, common: dict[str, Any], exactly: Callable[[str], str]
) -> None:
    dataset = Cifar100Config(name="cifar100", root=str(tmp_path), download=False, mirrors=[], **common)
    message = f"dataset.root: expected cifar-100-python/ or cifar-100-python.tar.gz in {tmp_path}, got neither; ..."
    with pytest.raises(ConfigError, match=exactly(message)):
        check_available(dataset)


def test_a_folder_without_a_batch_names_the_batch(
    tmp_path: Path, cifar10: Callable[..., Cifar10Config], ways: str, exactly: Callable[[str], str]
) -> None:
    (tmp_path / CIFAR10.folder).mkdir()
    (tmp_path / CIFAR10.folder / "data_batch_1").touch()
    message = (
        f"dataset.root: expected cifar-10-batches-py/ or cifar-10-python.tar.gz in {tmp_path}, got "
        f"cifar-10-batches-py/ without data_batch_2; add dataset.download=true, {ways}"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        check_available(cifar10(tmp_path))


def test_download_without_mirrors_is_refused(
    tmp_path: Path, cifar10: Callable[..., Cifar10Config], exactly: Callable[[str], str]
) -> None:
    message = "dataset.root: ... got neither, and no dataset.mirrors to get it from; add dataset.download=true, ..."
    with pytest.raises(ConfigError, match=exactly(message)):
        check_available(cifar10(tmp_path, download=True))


def test_folder_archive_mirror_or_nothing_needed_are_available(
    synthetic: SyntheticConfig,
    tmp_path: Path,
    cifar10_root: Path,
    cifar10: Callable[..., Cifar10Config],
) -> None:
    check_available(cifar10(cifar10_root))
    check_available(cifar10(tmp_path / "none", download=True, mirrors=("https://localhost/none",)))
    (tmp_path / CIFAR10.filename).touch()
    check_available(cifar10(tmp_path))
    check_available(synthetic)


def test_a_tilde_in_root_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cifar10: Callable[..., Cifar10Config]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / CIFAR10.filename).touch()
    check_available(cifar10(Path("~")))


def test_checking_does_not_import_torch() -> None:
    command = (
        "import sys; from resnet_train.data import available, download; "
        "sys.exit(bool({'torch', 'PIL', 'scipy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", command], check=True, cwd=Path(__file__).parents[2])
