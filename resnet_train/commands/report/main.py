"""The command line of ``resnet-report``."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from resnet_train.cli.program import Parser, end_with
from resnet_train.cli.streams import NobodyReads, Results
from resnet_train.commands.report.files import as_csv, as_json, as_markdown
from resnet_train.commands.report.groups import gather
from resnet_train.commands.report.metrics import METRICS
from resnet_train.commands.report.records import absolute, find
from resnet_train.commands.report.sweeps import waiting_jobs
from resnet_train.commands.report.table import Report, table
from resnet_train.errors import ConfigError, RunError
from resnet_train.runs.atomic import write_atomically

EVERY_SECONDS = 5.0
PLAIN_WIDTH = 120  # of output that goes into a file or a pipe
FORMATS = {"csv": as_csv, "markdown": as_markdown}


def parser() -> argparse.ArgumentParser:
    """The flags of the program."""
    found = Parser(
        prog="resnet-report",
        description="Runs and sweeps side by side: a row for each configuration, its seeds gathered, and below what "
        "runs, waits, was interrupted or failed.",
        epilog="examples: resnet-report outputs; resnet-report latest --json; resnet-report outputs --sort loss --html "
        "report.html; resnet-report outputs/sweeps/lr --watch",
    )
    found.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="a run, a sweep, a folder of them, or latest: the newest run (default: outputs)",
    )
    found.add_argument(
        "--sort", default="accuracy", metavar="METRIC", help=f"one of {', '.join(METRICS)} (default accuracy)"
    )
    found.add_argument("--csv", metavar="FILE", help="write the rows as CSV; - for standard output")
    found.add_argument("--markdown", metavar="FILE", help="write the rows as a Markdown table; - for standard output")
    found.add_argument("--html", metavar="FILE", help="write one page with curves and all tables")
    found.add_argument("--json", action="store_true", help="print everything as JSON")
    found.add_argument(
        "--watch",
        nargs="?",
        const=str(EVERY_SECONDS),
        metavar="SECONDS",
        help="draw anew every 5 seconds, until Ctrl-C",
    )
    return found


def main() -> None:
    """``resnet-report``, ``python -m resnet_train.commands.report.main``."""
    # Rows and locks of runs that are at work may be read half written: nothing to warn of.
    logging.getLogger("resnet_train").addHandler(logging.NullHandler())
    stdout = sys.stdout  # itself: a report that cannot be written is an error
    arguments = parser().parse_intermixed_args()
    end_with("resnet-report", lambda: run(arguments, Results(stdout or sys.stdout, "standard output")))


def run(arguments: argparse.Namespace, out: Results) -> int:
    """Print, write or watch; raises `ConfigError` and `RunError`."""
    seconds = watch_seconds(arguments)
    check(arguments, out)
    try:
        if seconds is None:
            out.write(write(read(arguments.paths or ["outputs"], arguments.sort), arguments))
        else:
            watch(arguments, seconds, out)
    except NobodyReads:  # | head -1
        return 0
    return 0


def watch_seconds(arguments: argparse.Namespace) -> float | None:
    """Seconds between two drawings, None without ``--watch``; what follows it may be a path instead of a number."""
    if arguments.watch is None:
        return None
    try:
        seconds = float(arguments.watch)
    except ValueError:
        arguments.paths.append(arguments.watch)
        return EVERY_SECONDS
    if not 0.1 <= seconds <= 86_400:
        raise ConfigError(f"--watch: expected 0.1 to 86400 seconds, got {arguments.watch}")
    return seconds


def check(arguments: argparse.Namespace, out: Results) -> None:
    """Raise `ConfigError` for flags that contradict each other or cannot be met."""
    if arguments.sort not in METRICS:
        raise ConfigError(f"--sort: expected one of {', '.join(METRICS)}, got {arguments.sort!r}")
    printed = [f"--{name}" for name in ("csv", "markdown") if getattr(arguments, name) == "-"]
    printed += ["--json"] if arguments.json else []
    if len(printed) > 1:
        raise ConfigError(
            f"expected one format on standard output, got {' and '.join(printed)}; give the others a FILE"
        )
    if arguments.html == "-":
        raise ConfigError("--html: expected a file, got -; a browser opens files")
    if arguments.watch is not None:
        written = [
            *printed,
            *(f"--{name}" for name in (*FORMATS, "html") if getattr(arguments, name) not in (None, "-")),
        ]
        if written:
            raise ConfigError(f"--watch draws on the terminal; expected no {written[0]} beside it")
        if not out.on_terminal:
            raise ConfigError("--watch: expected a terminal to draw on; leave it out to print the report once")


def read(paths: Sequence[str], metric: str) -> Report:
    """Everything below ``paths``; raises `ConfigError` where there is nothing."""
    records = find(paths)
    folders = [absolute(Path(path)) for path in paths if path != "latest"]
    parents = sorted({record.directory.parent for record in records})
    for sweep in (parent for parent in parents if any(parent.is_relative_to(folder) for folder in folders)):
        records += waiting_jobs(sweep, [record for record in records if record.directory.parent == sweep])
    return Report(records, gather(records, metric=metric), metric)


def write(report: Report, arguments: argparse.Namespace) -> str:
    """Write the files that were asked for; returns what to print. Raises `RunError` for one that cannot be written."""
    printed = as_json(report) if arguments.json else None
    for name, form in FORMATS.items():
        target = getattr(arguments, name)
        if target == "-":
            printed = form(report)
        elif target is not None:
            _write_file(Path(target), form(report))
    if arguments.html is not None:
        from resnet_train.commands.report.page import write_page  # plotly is an extra

        write_page(report.groups, report.records, Path(arguments.html), metric=report.metric)
    return f"{table(report, width=_width())}\n" if printed is None else printed


def _write_file(path: Path, text: str) -> None:
    try:
        write_atomically(path, text)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; choose another file") from error


def _width() -> int:
    return shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns


def watch(arguments: argparse.Namespace, seconds: float, out: Results) -> None:
    """Draw anew every so many seconds, on a screen of its own, until Ctrl-C; the last drawing stays behind."""
    if os.name == "nt":
        import_module("colorama").just_fix_windows_console()  # it comes with tqdm there
    text = ""
    out.write("\x1b[?1049h\x1b[?25l")  # the other screen, without a cursor
    try:
        while True:
            report = read(arguments.paths or ["outputs"], arguments.sort)
            text = f"{time.strftime('%H:%M:%S')}  {table(report, width=_width())}\n"
            size = shutil.get_terminal_size()
            lines = [line[: size.columns] for line in text.splitlines()]
            if len(lines) > size.lines:
                hidden = len(lines) - size.lines + 1
                lines = [*lines[: size.lines - 1], f"{hidden} more lines do not fit; without --watch they are printed"]
            out.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines)[:-1] + "\x1b[J")
            time.sleep(seconds)
    finally:
        out.write(f"\x1b[?25h\x1b[?1049l{text}")


if __name__ == "__main__":
    main()
