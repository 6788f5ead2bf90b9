"""Images through a network as a stream: read on threads beside the computing, answered in order, a few at a time.

On a CPU each thread reads a batch and computes it too, with its share of PyTorch's threads: batches are independent,
so that no thread waits for another in the middle of a layer. Elsewhere the threads read, and compute in turn.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from resnet_train.errors import ConfigError

MOST_WORKERS = 8  # reading small images holds Python's lock nearly all of the time
CPU_BATCH = 128  # images of one thread at most: larger batches are no faster, and the first answer is later
BATCH_BYTES = 1 << 23  # of files in a batch: a few large photographs are a second's work

Pixels = NDArray[np.uint8]  # (S, S, C)
Source = str | Path | Pixels | ConfigError  # to be read, read already, or found unreadable already
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Pace:
    """How the work is dealt out."""

    workers: int
    threads: int  # of PyTorch's, for each worker
    batch_size: int
    in_turn: bool  # one worker computes at a time

    def for_few(self, number: int) -> Pace:
        """The pace for ``number`` images, fewer than fill all workers' batches: the same for each worker."""
        workers = max(1, min(self.workers, number))
        threads = self.threads if self.in_turn else self.threads * self.workers // workers
        return replace(self, workers=workers, threads=threads, batch_size=max(1, math.ceil(number / workers)))


def pace(batch_size: int, device: torch.device | None) -> Pace:
    """For a network on ``device`` that takes ``batch_size`` images at once; None if its threads are not PyTorch's.

    ``batch_size`` bounds the memory: workers that compute at the same time share it.
    """
    threads = torch.get_num_threads()
    if device is None or device.type != "cpu":
        return Pace(min(MOST_WORKERS, os.cpu_count() or 1), threads, batch_size, in_turn=True)
    workers = min(MOST_WORKERS, threads)
    return Pace(workers, threads // workers, max(1, min(CPU_BATCH, batch_size // workers)), in_turn=False)


def answers(
    sources: Iterable[Source],
    *,
    read: Callable[[str | Path], Pixels],
    compute: Callable[[list[Pixels]], list[Answer]],
    pace: Pace,
) -> Generator[Answer | ConfigError, None, None]:
    """The answer for each of ``sources``, in their order, or why it could not be read.

    Takes no more of them ahead than keep the workers busy. What ``read`` raises as `ConfigError` is an answer; whatever
    ``compute`` raises ends the stream.
    """
    sources = iter(sources)
    first = list(islice(sources, pace.workers * pace.batch_size))
    if len(first) < pace.workers * pace.batch_size:
        pace = pace.for_few(len(first))
    batches = grouped(chain(first, sources), size=pace.batch_size)
    turn: AbstractContextManager[object] = threading.Lock() if pace.in_turn else nullcontext()
    stopping = threading.Event()

    def work(batch: list[Source]) -> list[Answer | ConfigError]:
        found: list[Pixels | ConfigError] = []
        for source in batch:
            if stopping.is_set():
                return []
            try:
                found.append(read(source) if isinstance(source, str | Path) else source)
            except ConfigError as error:
                found.append(error)
        readable = [one for one in found if not isinstance(one, ConfigError)]
        with turn:
            computed = iter(compute(readable) if readable else ())
        return [one if isinstance(one, ConfigError) else next(computed) for one in found]

    if pace.workers == 1:
        for batch in batches:
            yield from work(batch)
        return
    before, pending = torch.get_num_threads(), deque[Future[list[Answer | ConfigError]]]()
    pool = ThreadPoolExecutor(pace.workers, "images", torch.set_num_threads, (pace.threads,))
    try:
        for batch in batches:
            pending.append(pool.submit(work, batch))
            if len(pending) == 2 * pace.workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        stopping.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # a worker's own is also what threads begin with that start later


def grouped(sources: Iterable[Source], *, size: int) -> Iterator[list[Source]]:
    """Batches of at most ``size``, and of not much more than `BATCH_BYTES` of files."""
    batch: list[Source] = []
    num_bytes = 0
    for source in sources:
        batch.append(source)
        num_bytes += bytes_of(source)
        if len(batch) == size or num_bytes >= BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def bytes_of(source: Source) -> int:
    """Size of the file that is still to be read."""
    try:
        return os.stat(source).st_size if isinstance(source, str | Path) else 0
    except (OSError, ValueError):  # told when it is read; a NUL in its name
        return 0
