"""What a person sees while a run trains: a header, a progress bar on a terminal, and one line per epoch everywhere."""

from __future__ import annotations

import logging
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)

BAR_COLUMNS = 25  # "  4% ### /, 1:01:30 left, ", beside the steps


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
        """Set the numbers behind the bar, as many as there is room for; they appear when it is drawn next."""
        parts = {
            "loss": f"loss {loss:.3f}",
            "accuracy": f"{100 * accuracy:.1f} %",
            "lr": f"lr {lr:.3g}",
            "speed": f"{images_per_second:,.0f} images/s",
        }
        room = shutil.get_terminal_size().columns - BAR_COLUMNS - 2 * len(str(self._bar.total))
        for least in ("accuracy", "lr", "loss"):
            if len(", ".join(parts.values())) > room:
                del parts[least]
        self._bar.set_postfix_str(", ".join(parts.values()), refresh=False)


@contextmanager
def progress_bar(*, done: int, total: int) -> Iterator[Progress]:
    """A bar from ``done`` to ``total`` steps on stderr if that is a terminal; log lines appear above it."""
    # tqdm begins the postfix with a comma
    form = "{percentage:3.0f}% {bar} {n_fmt}/{total_fmt}, {remaining} left{postfix}"
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
