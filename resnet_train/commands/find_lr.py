"""``resnet-train ... find_lr=true``: how the loss goes while the learning rate grows from step to step.

The range test of Smith (arXiv 1506.01186, section 3.3), with exponential steps until the loss diverges, as in fastai
and Lightning. The learning rate of the steepest fall is a good one to begin with, and so is a tenth of that with the
least loss.

The steps are those of the run, with its batches, optimizer, precision, kernels and accumulation, from its first weights
or those of ``init_from``. They are made on a state of their own, and nothing is written.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resnet_train.config.run import Config
from resnet_train.runs.alone import alone
from resnet_train.runs.console import count, printable, progress_bar

if TYPE_CHECKING:
    from resnet_train.training.setup import Run

SMALLEST, LARGEST = 1e-6, 10.0
PER_DECADE = 20  # steps from one power of ten to the next: 140 in all
WINDOW = PER_DECADE // 2  # steps on either side, over which the loss is smoothed
BETA, DIVERGED = 0.9, 4.0  # it has diverged where its moving average is so many times the least one until then
ROWS, COLUMNS = 10, 70  # of the curve: 8 more for its scale fit a terminal of 80
BLOCKS, ASCII = " ▁▂▃▄▅▆▇█", " .:-=+*##"
LEGEND = """\
Loss: of training batches, each once, by a straight line through the steps of
half a decade on either side; change: its slope, per tenfold learning rate.
Begin between the two. It is a guide to the order of magnitude: a warm-up bears
more, and what is best for a whole run is often less than what falls fastest."""


@dataclass(frozen=True)
class Point:
    """One step of the test, smoothed."""

    lr: float
    loss: float
    slope: float  # of the loss, per factor of ten of the learning rate


@dataclass(frozen=True)
class Suggestion:
    """Two learning rates to begin with."""

    steepest: Point
    least: Point

    @property
    def tenth(self) -> float:
        """A tenth of the learning rate with the least loss."""
        return self.least.lr / 10


def find_lr(config: Config) -> str:
    """Make the test; returns it as a curve, a table and a suggestion. Raises `ConfigError` as a run would."""
    from pathlib import Path

    from resnet_train.seeding import set_deterministic
    from resnet_train.training.loop import keep_memory
    from resnet_train.training.memory import out_of_memory_named
    from resnet_train.training.restore import begin_with
    from resnet_train.training.setup import build
    from resnet_train.training.step import allow_tf32

    with alone(), out_of_memory_named(config):
        run = build(config)
        set_deterministic(config.deterministic)
        allow_tf32(run.plan.precision)
        keep_memory(run.plan)
        begun = ""
        if config.init_from:
            begin_with(run.state, Path(config.init_from), classes=run.classes)
            begun = f" from the weights of {printable(config.init_from)}"
        losses = range_test(run)
    end = "" if len(losses) == len(learning_rates()) else ", where the loss diverged"
    title = (
        f"{printable(config.model.name)} on {config.dataset.name}, {config.optim.name}: {count(len(losses))} steps of "
        f"{config.batch_size} images{begun},\n"
        f"learning rates from {SMALLEST:.0e} to {learning_rates()[len(losses) - 1]:.2g}{end}\n"
    )
    points = smoothed(losses)
    found = suggest(points, losses)
    return "\n".join([title, *curve(points, found), "", *table(points, found), "", LEGEND])


def learning_rates() -> list[float]:
    """Those of the steps, each a little larger than the one before."""
    steps = round(math.log10(LARGEST / SMALLEST) * PER_DECADE)
    return [SMALLEST * 10 ** (step / PER_DECADE) for step in range(steps + 1)]


def range_test(run: Run) -> list[float]:
    """The loss before each step with the next learning rate, until it diverges: of at least one step."""
    losses: list[float] = []
    average, least = 0.0, math.inf
    rates = learning_rates()
    with progress_bar(done=0, total=len(rates)) as progress:
        for step, lr in enumerate(rates):
            images, labels = run.train_data.batch(step)
            run.seed_dropout(step)
            output = run.train_step(images, labels, lr=lr)
            loss = output.loss.item()
            average = BETA * average + (1 - BETA) * loss
            unbiased = average / (1 - BETA ** (step + 1))
            if losses and not unbiased <= DIVERGED * least:  # a NaN too
                break
            least = min(least, unbiased)
            losses.append(loss)
            progress.advance()
    return losses


def smoothed(losses: Sequence[float]) -> list[Point]:
    """The loss at each learning rate, and its slope there: least squares in the logarithm, over a window around it."""
    points = []
    for step, lr in enumerate(learning_rates()[: len(losses)]):
        near = range(max(0, step - WINDOW), min(len(losses), step + WINDOW + 1))
        centre, mean = sum(near) / len(near), math.fsum(losses[index] for index in near) / len(near)
        square = sum((index - centre) ** 2 for index in near)
        slope = sum((index - centre) * losses[index] for index in near) / square if square else 0.0
        points.append(Point(lr, mean + slope * (step - centre), slope * PER_DECADE))
    return points


def suggest(points: Sequence[Point], losses: Sequence[float]) -> Suggestion | None:
    """The steepest fall before the least loss, and the latter; None where the loss has not fallen beyond its noise."""
    if len(points) <= 2 * WINDOW:
        return None
    least = min(range(len(points)), key=lambda index: points[index].loss)
    if least < WINDOW:
        return None
    noise = math.sqrt(math.fsum((losses[index] - points[index].loss) ** 2 for index in range(least)) / least)
    if points[WINDOW].loss - points[least].loss < noise:
        return None
    steepest = min(points[WINDOW : least + 1], key=lambda point: point.slope)
    return Suggestion(steepest, points[least])


def curve(points: Sequence[Point], found: Suggestion | None) -> list[str]:
    """The smoothed loss over the learning rate, as columns, with the powers of ten below them."""
    blocks = BLOCKS if _can_show(BLOCKS) else ASCII
    rates = learning_rates()
    low = min(point.loss for point in points)
    first = points[0].loss
    high = first + max(first - low, 0.05 * abs(first), 1e-9) / 2  # what diverges leaves the picture
    heights = []
    for column in range(COLUMNS):
        index = round(column * (len(rates) - 1) / (COLUMNS - 1))
        share = (points[index].loss - low) / (high - low) if index < len(points) else -1.0
        heights.append(round(min(share, 1.0) * (8 * ROWS - 1)) + 1 if share >= 0 else 0)
    lines = []
    for row in reversed(range(ROWS)):
        scale = f"{high:7.4g} " if row == ROWS - 1 else f"{low:7.4g} " if row == 0 else " " * 8
        cells = (blocks[max(0, min(8, height - 8 * row))] for height in heights)
        lines.append((scale + "".join(cells)).rstrip())
    marks, ticks = [" "] * (COLUMNS + 8), [" "] * (COLUMNS + 8)
    for exponent in range(round(math.log10(SMALLEST)), round(math.log10(LARGEST)) + 1):
        text = f"{10.0**exponent:.0e}" if exponent < -2 else f"{10.0**exponent:g}"
        at = min(8 + _column(10.0**exponent), COLUMNS + 8 - len(text))
        ticks[at : at + len(text)] = text
    if found is not None:
        marks[8 + _column(found.steepest.lr)] = "^"
    return [*lines, "".join(marks).rstrip(), "".join(ticks).rstrip()] if found else [*lines, "".join(ticks).rstrip()]


def _column(lr: float) -> int:
    return round(math.log10(lr / SMALLEST) / math.log10(LARGEST / SMALLEST) * (COLUMNS - 1))


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def table(points: Sequence[Point], found: Suggestion | None) -> list[str]:
    """Two rows a decade, and what follows from them."""
    lines = ["learning rate    loss   change"]
    lines += [f"{point.lr:13.2g}  {point.loss:6.4g}  {point.slope:+7.3f}" for point in points[:: PER_DECADE // 2]]
    if found is None:
        return [*lines, "", "no suggestion: the loss has not fallen by more than its noise from batch to batch"]
    return [
        *lines,
        "",
        f"steepest fall (^)        optim.lr={found.steepest.lr:.2g}",
        f"a tenth of the least at  optim.lr={found.tenth:.2g}   (the loss is least at {found.least.lr:.2g})",
    ]
