"""``resnet-predict``: what a trained network sees in images, one by one or by the hundred thousand."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from resnet_train.cli.program import Parser, end_with
from resnet_train.cli.streams import NobodyReads, Results
from resnet_train.data.decode import UnreadableImage
from resnet_train.data.folder_names import some
from resnet_train.data.image_paths import list_images, read_images
from resnet_train.errors import ConfigError
from resnet_train.inference.find import find
from resnet_train.inference.rows import Csv, Json, Rows, Table, width_of
from resnet_train.inference.sort_into import Sorter, folder_names
from resnet_train.runs.console import count, duration, printable

if TYPE_CHECKING:
    from resnet_train.inference.classifier import Classifier

PROGRAM = "resnet-predict"
STDIO = "-"  # standard input among the images, standard output of --csv
UNKNOWN_NAME = 40  # columns for names that standard input is still to give
BAR = "{percentage:3.0f}% {bar} {n_fmt}/{total_fmt}, {remaining} left, {rate_fmt}"


def parser() -> argparse.ArgumentParser:
    """The flags of the program."""
    found = Parser(
        prog=PROGRAM,
        description="Ask a trained network what it sees in images. They may have any size and kind; they are\n"
        "prepared as in training. Results go to standard output, everything else to standard\n"
        "error. An image that cannot be read is named, the others go on, and the exit code is 1.",
        epilog="examples:\n  resnet-predict latest cat.png\n"
        "  resnet-predict latest photos/ --csv predictions.csv --sort-into sorted/\n"
        "  find photos -name '*.jpg' | resnet-predict model.onnx - --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("run", metavar="RUN", help="a run directory, latest, a checkpoint, or a file of resnet-export")
    found.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="files, folders (with all that is in them), patterns such as 'photos/**', or - for standard input: the "
        "bytes of one image, or paths, one a line or separated by NUL",
    )
    found.add_argument("--top", type=int, default=3, metavar="N", help="the N likeliest classes (default 3)")
    found.add_argument("--all", action="store_true", help="with --csv and --json: the probability of every class too")
    found.add_argument("--csv", metavar="FILE", help="write a table for programs instead, - for standard output")
    found.add_argument("--json", action="store_true", help="print a JSON object a line instead, as results come")
    found.add_argument("--sort-into", type=Path, metavar="DIR", help="copy each image into DIR/CLASS/, over none there")
    how = found.add_mutually_exclusive_group()
    how.add_argument("--link", action="store_true", help="with --sort-into: a second name of the same file, no copy")
    how.add_argument("--move", action="store_true", help="with --sort-into: move the images")
    found.add_argument(
        "--checkpoint", default="result", metavar="WHICH", help="last, best or a file (default: what the result is of)"
    )
    found.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps (default auto)")
    return found


def main() -> None:
    """``resnet-predict``, ``python -m resnet_train.commands.predict``."""
    stdout = sys.stdout  # itself: unlike a log, a result that nobody takes is an end, or an error
    arguments = parser().parse_intermixed_args()
    end_with(PROGRAM, lambda: run(arguments, stdout or sys.stdout))


def run(arguments: argparse.Namespace, stdout: TextIO) -> int:
    """Predict, print, write; returns 1 where an image could not be read. Raises `ConfigError` and `RunError`."""
    check(arguments)
    path = find(arguments.run)
    images = gather(arguments)
    logging.basicConfig(stream=sys.stderr, format=f"{PROGRAM}: %(message)s")
    logging.getLogger("resnet_train").setLevel(logging.INFO)  # kernels that are compiled, once
    from resnet_train.inference.load import load  # torch

    classifier = load(path, checkpoint=arguments.checkpoint, device=arguments.device)
    say(f"{classifier.origin}, {classifier.runs_on}")
    with results(arguments, stdout) as out, progress(images, hidden=out.on_terminal) as bar:
        try:
            outcome = predict(classifier, images, out, rows(arguments, classifier.classes, images, out), arguments, bar)
        except NobodyReads:  # | head -1
            return 0
    if outcome.failed or outcome.counts.total() > 1:
        say(outcome.sentence())
    return 1 if outcome.failed or images.problems else 0


def check(arguments: argparse.Namespace) -> None:
    """Raise `ConfigError` for flags that do not go together."""
    if arguments.top < 1:
        raise ConfigError(f"--top: expected a number above 0, got {arguments.top}")
    if arguments.csv and arguments.csv != STDIO and Path(arguments.csv).suffix.lower() != ".csv":
        raise ConfigError(f"--csv: expected - or a file that ends in .csv, got {arguments.csv}")
    if arguments.json and arguments.csv == STDIO:
        raise ConfigError("--csv - and --json: expected one of them, since there is one standard output")
    if arguments.all and not (arguments.csv or arguments.json):
        raise ConfigError("--all: expected --csv or --json with it; for people --top 10 shows more classes")
    if (arguments.link or arguments.move) and not arguments.sort_into:
        raise ConfigError(f"--{'link' if arguments.link else 'move'}: expected --sort-into DIR with it")


def say(text: str) -> None:
    """Tell a person, above the progress bar if there is one."""
    tqdm.write(f"{PROGRAM}: {printable(text)}", file=sys.stderr)
    sys.stderr.flush()


# ----------------------------------------------------------------------------------------------------------- images


@dataclass
class Images:
    """What is to be looked at: pairs of a name to print and a path, or the bytes of an image."""

    pairs: Iterable[tuple[str, str | bytes]]
    total: int | None  # None where standard input lists them
    longest: int  # columns of the longest name
    problems: int


def gather(arguments: argparse.Namespace) -> Images:
    """Find the images; what is not there is said at once. Raises `ConfigError` where there are none at all."""
    listed = list_images([name for name in arguments.images if name != STDIO], but=arguments.sort_into)
    pairs: Iterable[tuple[str, str | bytes]] = ((path, path) for path in listed.paths)
    found, longest = len(listed.paths), max(map(width_of, listed.paths), default=0)
    total: int | None = found
    if STDIO in arguments.images and sys.stdin is not None:
        read = read_images(open(sys.stdin.fileno(), "rb", closefd=False))  # noqa: SIM115 (read to the end)
        if isinstance(read, bytes):
            if arguments.sort_into:
                raise ConfigError("--sort-into: expected files, got an image on standard input, which has no name")
            pairs, total, longest = chain(pairs, [(STDIO, read)]), found + 1, max(longest, 1)
        elif first := next(read, None):
            pairs, total = chain(pairs, ((path, path) for path in chain([first], read))), None
            longest = max(longest, UNKNOWN_NAME)
    if total == 0:
        raise ConfigError(f"expected images, got none: {some(listed.problems) or listed.notes() or 'no paths'}")
    for problem in listed.problems:
        say(problem)
    if listed.left_out:
        say(f"left out {listed.notes()}")
    return Images(pairs, total, longest, len(listed.problems))


# --------------------------------------------------------------------------------------------------------- results


@contextmanager
def results(arguments: argparse.Namespace, stdout: TextIO) -> Iterator[Results]:
    """Standard output, or a new CSV file."""
    if not arguments.csv or arguments.csv == STDIO or arguments.json:
        yield Results(stdout, "standard output")
        return
    try:
        # Names of files that are no text stay the bytes that they are.
        with open(arguments.csv, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield Results(file, arguments.csv)
    except OSError as error:
        raise ConfigError(f"--csv: cannot write {arguments.csv}: {error.strerror or error}") from error


def rows(arguments: argparse.Namespace, classes: Sequence[str], images: Images, out: Results) -> Rows | None:
    """The form of the results; None where sorted images are the result."""
    top = min(arguments.top, len(classes))
    if arguments.json:
        return Json(top=top, everything=arguments.all)
    if arguments.csv:
        return Csv(classes, top=top, everything=arguments.all, sorted_too=bool(arguments.sort_into))
    if arguments.sort_into:
        return None
    columns = shutil.get_terminal_size().columns if out.on_terminal else None
    return Table(classes, top=top, longest_name=images.longest, columns=columns)


@contextmanager
def progress(images: Images, *, hidden: bool) -> Iterator[tqdm[Any]]:
    """A bar on a terminal (standard error), unless the rows themselves appear there."""
    known = BAR if images.total is not None else None
    with tqdm(
        total=images.total, disable=True if hidden else None, leave=False, dynamic_ncols=True, bar_format=known
    ) as bar:
        yield bar


# ------------------------------------------------------------------------------------------------------- predicting


@dataclass
class Outcome:
    """What became of the images."""

    counts: Counter[str] = field(default_factory=Counter)  # by class
    failed: int = 0
    seconds: float = 0.0

    def sentence(self) -> str:
        """How many, how fast, and of which classes."""
        total = self.counts.total()
        taken = f"{self.seconds:.1f} s" if self.seconds < 60 else duration(self.seconds)
        text = f"{count(total)} image{'s' * (total != 1)}"
        if total:
            classes = [f"{label} {count(number)}" for label, number in self.counts.most_common()]
            text += f" in {taken} ({total / self.seconds:,.0f} a second): {some(classes)}"
        return text + f"; {count(self.failed)} could not be read" * bool(self.failed)


def predict(
    classifier: Classifier,
    images: Images,
    out: Results,
    form: Rows | None,
    arguments: argparse.Namespace,
    bar: tqdm[Any],
) -> Outcome:
    """Every image through the network, and its line to ``out``."""
    outcome, begun = Outcome(), time.perf_counter()
    sorter = sorter_of(arguments)
    folders = folder_names(classifier.classes)
    names, pictures = tee(images.pairs)
    if form is not None:
        out.write(form.head)
    with closing(classifier.stream(picture for _, picture in pictures)) as answers:
        for (name, _), answer in zip(names, answers, strict=True):
            bar.update()
            if isinstance(answer, ConfigError):
                outcome.failed += 1
                got = answer.reason if isinstance(answer, UnreadableImage) else "bytes that are none"
                say(f"{name}: expected an image, got {got}")
                continue
            outcome.counts[answer.label] += 1
            file = sorter(name, folders[answer.label]) if sorter else None
            if form is not None:
                out.write(form.row(name, answer, file))
    outcome.seconds = time.perf_counter() - begun
    return outcome


def sorter_of(arguments: argparse.Namespace) -> Sorter | None:
    """What sorts the images, if they are to be sorted."""
    how = "move" if arguments.move else "link" if arguments.link else "copy"
    return Sorter(arguments.sort_into, how=how) if arguments.sort_into else None


if __name__ == "__main__":
    main()
