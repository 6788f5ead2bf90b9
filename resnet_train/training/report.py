"""What a run says while it trains, and the summary that it leaves behind."""

from __future__ import annotations

import logging
import math

from resnet_train.config.durations import due
from resnet_train.runs import environment
from resnet_train.runs.console import count, duration, header, printable
from resnet_train.runs.metrics_table import Row
from resnet_train.runs.summary import Score, Summary
from resnet_train.training.session import Session
from resnet_train.training.setup import Run
from resnet_train.training.timetable import Timetable

logger = logging.getLogger(__name__)


def announce(run: Run, session: Session) -> None:
    """Log what the run continues from, and the header: what is about to be trained, and with what."""
    for level, text in session.notices:
        logger.log(level, "%s", printable(text))
    facts, timetable, why = run.facts, run.timetable, run.plan.reasons["device"]
    splits = ", ".join(f"{count(number)} {split}" for split, number in facts.images.items())
    size = f"{run.image_size}x{run.image_size}{' grey' if run.train_data.split.images.shape[-1] == 1 else ''}"
    length = f"{count(timetable.total_steps)} steps of {run.train_data.batch_size} images"
    header(
        [
            (
                "model",
                f"{facts.model}: {count(facts.parameters)} parameters, "
                f"{facts.multiply_adds / 1e6:,.1f} M multiply-adds per image",
            ),
            (
                "data",
                f"{facts.dataset}: {splits} images of {size}, {len(run.classes)} classes",
            ),
            *([("splits", run.taken)] if run.taken else []),
            *([("classes", run.balance)] if run.balance else []),
            *([("left out", run.left_out)] if run.left_out else []),
            *([("frozen", run.frozen)] if run.frozen else []),
            ("device", f"{facts.device} ({facts.hardware}){why and f'; no GPU: {why}'}"),
            *run.plan.lines(),
            ("length", f"{length}, {epochs(timetable)} epochs, seed {facts.seed}"),
            ("directory", str(session.directory)),
        ]
    )


def epochs(timetable: Timetable) -> str:
    """The length of the run in epochs, as it was asked for."""
    asked = timetable.epochs
    return str(asked) if asked is not None else f"{float(timetable.total_steps / timetable.steps_per_epoch):.4g}"


def stopped_early(run: Run) -> str:
    """Why a run ended before its last step."""
    steps, total = count(run.state.step), count(run.timetable.total_steps)
    return f"stopped early after {steps} of {total} steps, {run.state.patience.waited} evaluations without a rise"


def log_line(run: Run, session: Session, row: Row, train_score: Score | None) -> None:
    """Log where the run is, how it does (``train_score`` if an epoch has ended), and its speed since the last line."""
    done, split, timetable = run.state.step, run.watched, run.timetable
    whole = due(done, 1, timetable.steps_per_epoch)
    at = str(math.floor(done / timetable.steps_per_epoch)) if whole else f"{row['epoch']:.4g}"
    parts = [f"epoch {at}/{epochs(timetable)}", f"step {count(done)}"]
    if train_score is not None:
        parts.append(f"train loss {train_score.loss:.4f} accuracy {100 * train_score.accuracy:.2f} %")
    if f"loss/{split}" in row:
        parts.append(f"{split} loss {row[f'loss/{split}']:.4f} accuracy {100 * row[f'accuracy/{split}']:.2f} %")
    clock = session.clock
    parts.append(f"lr {row['lr']:.4g}")
    if speed := clock.speed(since="line"):  # none where all steps since were left out of the training time
        parts.append(f"{speed:,.0f} images/s")
    parts.append(duration(clock.total_seconds))
    logger.info("%s", ", ".join(parts))
    clock.mark("line")


def summarise(run: Run, session: Session, status: str, *, error: str | None = None) -> Summary:
    """The result of the run, or how far it came."""
    state, clock, timetable, test = run.state, session.clock, run.timetable, run.state.last.get("test")
    best_val = state.best.get("val")
    if run.watched == "val":
        rule = "of the weights that were best on the validation split"
        rule += f" (after {count(best_val.step)} steps), scored once" if best_val else ""
        rule += f"; {stopped_early(run)}" if run.last_step < timetable.total_steps else ""
    else:
        rule = f"after the last of {count(timetable.total_steps)} steps"
    result = test if status == "finished" else None
    return Summary(
        **vars(run.facts) | {"graph": run.graph.graph, "graph_reason": run.graph.reason},
        status=status,
        directory=str(session.directory),
        result_split="test",
        result_rule=rule,
        result=None if result is None else result.accuracy,
        objective=None if result is None else (best_val or result).accuracy,
        last=state.last,
        best=state.best,
        waited=state.patience.waited,
        steps=state.step,
        total_steps=timetable.total_steps,
        epochs=float(state.step / timetable.steps_per_epoch),
        train_seconds=clock.train_seconds,
        total_seconds=clock.total_seconds,
        images_per_second=clock.speed() if clock.images else 0.0,
        peak_memory_bytes=environment.peak_memory_bytes(run.plan.device, graph=run.plan.graph),
        command=session.command,
        sessions=clock.sessions,
        forced=session.forced,
        error=error,
    )
