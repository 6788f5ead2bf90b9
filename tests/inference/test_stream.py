"""Answers come in order, from any number of workers, with few images in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_train.errors import ConfigError
from resnet_train.inference import stream
from resnet_train.inference.stream import Pace, Pixels, answers, grouped, pace


def read(path: str | Path) -> Pixels:
    """The pixel that a path names, the earlier ones later."""
    if not str(path).isdigit():
        raise ConfigError(f"{path}: no number")
    time.sleep(0.002 / (1 + int(path) % 7))
    return np.full((1, 1, 3), int(path) % 256, np.uint8)


def compute(pixels: list[Pixels]) -> list[int]:
    return [int(one[0, 0, 0]) for one in pixels]


PACES = [
    Pace(1, 1, 4, in_turn=False),
    Pace(3, 1, 4, in_turn=False),
    Pace(3, 1, 4, in_turn=True),
    Pace(2, 1, 1000, in_turn=False),
]


@pytest.mark.parametrize("chosen", PACES, ids=str)
@pytest.mark.parametrize("number", [0, 1, 5, 12, 50])
def test_answers_come_in_order(chosen: Pace, number: int) -> None:
    paths = [str(index) for index in range(number)]
    assert list(answers(iter(paths), read=read, compute=compute, pace=chosen)) == list(range(number))


@pytest.mark.parametrize("chosen", PACES, ids=str)
def test_what_cannot_be_read_is_an_answer_in_its_place(chosen: Pace) -> None:
    sources = ["0", "x", ConfigError("bad"), np.full((1, 1, 3), 7, np.uint8), "4", *["y"] * 9, "5"]
    found = list(answers(sources, read=read, compute=compute, pace=chosen))
    assert [str(one) for one in found] == ["0", "x: no number", "bad", "7", "4", *["y: no number"] * 9, "5"]


@pytest.mark.parametrize("chosen", PACES[:3], ids=str)
def test_images_are_taken_as_they_are_needed(chosen: Pace) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "1"

    found = answers(endless(), read=read, compute=compute, pace=chosen)
    for _ in range(100):
        assert next(found) == 1
    found.close()
    assert taken <= 100 + 3 * chosen.workers * chosen.batch_size
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]


@pytest.mark.parametrize("chosen", PACES[:3], ids=str)
def test_a_failing_network_ends_the_stream(chosen: Pace) -> None:
    def fail(_: list[Pixels]) -> list[int]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        list(answers(["1"] * 40, read=read, compute=fail, pace=chosen))


def test_one_computes_at_a_time_where_it_has_to_be() -> None:
    inside, most = 0, 0

    def watched(pixels: list[Pixels]) -> list[int]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.002)
        inside -= 1
        return compute(pixels)

    list(answers(["1"] * 60, read=read, compute=watched, pace=Pace(4, 1, 3, in_turn=True)))
    assert most == 1


def test_workers_share_pytorchs_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    seen: set[int] = set()

    def watched(pixels: list[Pixels]) -> list[int]:
        seen.add(torch.get_num_threads())
        return compute(pixels)

    list(answers(["1"] * 60, read=read, compute=watched, pace=Pace(2, 3, 3, in_turn=False)))
    assert seen == {3}
    assert torch.get_num_threads() == before
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [before]
    cpu = torch.device("cpu")
    for threads, expected in ((1, (1, 1, 128)), (2, (2, 1, 128)), (6, (6, 1, 83)), (24, (8, 3, 62))):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found = pace(500, cpu)
        assert (found.workers, found.threads, found.batch_size, found.in_turn) == (*expected, False)
        assert pace(1, cpu).batch_size == 1
        assert pace(500, torch.device("cuda")).in_turn and pace(500, None).batch_size == 500


def test_few_images_are_dealt_out_evenly() -> None:
    whole = Pace(8, 2, 60, in_turn=False)
    assert whole.for_few(1) == Pace(1, 16, 1, in_turn=False)
    assert whole.for_few(3) == Pace(3, 5, 1, in_turn=False)
    assert whole.for_few(100) == Pace(8, 2, 13, in_turn=False)
    assert Pace(8, 16, 60, in_turn=True).for_few(1) == Pace(1, 16, 1, in_turn=True)


def test_large_files_make_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BATCH_BYTES", 1000)
    files = []
    for number, size in enumerate((10, 10, 10, 10, 600, 600, 10)):
        files.append(tmp_path / str(number))
        files[-1].write_bytes(bytes(size))
    sizes = [len(batch) for batch in grouped([*files, "nowhere", "\0"], size=3)]
    assert sizes == [3, 3, 3]
    assert [len(batch) for batch in grouped(files[4:], size=3)] == [2, 1]
