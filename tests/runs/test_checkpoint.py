"""Checkpoints: what is written is read, everything corrupt is found, and no failure costs what was there before."""

from __future__ import annotations

import errno
import io
import logging
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_train.errors import ConfigError, RunError
from resnet_train.runs.checkpoint import (
    FORMAT,
    Checkpoints,
    CorruptCheckpoint,
    read_checkpoint,
    unseal,
    write_checkpoint,
)

LENGTH = len("sha256:") + 64  # of what follows the archive


def content(step: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "step": step,
        "weights": torch.arange(12.0).reshape(3, 4) + step,
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "plain": {"list": [1, 2.5, None, "word", True], "tuple": (1, 2)},
        **more,
    }


def assert_content(found: dict[str, Any], step: int = 0) -> None:
    expected = content(step)
    assert found.keys() == expected.keys()
    assert (found["step"], found["plain"]) == (step, expected["plain"])
    for key in ("weights", "half"):
        assert found[key].dtype == expected[key].dtype
        assert torch.equal(found[key], expected[key])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "step-00000000.pt"
    write_checkpoint(path, content())
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def full_disk(limit: int = 1000) -> Iterator[None]:
    """No file of this process can grow beyond ``limit`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ------------------------------------------------------------------------------------------------------- write and read


def test_what_is_written_is_read(path: Path) -> None:
    assert_content(read_checkpoint(path))


def test_torch_reads_the_file_as_it_is(path: Path) -> None:
    assert_content(torch.load(path, weights_only=True))


def test_the_same_content_gives_the_same_bytes(path: Path) -> None:
    """So that two runs can be compared by their files."""
    other = path.parent / "elsewhere" / path.name
    other.parent.mkdir()
    write_checkpoint(other, content())
    assert other.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_mode_is_that_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        path = Checkpoints(tmp_path, keep=1).save(content(), step=1, best=True)
    finally:
        os.umask(before)
    for name in (path.name, "last.pt", "best.pt"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


# ----------------------------------------------------------------------------------------------------------- corruption


def refused(path: Path, sealed: bytes) -> str:
    """Why ``sealed`` is refused."""
    path.write_bytes(sealed)
    with pytest.raises(CorruptCheckpoint) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_truncation_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for length in (0, 1, 70, 71, 72, *range(100, len(whole), 97), *range(len(whole) - LENGTH - 30, len(whole))):
        assert "truncated" in refused(path, whole[:length]), length


def test_every_flipped_bit_is_found(path: Path) -> None:
    """Also in the ZIP headers and in the checksum itself; torch alone loads many of these files without a word."""
    whole = path.read_bytes()

    def flipped(bit: int) -> bytes:
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    for bit in range(8 * len(whole)):
        with pytest.raises(CorruptCheckpoint):
            unseal(flipped(bit))
    for bit in random.Random(0).sample(range(8 * len(whole)), 200):
        refused(path, flipped(bit))
    path.write_bytes(whole)
    assert_content(read_checkpoint(path))


def other_archive() -> bytes:
    buffer = io.BytesIO()
    torch.save(content(1), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda whole: whole + b"\0", "it does not end in a checksum: truncated, or not one of our checkpoints"),
        (lambda whole: whole + whole, "its checksum does not fit its content"),
        (lambda whole: b"\0" + whole, "its checksum does not fit its content"),
        (lambda whole: bytes(len(whole)), "it does not end in a checksum: truncated, or not one of our checkpoints"),
        (lambda _: other_archive(), "it does not end in a checksum: truncated, or not one of our checkpoints"),
        (lambda whole: other_archive()[:-2] + whole[-LENGTH - 2 :], "its checksum does not fit its content"),
        (lambda whole: whole[:-64] + whole[-64:].upper(), "its checksum does not fit its content"),
    ],
    ids=["appended", "twice", "prepended", "zeros", "another's, unsealed", "another's, sealed", "another spelling"],
)
def test_other_bytes_are_found(path: Path, change: Callable[[bytes], bytes], reason: str) -> None:
    assert refused(path, change(path.read_bytes())) == reason


def test_what_is_sealed_is_unsealed_unchanged(seal: Callable[[bytes], bytes]) -> None:
    sealed = seal(other_archive())
    assert unseal(sealed) == sealed
    assert sealed[: len(other_archive()) - 2] == other_archive()[:-2]


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "missing.pt", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(CorruptCheckpoint, match=reason):
            read_checkpoint(path)


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "step-00000001.pt", tmp_path / "trace"
    write_checkpoint(path, content(trap=Touch(trace)))
    with pytest.raises(CorruptCheckpoint, match=r"it holds more than tensors and plain values \(posix\.mkdir\)"):
        read_checkpoint(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the trap works"


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({**content(), "format": FORMAT + 1}, "its format is 2, expected 1"),
        ({"weights": torch.zeros(1)}, "its format is None, expected 1"),
        ([1, 2], "its format is 'list', expected 1"),
    ],
)
def test_another_format(path: Path, other: Any, reason: str) -> None:
    write_checkpoint(path, other)
    with pytest.raises(CorruptCheckpoint) as caught:
        read_checkpoint(path)
    assert str(caught.value) == reason


# ------------------------------------------------------------------------------------------------------------ atomicity


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    before = path.read_bytes()
    with full_disk(), pytest.raises(OSError, match="File too large"):
        write_checkpoint(path, content(1))
    with pytest.raises(Exception, match="pickle"):
        write_checkpoint(path, content(1, trap=lambda: None))
    assert files(path.parent) == [path.name]
    assert path.read_bytes() == before


def test_whoever_reads_meanwhile_gets_the_old_or_the_new(path: Path) -> None:
    """One thread writes again and again; every read finds a whole checkpoint, and never an older one than before."""
    written = threading.Event()

    def write_many() -> None:
        for step in range(60):
            write_checkpoint(path, content(step, ballast=torch.full((20_000,), step)))
        written.set()

    thread = threading.Thread(target=write_many)
    thread.start()
    seen = []
    while not written.is_set():
        found = read_checkpoint(path)
        assert found["weights"][0, 0] == found["step"]
        seen.append(found["step"])
    thread.join()
    assert seen == sorted(seen)
    assert len(set(seen)) > 1
    assert files(path.parent) == [path.name]


@pytest.mark.slow
def test_a_full_disk_is_a_run_error_and_costs_no_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(content(1), step=1)
    with full_disk(), pytest.raises(RunError) as caught:
        checkpoints.save(content(2), step=2, best=True)
    assert str(caught.value) == (
        f"cannot write the checkpoint {folder}/step-00000002.pt: File too large; the checkpoints before it are whole. "
        f"Free the disk or make it writable, then resume"
    )
    assert files(folder) == ["last.pt", "step-00000001.pt"]
    newest = checkpoints.newest()
    assert newest is not None
    assert_content(newest[1], step=1)


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"^cannot write the checkpoint .*/step-00000001\.pt: Not a directory; the "):
        Checkpoints(tmp_path / "file" / "checkpoints", keep=1).save(content(1), step=1)


# ---------------------------------------------------------------------------------------------- newest, best, retention


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def break_file(path: Path) -> None:
    """Corrupt one file, and not what else is linked to it."""
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:-1])


def test_none_where_there_are_none(checkpoints: Checkpoints) -> None:
    assert checkpoints.newest() is None
    assert not any(checkpoints.folder.glob("*.pt"))
    checkpoints.folder.mkdir()
    (checkpoints.folder / "notes.txt").touch()
    (checkpoints.folder / ".step-00000001.pt.123.tmp").touch()
    assert checkpoints.newest() is None
    assert not any(checkpoints.folder.glob("*.pt"))


def test_the_newest_is_the_one_with_the_most_steps(checkpoints: Checkpoints) -> None:
    """By number, whatever the width: as text 10 comes before 9, and 100,000,000 before 99,999,999."""
    checkpoints.folder.mkdir()
    for name, step in [("step-9", 9), ("step-10", 10), ("step-00000002", 2), ("step-x", 99)]:
        write_checkpoint(checkpoints.folder / f"{name}.pt", content(step))
    newest = checkpoints.newest()
    assert newest is not None
    assert newest[0].name == "step-10.pt"
    assert_content(newest[1], step=10)
    for step in (99_999_999, 100_000_000):
        checkpoints.save(content(step), step=step)
        newest = checkpoints.newest()
        assert newest is not None
        assert_content(newest[1], step=step)


def test_as_many_as_asked_stay_and_the_best_one(checkpoints: Checkpoints) -> None:
    for step in (8, 9, 10, 11):
        path = checkpoints.save(content(step), step=step, best=step == 8)
        assert path == checkpoints.folder / f"step-{step:08d}.pt"
        assert_content(read_checkpoint(checkpoints.folder / "last.pt"), step=step)
        assert_content(checkpoints.best(), step=8)
        kept = [f"step-{number:08d}.pt" for number in (8, 9, 10, 11) if step - 2 < number <= step]
        assert files(checkpoints.folder) == ["best.pt", "last.pt", *kept]
    checkpoints.save(content(12), step=12, best=True)
    assert_content(checkpoints.best(), step=12)
    assert any(checkpoints.folder.glob("*.pt"))


def test_a_checkpoint_takes_the_space_of_one_file(checkpoints: Checkpoints) -> None:
    path = checkpoints.save(content(1), step=1, best=True)
    assert path.samefile(checkpoints.folder / "last.pt")
    assert path.samefile(checkpoints.folder / "best.pt")


def no_links(_source: Path, _target: Path) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_without_hard_links_there_are_copies(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_links)
    for step in (1, 2, 3):
        path = checkpoints.save(content(step), step=step, best=step == 1)
    assert not path.samefile(checkpoints.folder / "last.pt")
    assert_content(read_checkpoint(checkpoints.folder / "last.pt"), step=3)
    assert_content(checkpoints.best(), step=1)
    assert files(checkpoints.folder) == ["best.pt", "last.pt", "step-00000002.pt", "step-00000003.pt"]


def test_a_copy_that_fails_leaves_nothing_behind(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save(content(1), step=1)
    monkeypatch.setattr(os, "link", no_links)
    copyfile = shutil.copyfile

    def copy_to_full_disk(source: Path, target: Path) -> None:
        with full_disk():
            copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", copy_to_full_disk)
    with pytest.raises(RunError, match="File too large"):
        checkpoints.save(content(2), step=2)
    assert files(checkpoints.folder) == ["last.pt", "step-00000001.pt", "step-00000002.pt"]
    assert_content(read_checkpoint(checkpoints.folder / "last.pt"), step=1)


def test_a_corrupt_one_is_named_and_the_one_before_is_taken(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (9, 10):
        path = checkpoints.save(content(step), step=step)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])  # and with it last.pt, which is the same file
    with caplog.at_level(logging.WARNING):
        newest = checkpoints.newest()
    assert newest is not None
    assert newest[0].name == "step-00000009.pt"
    assert_content(newest[1], step=9)
    assert caplog.messages == [
        f"checkpoint {path} is corrupt (it does not end in a checksum: truncated, or not one of our checkpoints); "
        f"trying the one before it"
    ]
    assert any(checkpoints.folder.glob("*.pt"))
    path.write_bytes(whole)
    newest = checkpoints.newest()
    assert newest is not None
    assert_content(newest[1], step=10)


def test_the_links_are_the_last_resort(checkpoints: Checkpoints) -> None:
    for step in (1, 2, 3):
        checkpoints.save(content(step), step=step, best=step == 1)
    for step in (2, 3):
        break_file(checkpoints.folder / f"step-{step:08d}.pt")
    for name, step in (("last.pt", 3), ("best.pt", 1)):
        newest = checkpoints.newest()
        assert newest is not None
        assert newest[0].name == name
        assert_content(newest[1], step=step)
        (checkpoints.folder / name).unlink()


def test_none_that_is_whole_is_an_error_that_names_each_file_once(checkpoints: Checkpoints) -> None:
    """last.pt, as long as it is the same file as the newest, is not worth a second look."""
    for step in (1, 2):
        checkpoints.save(content(step), step=step).write_bytes(b"")
    reason = "it does not end in a checksum: truncated, or not one of our checkpoints"
    named = [f"step-00000002.pt: {reason}", f"step-00000001.pt: {reason}"]
    for names in (named, [*named, f"last.pt: {reason}"]):
        assert any(checkpoints.folder.glob("*.pt"))
        with pytest.raises(ConfigError) as caught:
            checkpoints.newest()
        assert str(caught.value) == (
            f"no whole checkpoint in {checkpoints.folder}: {'; '.join(names)}. Provide one of them from a backup, or "
            f"start a new run"
        )
        break_file(checkpoints.folder / "step-00000002.pt")


@pytest.mark.parametrize("corrupt", [Path.unlink, break_file])
def test_the_best_one_missing_or_corrupt(checkpoints: Checkpoints, corrupt: Callable[[Path], None]) -> None:
    checkpoints.save(content(1), step=1, best=True)
    path = checkpoints.folder / "best.pt"
    corrupt(path)
    with pytest.raises(
        ConfigError, match=rf"^cannot read the best checkpoint {re.escape(str(path))}: .+; restore it and resume$"
    ):
        checkpoints.best()


def test_a_corrupt_later_checkpoint_does_not_push_out_whole_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save({"format": FORMAT}, step=5)
    (tmp_path / "step-00000010.pt").write_bytes(b"corrupt")
    checkpoints.save({"format": FORMAT}, step=7)
    assert [path.name for path in sorted(tmp_path.glob("step-*.pt"))] == ["step-00000007.pt"]


# ------------------------------------------------------------------------------------------------------ beside training


def test_what_is_written_beside_is_what_was_there_when_it_began(checkpoints: Checkpoints) -> None:
    changing = content(1)
    checkpoints.begin_save(changing, step=1, best=True)
    changing["weights"].fill_(7)
    changing["step"] = 7
    checkpoints.begin_save(changing, step=7)
    changing["weights"].zero_()
    checkpoints.finish()
    assert files(checkpoints.folder) == ["best.pt", "last.pt", "step-00000001.pt", "step-00000007.pt"]
    assert_content(read_checkpoint(checkpoints.folder / "step-00000001.pt"), step=1)
    last = read_checkpoint(checkpoints.folder / "last.pt")
    assert last["step"] == 7
    assert (last["weights"] == 7).all()


@pytest.mark.slow
@pytest.mark.parametrize("told_by", ["check", "finish", "begin_save"])
def test_what_fails_beside_is_told_once(tmp_path: Path, told_by: str) -> None:
    (tmp_path / "file").touch()
    checkpoints = Checkpoints(tmp_path / "file" / "checkpoints", keep=1)
    checkpoints.check()
    checkpoints.begin_save(content(1), step=1)
    with pytest.raises(RunError, match=r"^cannot write the checkpoint .*/step-00000001\.pt: Not a directory; the "):
        while True:  # check tells it as soon as it is known
            checkpoints.begin_save(content(2), step=2) if told_by == "begin_save" else getattr(checkpoints, told_by)()
            assert told_by == "check"
    checkpoints.check()
    checkpoints.finish()


@pytest.mark.slow
def test_a_process_that_ends_first_ends_its_checkpoint(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from resnet_train.runs.checkpoint import FORMAT, Checkpoints\n"
        "content = {'format': FORMAT, 'weights': torch.ones(4_000_000)}\n"
        "Checkpoints(Path(sys.argv[1]), keep=1).begin_save(content, step=3)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    assert read_checkpoint(tmp_path / "last.pt")["weights"].sum() == 4_000_000


@pytest.mark.slow
def test_no_more_file_handles(tmp_path: Path) -> None:
    """Nothing can be opened: neither rows nor checkpoints; what is there stays whole."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save({"format": FORMAT}, step=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(RunError, match="Too many open files; the checkpoints before it are whole"):
            checkpoints.save({"format": FORMAT}, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    newest = checkpoints.newest()
    assert newest is not None
    assert newest[0].name == "step-00000001.pt"
