"""Images go into folders by class, and never over one another."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from resnet_train.errors import ConfigError, RunError
from resnet_train.inference import sort_into
from resnet_train.inference.sort_into import Sorter, folder_names


def test_names_of_classes_become_names_of_folders() -> None:
    classes = (
        "cat",
        "T-shirt/top",
        "Cat",
        "..",
        "",
        "con",
        "a: b?",
        "end. ",
        "..\\up",
        "猫" * 100,
        "x\x00y",
        "T-shirt_top",
    )
    assert list(folder_names(classes).values()) == [
        *("cat", "T-shirt_top", "Cat-2", "__", "_", "_con", "a_ b_", "end._", "_._up", "猫" * 60, "x_y"),
        "T-shirt_top-2",
    ]


@pytest.mark.parametrize("how", ["copy", "link", "move"])
def test_images_lie_in_folders(how: str, tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    source.write_bytes(b"pixels")
    os.utime(source, (1, 1))
    target = Sorter(tmp_path / "sorted", how=how)(str(source), "cat")
    assert target == tmp_path / "sorted" / "cat" / "a.png"
    assert (target.read_bytes(), target.stat().st_mtime) == (b"pixels", 1)
    assert source.exists() == (how != "move")
    assert target.stat().st_nlink == (2 if how == "link" else 1)


@pytest.mark.parametrize("how", ["copy", "link", "move"])
def test_nothing_is_overwritten(how: str, tmp_path: Path) -> None:
    sorter = Sorter(tmp_path / "sorted", how=how)
    names = []
    for folder, content in (("x", b"1"), ("y", b"2"), ("z", b"3")):
        source = tmp_path / folder / "a.png"
        source.parent.mkdir()
        source.write_bytes(content)
        names.append(sorter(str(source), "cat"))
    assert [name.name for name in names] == ["a.png", "a-2.png", "a-3.png"]
    assert [name.read_bytes() for name in names] == [b"1", b"2", b"3"]


@pytest.mark.parametrize("how", ["copy", "link"])
def test_a_second_time_changes_nothing(how: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"pixels")
    sorter = Sorter(tmp_path / "sorted", how=how)
    assert sorter(str(tmp_path / "a.png"), "cat") == sorter(str(tmp_path / "a.png"), "cat")
    assert [path.name for path in (tmp_path / "sorted" / "cat").iterdir()] == ["a.png"]


def test_a_move_between_file_systems_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a.png").write_bytes(b"pixels")
    target = Sorter(tmp_path / "sorted", how="move")(str(tmp_path / "a.png"), "cat")
    assert target.read_bytes() == b"pixels"
    assert not (tmp_path / "a.png").exists()
    with pytest.raises(RunError, match=r"a\.png: cannot link it into .*: Invalid cross-device link"):
        Sorter(tmp_path / "sorted", how="link")(str(target), "dog")


def test_half_a_copy_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object, writing: object) -> None:
        writing.write(b"pix")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(sort_into.shutil, "copyfileobj", fail)
    (tmp_path / "a.png").write_bytes(b"pixels")
    with pytest.raises(KeyboardInterrupt):
        Sorter(tmp_path / "sorted", how="copy")(str(tmp_path / "a.png"), "cat")
    assert list((tmp_path / "sorted" / "cat").iterdir()) == []


def test_what_cannot_be_sorted_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--sort-into: expected a folder, got .*file, which is a file"):
        Sorter(tmp_path / "file", how="copy")
    with pytest.raises(RunError, match=r"gone\.png: cannot copy it into .*: No such file or directory"):
        Sorter(tmp_path / "sorted", how="copy")(str(tmp_path / "gone.png"), "cat")
