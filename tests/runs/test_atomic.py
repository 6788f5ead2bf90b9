"""Atomic writes: the old file or the new one, and nothing beside it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from resnet_train.runs.atomic import link_atomically, replacing, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ("ü\n", b"\xff\r\n", ""):
        write_atomically(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_mode_is_that_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(ValueError, match="half"), replacing(path) as temporary:
        temporary.write_text("ne")
        assert temporary.parent == path.parent
        assert str(os.getpid()) in temporary.name, "two processes do not share it"
        raise ValueError("half")
    assert (path.read_text(), names(tmp_path)) == ("old", ["file"])
    with pytest.raises(OSError, match="No such file"):
        write_atomically(tmp_path / "missing" / "file", "new")


def test_what_a_killed_process_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / f".file.{os.getpid()}.tmp").write_text("left")
    write_atomically(tmp_path / "file", "new")
    assert ((tmp_path / "file").read_text(), names(tmp_path)) == ("new", ["file"])


def test_content_and_name_are_on_disk_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file before the rename, the folder after it."""
    order: list[str] = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append("replace"), rename(old, new)))
    write_atomically(tmp_path / "file", "text")
    assert order == [f"{tmp_path}/.file.{os.getpid()}.tmp", "replace", str(tmp_path)]


def test_a_link_is_another_name_or_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for content in ("one", "two"):
        write_atomically(source, content)
        link_atomically(source, target)
        link_atomically(source, target)
        assert target.samefile(source)

    def no_links(_source: Path, _target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    link_atomically(source, target)
    assert target.read_text() == "two"
    assert not target.samefile(source)
    assert names(tmp_path) == ["source", "target"]
