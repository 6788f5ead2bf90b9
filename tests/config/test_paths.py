"""Users without a home folder: containers with a numeric user id, without HOME and without an entry in passwd."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_train.config.paths import expanded, user_cache
from resnet_train.errors import ConfigError

NOBODY = """
import os, pwd, sys
os.environ.pop("HOME", None), os.environ.pop("XDG_CACHE_HOME", None)
def unknown(user): raise KeyError(user)
pwd.getpwuid = unknown  # what the C library answers in a container with a numeric user id
from resnet_train.train import main
main()
"""


def as_nobody(folder: Path, *overrides: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_a_user_without_a_home_trains(tmp_path: Path, tiny_overrides: tuple[str, ...]) -> None:
    code, out, err = as_nobody(tmp_path, *tiny_overrides, "epochs=1")
    assert (code, err) == (0, ""), err
    assert "test accuracy" in out


@pytest.mark.slow
@pytest.mark.parametrize("key", ["dataset.root", "dataset.cache", "dataset.labels", "init_from"])
def test_a_home_that_is_not_there_is_named(tmp_path: Path, key: str) -> None:
    code, _, err = as_nobody(tmp_path, "dataset=imagefolder", "dataset.root=x", f"{key}=~/photos")
    assert code == 2
    assert err == (
        f"resnet-train: {key}: expected a path, got '~/photos', and no home folder is known here; write the path in "
        f"full, or set HOME\n"
    )


def test_a_stranger_has_no_home() -> None:
    with pytest.raises(ConfigError, match=r"^dataset\.root: expected a path, got '~stranger/x', and no home folder"):
        expanded("dataset.root", "~stranger/x")


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert user_cache() == tmp_path / ".cache/resnet-train"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert user_cache() == tmp_path / ".cache/resnet-train", "empty is as good as not set"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache() == tmp_path / "xdg/resnet-train"


def test_an_empty_data_root_is_refused(refusal: Callable[[str], str]) -> None:
    assert refusal("dataset.root=''") == (
        "dataset.root: expected the folder that holds the files of cifar10, or will hold them, got nothing; "
        "add dataset.root=FOLDER, or unset RESNET_TRAIN_DATA where it is empty"
    )
