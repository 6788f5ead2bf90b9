"""Atomic writes: the old file or the new one, and nothing beside it."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from resnet_train.runs import atomic
from resnet_train.runs.atomic import (
    link_atomically,
    read_regular,
    remove_leftovers,
    replacing,
    sync,
    write_atomically,
)


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


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = [".file.12.tmp", ".file.12-0123456789abcdef.tmp", ".other.12-0123456789abcdef.tmp", ".old.1.tmp"]
    kept = [".file.tmp", ".file.12-x.tmp", "file.12.tmp", ".other.13.tmp"]
    for name in [*left, *kept]:
        (tmp_path / name).touch()
    for name in (".other.12-0123456789abcdef.tmp", ".old.1.tmp"):
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".file.9.tmp").symlink_to(tmp_path / "precious")
    remove_leftovers(tmp_path, own="file")
    assert names(tmp_path) == sorted([*kept, "precious"])
    remove_leftovers(tmp_path / "missing", own="file")


def test_content_and_name_are_on_disk_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file before the rename, the folder after it."""
    order: list[str] = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append("replace"), rename(old, new)))
    write_atomically(tmp_path / "file", "text")
    assert re.fullmatch(rf"{tmp_path}/\.file\.{os.getpid()}-[0-9a-f]{{16}}\.tmp", order.pop(0))
    assert order == ["replace", str(tmp_path)]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_file_systems_that_cannot_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """What SMB, FUSE and WSL answer, for folders at least; a broken disk is another matter."""

    def fails(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    write_atomically(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(tmp_path / "file", "new")


def test_links_are_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    for name in ("file", "copy", "read"):
        (tmp_path / name).symlink_to("precious")
    write_atomically(tmp_path / "file", "new")
    link_atomically(tmp_path / "file", tmp_path / "copy")
    assert [(tmp_path / name).read_text() for name in ("precious", "file", "copy")] == ["mine", "new", "new"]
    for use in (read_regular, sync):
        with pytest.raises(OSError, match="it is a link, which is not followed; remove it"):
            use(tmp_path / "read")


def test_only_plain_files_of_a_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is not a regular file"):
        read_regular(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(bytes(10))
    assert read_regular(tmp_path / "file", limit=10) == bytes(10)
    with pytest.raises(OSError, match="it has more than 9 bytes"):
        read_regular(tmp_path / "file", limit=9)


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


@pytest.mark.parametrize("times", [1, 3, 100])
def test_a_file_that_another_program_has_open_is_tried_again(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows refuses it, which is nowhere else to be had."""
    path, refused, rename = tmp_path / "file", [], os.replace
    write_atomically(path, "old")

    def replace(source: Path, target: Path) -> None:
        if len(refused) < times:
            error = PermissionError(errno.EACCES, "Access is denied", str(source))
            error.winerror = 5  # type: ignore[attr-defined]
            refused.append(error)
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(atomic, "PAUSES_SECONDS", (0.001,) * 5)
    if times < 6:
        write_atomically(path, "new")
    else:
        with pytest.raises(PermissionError, match=r"another program \(.+\) has it open: .*file"):
            write_atomically(path, "new")
    assert (len(refused), names(tmp_path)) == (min(times, 6), ["file"])
    assert path.read_text() == ("new" if times < 6 else "old")


def test_what_may_not_be_replaced_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "PAUSES_SECONDS", (60.0,))

    def replace(*_: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError, match="Permission denied"):
        write_atomically(tmp_path / "file", "new")
