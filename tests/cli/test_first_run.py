"""The first command of somebody who has nothing: it trains, and says on what."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from resnet_train.cli import first_run
from resnet_train.cli.compose import load_config
from tests.conftest import Shell


def test_cifar_10_where_it_is(cifar10_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESNET_TRAIN_DATA", str(cifar10_root))
    assert first_run.choose() == (["experiment=quick"], "")


@pytest.mark.slow
def test_synthetic_images_where_no_mirror_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESNET_TRAIN_DATA", str(tmp_path / "file" / "below"))  # cannot be made: no download is tried
    monkeypatch.setenv("RESNET_TRAIN_FASHION_MNIST", str(tmp_path))
    overrides, note = first_run.choose()
    assert load_config(overrides).dataset.name == "synthetic"
    assert note.startswith("NOTE: CIFAR-10 cannot be had here (")
    assert "\n" not in note


def test_fashion_mnist_where_it_lies(fashion_mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESNET_TRAIN_DATA", str(tmp_path / "file" / "below"))
    monkeypatch.setenv("RESNET_TRAIN_FASHION_MNIST", str(fashion_mnist_root))
    overrides, note = first_run.choose()
    assert overrides == ["experiment=quick", "dataset=fashion_mnist"]
    assert "so this run is on Fashion-MNIST; " in note


@pytest.mark.slow
def test_it_is_said_before_and_after(shell: Shell) -> None:
    (shell.folder / "file").touch()
    program = (
        "import sys\nfrom resnet_train.cli import first_run\nfrom resnet_train.train import first\n"
        "choose = first_run.choose\n"
        "first_run.choose = lambda: ([*choose()[0], *sys.argv[1:]], choose()[1])\nfirst()"
    )
    short = (
        "epochs=null",
        "steps=5",
        "schedule.warmup=0",
        "device=cpu",
        "dataset.num_train=100",
        "dataset.num_test=10",
    )
    code, out, err = shell.call(
        *short,
        program=(sys.executable, "-c", program),
        RESNET_TRAIN_DATA=str(shell.folder / "file" / "below"),
        RESNET_TRAIN_FASHION_MNIST=str(shell.folder),
    )
    assert (code, err) == (0, "")
    assert out.startswith("NOTE: CIFAR-10 cannot be had here")
    assert out.splitlines()[-1].startswith("NOTE: CIFAR-10 cannot be had here")
