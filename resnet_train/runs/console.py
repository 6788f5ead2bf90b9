"""What a person sees while a run trains: a header, a progress bar on a terminal, and one line per epoch everywhere."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)


class Progress:
    """The progress bar: steps done, time left, and the newest loss, accuracy, learning rate and images per second."""

    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar

    @property
    def visible(self) -> bool:
        """Whether anybody looks; where nobody does, nothing needs to be computed for it."""
        return not self._bar.disable

    def advance(self) -> None:
        """Count one step."""
        self._bar.update()

    def show(self, loss: float, accuracy: float, *, lr: float, images_per_second: float) -> None:
        """Set the numbers that stand behind the bar; they appear when it is drawn next."""
        self._bar.set_postfix_str(
            f"loss {loss:.3f}, accuracy {100 * accuracy:.1f} %, lr {lr:.3g}, {images_per_second:,.0f} images/s",
            refresh=False,
        )


@contextmanager
def progress_bar(*, done: int, total: int) -> Iterator[Progress]:
    """A bar from ``done`` to ``total`` steps on stderr if that is a terminal; log lines appear above it."""
    # tqdm begins the postfix with a comma
    form = "{percentage:3.0f}% {bar:20} {n_fmt}/{total_fmt} steps, {remaining} left{postfix}"
    bar: tqdm[Any] = tqdm(total=total, initial=done, disable=None, dynamic_ncols=True, leave=False, bar_format=form)
    with bar:
        if bar.disable:
            yield Progress(bar)
        else:
            with logging_redirect_tqdm():
                yield Progress(bar)


def header(rows: list[tuple[str, str]]) -> None:
    """Log what is about to run, one property a line."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        logger.info("%s  %s", name.ljust(width), printable(value))


def printable(text: str) -> str:
    """``text`` of a stranger's file with control characters, line ends and changes of direction as escapes."""
    return "".join(
        character
        if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
        else character.encode("unicode_escape").decode()
        for character in text
    )


def duration(seconds: float) -> str:
    """``3725.2`` to ``1:02:05``."""
    return str(timedelta(seconds=round(seconds)))


def count(number: int) -> str:
    """``269722`` to ``269,722``."""
    return f"{number:,}"
