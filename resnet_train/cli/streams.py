"""Standard output and error as a best effort: the run directory is what counts, and no run ends because nobody listens.

A reader that went away (``| head -1``), a full disk behind ``>``, a closed terminal, a stream that was closed from the
start, characters that an encoding lacks: none of them reaches the run. `Results` is for what a command is called for.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TextIO

from resnet_train.errors import RunError


class BestEffort(io.TextIOBase):
    """Passes text on to ``stream`` while that works, and drops it from the first failure on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]  # that of the class is None
        """What text is made of there."""
        return "utf-8" if self._stream is None else self._stream.encoding

    def write(self, text: str) -> int:
        """Write what can be written; the whole length in any case."""
        if self._stream is not None:
            try:
                self._stream.write(text)
            except (OSError, ValueError):
                self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush, if there is still somebody to read."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def isatty(self) -> bool:
        """Whether a terminal shows it."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """The descriptor behind it; raises ``OSError`` where there is none."""
        if self._stream is None:
            raise OSError("the stream has failed")
        return self._stream.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stream"], name)

    def _give_up(self) -> None:
        stream, self._stream = self._stream, None
        with suppress(OSError, ValueError, AttributeError):  # what waits in its buffer goes nowhere at exit, either
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
            os.close(nowhere)


def make_best_effort() -> None:
    """Let standard output and error of this process be `BestEffort`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed when the process began
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open to the end)
            continue
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, BestEffort(stream))


class NobodyReads(Exception):
    """The reader of the results went away: no more are wanted."""


@dataclass(frozen=True)
class Results:
    """Where results go, each as soon as it is there; ``stream`` as it was before `make_best_effort`."""

    stream: TextIO
    name: str  # in messages

    @property
    def on_terminal(self) -> bool:
        """Whether a person watches them."""
        return self.stream.isatty()

    def write(self, lines: str) -> None:
        """Write whole lines; raises `NobodyReads`, and `RunError` where they cannot be written."""
        try:
            self.stream.write(lines)
            self.stream.flush()
        except OSError as error:
            sys.stdout.flush()  # if it is this stream it gives up, and is quiet at exit
            if isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL):
                raise NobodyReads from error
            raise RunError(f"{self.name}: cannot write the results: {error.strerror or error}") from error
