"""What a person sees while a run trains: a header, a progress bar on a terminal, and one line per epoch everywhere."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)

# Programs that printed commands name, and the modules that they are.
MODULES = {"resnet-train": "resnet_train", "tensorboard": "tensorboard.main"}
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
    """A bar from ``done`` to ``total`` steps, on a terminal (stderr) or in a notebook; log lines appear above it."""
    # tqdm begins the postfix with a comma
    form = "{percentage:3.0f}% {bar} {n_fmt}/{total_fmt}, {remaining} left{postfix}"
    kind: Any = tqdm
    options: dict[str, Any] = {"disable": None, "dynamic_ncols": True}
    widget = in_notebook() and find_spec("ipywidgets") is not None
    if widget:
        kind, options = import_module("tqdm.notebook").tqdm, {}
    elif in_notebook():  # the stream of the lines: two streams would leave a bar above each line
        options = {"file": sys.stdout, "mininterval": 0.5, "ncols": 100}
    with kind(total=total, initial=done, leave=False, bar_format=form, **options) as bar:
        if bar.disable or widget:
            yield Progress(bar)
        else:
            with logging_redirect_tqdm():
                yield Progress(bar)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config


@contextmanager
def shown_in_a_notebook() -> Iterator[None]:
    """Show the package's log, a message a line, below the cell of a notebook that has not set up logging."""
    shows = in_notebook() and not logging.getLogger("resnet_train").hasHandlers()
    with log_on_stdout(logging.Formatter("%(message)s")) if shows else nullcontext():
        yield


@contextmanager
def log_on_stdout(formatter: logging.Formatter) -> Iterator[None]:
    """Show the package's log on standard output."""
    root, package = logging.getLogger(), logging.getLogger("resnet_train")
    handler, level = logging.StreamHandler(sys.stdout), package.level
    handler.setFormatter(formatter)
    root.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.setLevel(level)
        root.removeHandler(handler)


def shell_quote(*words: str, windows: bool = os.name == "nt") -> str:
    """A command as a person can type it: for POSIX shells, or for both cmd and PowerShell.

    On Windows in double quotes, whose content both leave alone but for ``%`` in cmd and ``$`` in PowerShell.
    """
    if not windows:
        return shlex.join(words)
    return " ".join(word if re.fullmatch(r"[\w.:/\\=+-]+", word) else _double_quoted(word) for word in words)


def _double_quoted(word: str) -> str:
    """For programs of Windows, which take a backslash for itself unless a double quote follows."""
    return '"' + re.sub(r"(\\+)$", r"\1\1", re.sub(r'(\\*)"', r'\1\1\\"', word)) + '"'


def runnable(program: str, *arguments: str) -> str:
    """A command to print: by the interpreter that runs where ``program``, one of `MODULES`, is not on the PATH."""
    start = [program] if shutil.which(program) else [sys.executable, "-m", MODULES[program]]
    return shell_quote(*start, *arguments)


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
