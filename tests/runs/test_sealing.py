"""Checksums on the way to the file: the same bytes as ever, errors of the disk, and what no thread has to wait for."""

from __future__ import annotations

import errno
import io
import os
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from resnet_train.runs.checkpoint import write_checkpoint
from resnet_train.runs.checkpoint_file import unseal
from resnet_train.runs.sealing import SealingWriter

CONTENT = {"weights": torch.arange(5000.0).reshape(50, 100), "step": 3, "half": torch.ones(7, dtype=torch.bfloat16)}


def archive() -> bytes:
    buffer = io.BytesIO()
    torch.save(CONTENT, buffer)
    return buffer.getvalue()


def test_a_checkpoint_has_the_bytes_that_it_always_had(tmp_path: Path, seal: Callable[[bytes], bytes]) -> None:
    write_checkpoint(tmp_path / "step.pt", CONTENT)
    assert (tmp_path / "step.pt").read_bytes() == seal(archive())


@pytest.mark.parametrize("length", [1, 2, 3, 21, 22, 23, 44, 1000, 10**9])
def test_however_it_is_cut_into_pieces(length: int, seal: Callable[[bytes], bytes]) -> None:
    whole, file = archive(), io.BytesIO()
    sealing = SealingWriter(file)
    for start in range(0, len(whole), length):
        piece = memoryview(whole)[start : start + length]
        assert sealing.write(piece) == len(piece)
        sealing.flush()
    sealing.seal()
    assert file.getvalue() == seal(whole)
    assert unseal(file.getvalue()) == file.getvalue()


@pytest.mark.parametrize("other", [b"", b"short", b"no archive at all, but long enough for one"], ids=len)
def test_what_is_no_archive_is_not_sealed(other: bytes) -> None:
    sealing = SealingWriter(io.BytesIO())
    sealing.write(other)
    with pytest.raises(AssertionError, match="expected a ZIP archive without a comment"):
        sealing.seal()


class FullDisk(io.BytesIO):
    """With room for 3,000 bytes."""

    def write(self, data: object) -> int:
        if self.tell() + memoryview(data).nbytes > 3000:  # type: ignore[arg-type]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)  # type: ignore[arg-type]


def test_the_error_of_the_disk_is_the_one_that_is_raised() -> None:
    """torch would name the place in its archive where it was surprised."""
    sealing = SealingWriter(FullDisk())
    torch.save(CONTENT, sealing)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="No space left on device"):
        sealing.seal()


# 100 MB of tensors, as a ResNet-18 with momentum has.
LARGE = {f"weight {number}": torch.zeros(512, 512, 3, 3) for number in range(11)}


def test_no_byte_is_copied_by_python(tmp_path: Path) -> None:
    """Only while Python copies bytes does the thread that writes keep the one that trains from going on."""
    tracemalloc.start()
    try:
        write_checkpoint(tmp_path / "step.pt", LARGE)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "step.pt").stat().st_size > 100e6
    assert most < 2e6


def longest_pause(work: Callable[[], object]) -> float:
    """Seconds that this thread was kept from running at once, at most, while another did ``work``."""
    thread = threading.Thread(target=work)
    longest, last = 0.0, time.perf_counter()
    thread.start()
    while thread.is_alive():
        time.sleep(0.0005)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    thread.join()
    return longest


@pytest.mark.slow
def test_the_interpreter_is_not_held_while_100_megabytes_are_sealed(tmp_path: Path) -> None:
    """Half as long as one copy of these bytes would hold it, in the best of five tries each: others use this machine.

    Before, the archive was copied three times, and the longest pause was twice that of one copy.
    """
    whole = memoryview(bytes(100_000_000))
    copying = min(longest_pause(lambda: bytes(whole)) for _ in range(5))
    sealing = min(longest_pause(lambda: write_checkpoint(tmp_path / "step.pt", LARGE)) for _ in range(5))
    assert sealing < copying / 2
