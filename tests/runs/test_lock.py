"""Locks between real processes: where the system has them, where it has none, and where they do nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resnet_train.runs.lock import Held, LostLock, hold, seems_held

# Holds the lock until a line comes, then says whether it is still its own. Times are short, so that tests are.
HOLDER = """
import sys
from pathlib import Path
from resnet_train.runs import lock
lock.HEARTBEAT_SECONDS, lock.STALE_SECONDS, lock.SETTLE_SECONDS = 0.1, 1.5, 0.2
try:
    with lock.hold(Path(sys.argv[1])) as held:
        print("held", flush=True)
        sys.stdin.readline()
        held.check()
        print("still mine", flush=True)
except (lock.Held, lock.LostLock) as error:
    print(f"{type(error).__name__}: {error}", flush=True)
"""
# What network file systems do to flock, and other machines.
PRELOAD = r"""
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
extern "C" int flock(int, int) {
  if (strcmp(getenv("FLOCK"), "does nothing") == 0) return 0;
  errno = ENOLCK;
  return -1;
}
extern "C" int gethostname(char* name, size_t length) { strncpy(name, getenv("MACHINE"), length); return 0; }
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / ".lock"


@pytest.fixture
def start(path: Path) -> Iterator[Start]:
    """Start a process that asks for the lock; its first word says whether it has it."""
    started = []

    def begin(**env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def preload(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library that takes the place of ``flock`` and ``gethostname`` in a process."""
    folder = tmp_path_factory.mktemp("preload")
    (folder / "locks.cpp").write_text(PRELOAD)
    command = [compiler, "-shared", "-fPIC", "-o", str(folder / "locks.so"), str(folder / "locks.cpp")]
    subprocess.run(command, check=True)
    return str(folder / "locks.so")


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().rstrip("\n")


def ask(process: subprocess.Popen[str]) -> str:
    """What a holder says when it is asked whether the lock is still its own."""
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
    return said(process)


def test_the_holder_is_named_until_it_gives_the_lock_back(path: Path, start: Start) -> None:
    first = start()
    assert said(first) == "held"
    assert said(start()) == f"Held: process {first.pid} on {socket.gethostname()}"
    with pytest.raises(Held, match=f"^process {first.pid} on "), hold(path):
        pass
    assert ask(first) == "still mine"
    first.wait()
    assert path.read_bytes() == b""
    with hold(path) as lock:
        lock.check()


def test_a_killed_process_leaves_nothing_to_wait_for(path: Path, start: Start) -> None:
    first = start()
    assert said(first) == "held"
    first.kill()  # a zombie holds nothing either
    begun = time.monotonic()
    while True:
        try:
            with hold(path):
                break
        except Held:  # it is still dying
            assert time.monotonic() - begun < 10
    assert time.monotonic() - begun < 3


def test_a_report_sees_the_holder_and_leaves_the_file_alone(path: Path, start: Start) -> None:
    assert not seems_held(path)
    first = start()
    assert said(first) == "held"
    before = path.read_bytes()
    assert seems_held(path) and path.read_bytes() == before
    first.kill()
    first.wait()
    assert not seems_held(path) and path.read_bytes() == before


def test_a_report_believes_another_machine_for_as_long_as_it_gives_signs_of_life(path: Path) -> None:
    path.write_text(json.dumps({"process": 1, "host": "elsewhere", "started": "1", "token": "t"}))
    assert seems_held(path)
    os.utime(path, (time.time() - 60, time.time() - 60))
    assert not seems_held(path)
    path.write_text("{}")
    assert not seems_held(path)


@pytest.mark.slow
@pytest.mark.parametrize("flock", ["fails", "does nothing"])
@pytest.mark.parametrize("machines", ["one machine", "two machines"])
def test_where_flock_does_not_work(flock: str, machines: str, start: Start, preload: str) -> None:
    here = {"LD_PRELOAD": preload, "FLOCK": flock, "MACHINE": "a"}
    there = here | ({"MACHINE": "b"} if machines == "two machines" else {})
    first = start(**here)
    assert said(first) == "held"
    assert said(start(**there)) == f"Held: process {first.pid} on a"
    first.kill()
    first.wait()
    second = start(**there)
    assert said(second) == "held"
    assert ask(second) == "still mine"


@pytest.mark.parametrize("flock", ["fails", "does nothing"])
def test_of_two_at_once_one_ends_up_with_it(flock: str, start: Start, preload: str) -> None:
    both = [start(LD_PRELOAD=preload, FLOCK=flock, MACHINE=machine) for machine in "ab"]
    answers = [said(process) for process in both]
    assert sum(answer == "held" for answer in answers) >= 1
    kept = [process for process, answer in zip(both, answers, strict=True) if answer == "held"]
    assert [ask(process) for process in kept].count("still mine") == 1


@pytest.mark.slow
def test_a_holder_that_slept_too_long_notices(start: Start, preload: str) -> None:
    """A laptop that was closed: another process came, and the first leaves the directory to it."""
    first, second = (({"LD_PRELOAD": preload, "FLOCK": "fails", "MACHINE": machine}) for machine in "ab")
    sleeper = start(**first)
    assert said(sleeper) == "held"
    sleeper.send_signal(signal.SIGSTOP)
    other = start(**second)
    assert said(other) == "held"
    sleeper.send_signal(signal.SIGCONT)
    assert f"was taken over by process {other.pid} on b while this process was in it" in ask(sleeper)
    assert ask(other) == "still mine"


def test_a_folder_that_was_made_anew_is_another(path: Path, start: Start) -> None:
    first = start()
    assert said(first) == "held"
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    second = start()
    assert said(second) == "held"
    assert ask(first).startswith(f"LostLock: {path.parent} was taken over by process {second.pid} on ")
    first.wait()
    assert ask(second) == "still mine"


def test_a_folder_that_is_gone_is_left_to_those_who_write(path: Path) -> None:
    """It may be back in a moment, as a network's are; what cannot be written is told by the writer."""
    with hold(path) as lock:
        path.parent.rename(path.parent.with_name("elsewhere"))
        lock.check()
        path.parent.mkdir()
        lock.check()
        path.write_text("something else")
        with pytest.raises(LostLock, match="was taken over by another process"):
            lock.check()
    assert path.read_text() == "something else"


@pytest.mark.parametrize("record", [b"process 1 on somewhere\n", b"\xff\x00", b"{}", b"[1]", b'{"process": "x"}'])
def test_what_else_lies_there_is_written_over(path: Path, record: bytes) -> None:
    path.write_bytes(record)
    with hold(path):
        assert json.loads(path.read_bytes())["process"] == os.getpid()


def test_a_link_is_not_followed(path: Path) -> None:
    target = path.with_name("precious")
    target.write_text("precious")
    path.symlink_to(target)
    with pytest.raises(OSError, match="it is a link, which is not followed; remove it"), hold(path):
        pass
    assert target.read_text() == "precious"


@pytest.mark.parametrize(
    "record", [b'{"process": 1e400, "host": "h", "started": null, "token": "t"}', b"[" * 4096, b"{}"]
)
def test_a_strangers_record_is_nobodys(record: bytes, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_bytes(record)
    with hold(tmp_path / ".lock") as lock:
        lock.check()
