"""The training loop, in order: batch, step, log, evaluate, save (`fit`); and a whole run around it (`train`)."""

from __future__ import annotations

import copy
import gc
import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resnet_train.config.run import Config
from resnet_train.errors import RunError
from resnet_train.kernels import allocator, native
from resnet_train.runs import environment
from resnet_train.runs.console import Progress, count, progress_bar, runnable
from resnet_train.runs.directory import Invocation
from resnet_train.runs.interrupt import TIME_IS_UP, Interrupted, StopSignal
from resnet_train.runs.lock import Lock, LostLock
from resnet_train.runs.metrics_table import Row
from resnet_train.runs.summary import Score, Summary
from resnet_train.runs.time_limit import TimeLimit
from resnet_train.seeding import set_deterministic
from resnet_train.training.clock import Clock
from resnet_train.training.memory import is_out_of_memory, out_of_memory_named
from resnet_train.training.metrics import DIVERGED, TrainMetrics
from resnet_train.training.plan import Plan, build_device
from resnet_train.training.report import announce, log_line, stopped_early, summarise
from resnet_train.training.result_pictures import can_keep_logits
from resnet_train.training.session import Session, open_session
from resnet_train.training.setup import Run, build
from resnet_train.training.step import Evaluation, Health, allow_tf32, evaluate, health

logger = logging.getLogger(__name__)


def train(
    config: Config,
    directory: Path,
    *,
    lock: Lock,
    command: str,
    invocation: Invocation | None = None,
    limit: TimeLimit | None = None,
    owns_process: bool = False,
) -> Summary:
    """Train to the end, or until a signal asks to stop; continuing from the newest checkpoint in ``directory``.

    ``lock`` is that of ``directory``: a run that lost it leaves it alone.

    Raises `ConfigError` for what does not fit data, device or an earlier session, `RunError` for a run that failed,
    and `Interrupted` after a signal, with everything saved.
    """
    clock = Clock()
    with current(build_device(config.device)):
        environment.reset_peak_memory()
        with out_of_memory_named(config):
            run = build(config)
            set_deterministic(config.deterministic)
            allow_tf32(run.plan.precision)
            if owns_process:
                keep_memory(run.plan)
            session = open_session(
                run, config, directory, lock=lock, clock=clock, command=command, invocation=invocation
            )
        with StopSignal(limit=limit) as stop:
            return complete(run, session, config, stop)


def current(device: torch.device) -> AbstractContextManager[Any]:
    """While it lasts a GPU is the current one, which PyTorch and Triton mean wherever they are told of none."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def complete(run: Run, session: Session, config: Config, stop: StopSignal) -> Summary:
    """Train what is left, score, and leave a summary, however it ends."""
    directory, status = session.directory, "failed"
    try:
        announce(run, session)
        with out_of_memory_named(config):
            signum = fit(run, session, stop)
            if signum is None:
                if run.last_step < run.timetable.total_steps:
                    logger.info("%s", stopped_early(run))
                score_best(run, session)
                check_result(run)
                session.pictures.draw(run)
        session.lock.check()
        session.sync()
        ended = "finished" if signum is None else "interrupted"
        summary = summarise(run, session, ended)
        summary.write(directory)
        status = ended
        if signum is None:
            return summary
        logger.info(
            "%s after %s of %s steps; everything is saved. Continue with: %s",
            "the time of max_time is up" if signum == TIME_IS_UP else "interrupted",
            count(run.state.step),
            count(run.timetable.total_steps),
            runnable("resnet-train", f"resume={directory}"),
        )
        raise Interrupted(signum)
    except LostLock:
        raise
    except Exception as error:
        with suppress(RunError):  # the first error is the one to tell
            session.checkpoints.finish()
        session.lock.check()  # where the directory is another's by now, that explains whatever failed in it
        with suppress(RunError):
            summarise(run, session, status, error=str(error)).write(directory)
        raise
    finally:
        session.tensorboard.close(status)


def fit(run: Run, session: Session, stop: StopSignal) -> int | None:
    """Make the steps that are left; returns the signal that asked to stop, or None after the last step."""
    state, clock = run.state, session.clock
    metrics = TrainMetrics(state.progress, skips_overflow=state.scaler.is_enabled())
    first, last = state.step, run.last_step
    with progress_bar(done=first, total=last) as progress, at_rest():
        clock.start()
        for step in range(first, last):
            session.profiler.before_step(step)
            images, labels = run.train_data.batch(step)  # (B, C, H, W), (B,)
            run.seed_dropout(step)
            output = run.train_step(images, labels, lr=run.lr_schedule(step))
            session.profiler.after_step(state.step)
            metrics.add(output)
            progress.advance()
            if state.step - first == run.plan.unmeasured_steps and state.step < last:
                leave_start_out(metrics, clock, state.step, health(state, output), steps=run.plan.unmeasured_steps)
            due = run.timetable.due(state.step, stop.signum)
            if not (due.anything or watching(run, progress)):
                continue
            # The only synchronisation with the device; raises if a loss is not finite, or what the step has left.
            clock.stop(len(images) * metrics.read(state.step, health(state, output) if due.anything else None))
            session.checkpoints.check()
            row = {"epoch": float(state.step / run.timetable.steps_per_epoch), "lr": run.lr_schedule(step)}
            speed = clock.speed(since="log")
            progress.show(*metrics.peek(), lr=row["lr"], images_per_second=speed)
            if due.log:
                row["loss/train"], row["accuracy/train"] = metrics.end_window()
                row["gradient_norm"] = metrics.grad_norm()
                clock.mark("log")
            train_score = end_epoch(run, metrics) if due.epoch else None
            is_best = due.evaluation and evaluate_watched(run, session, row)
            if due.log or due.evaluation:
                session.write(state.step, row, images_per_second=speed if due.log else None)
            if due.epoch or due.evaluation:
                log_line(run, session, row, train_score)
            if due.checkpoint or is_best or run.out_of_patience:
                session.save(run, best=is_best)
            if due.signum is not None or run.out_of_patience:
                session.checkpoints.finish()
                return due.signum
            clock.start()
        session.checkpoints.finish()
    return None


def keep_memory(plan: Plan) -> None:
    """Keep freed blocks of large CPU tensors for the next ones: a switch of the whole process, worth some time."""
    if plan.device.type == "cpu" and plan.backend.name != "plain":
        try:
            allocator.install()
        except native.Unavailable as error:
            logger.info("the memory of large tensors is not kept for the next ones: %s", error)


@contextmanager
def at_rest() -> Iterator[None]:
    """What is there now stays to the end: the collector of cycles need not look through it again and again.

    A process that has set objects apart itself goes on as it is: they could not be told from those of the run.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def leave_start_out(metrics: TrainMetrics, clock: Clock, step: int, found: Health, *, steps: int) -> None:
    """Wait for the first steps of a session, which compile, search, warm up or record, and leave their time out."""
    metrics.read(step, found)
    named = "first step" if steps == 1 else f"first {steps} steps"
    logger.info("%s, with all that is set up then, in %.1f s: left out of the training time", named, clock.discard())


def watching(run: Run, progress: Progress) -> bool:
    """Whether to read the metrics now for the progress bar: only on the CPU, where reading costs nothing."""
    return progress.visible and run.plan.device.type == "cpu"


def end_epoch(run: Run, metrics: TrainMetrics) -> Score:
    """Keep the means over the epoch's steps, of augmented images and weights on the move, as the train score."""
    num_images = metrics.epoch_steps() * run.train_data.batch_size
    loss, accuracy = metrics.end_epoch()
    score = Score(
        loss=loss,
        accuracy=accuracy,
        error=1 - accuracy,
        correct=round(accuracy * num_images),
        count=num_images,
        step=run.state.step,
    )
    run.state.record("train", score)
    return score


def evaluate_watched(run: Run, session: Session, row: Row) -> bool:
    """Score the watched split, add that to ``row``, and say whether a checkpoint is to be kept as the best for it.

    Nothing is chosen by the test split.
    """
    split, step = run.watched, run.state.step
    is_result = split == "test" and step == run.timetable.total_steps
    result = evaluate_split(run, run.state.eval_model, split, keep_logits=is_result or session.diagnostics.enabled)
    row |= {f"loss/{split}": result.loss, f"accuracy/{split}": result.accuracy}
    session.diagnostics.write(run, result.logits)
    if is_result:
        session.pictures.keep(result.logits)
    return run.state.record(split, score_of(result, step=step), min_delta=run.timetable.min_delta) and split == "val"


def score_best(run: Run, session: Session) -> None:
    """With a validation split: score the weights that were best on it, once, on the test split."""
    if run.watched == "test":
        if session.pictures.missing:  # an earlier session made the last step, and ended before it was drawn
            session.pictures.keep(evaluate_split(run, run.state.eval_model, "test", keep_logits=True).logits)
        return
    chosen = copy.deepcopy(run.state.eval_model)
    saved = session.checkpoints.best()["state"]
    chosen.load_state_dict(saved["model"] if saved["ema"] is None else saved["ema"])
    result = evaluate_split(run, chosen, "test", keep_logits=True)
    session.pictures.keep(result.logits)
    run.state.record("test", score_of(result, step=saved["step"]))
    session.write(run.last_step, {"loss/test": result.loss, "accuracy/test": result.accuracy})


def check_result(run: Run) -> None:
    """Raise `RunError` where the result is of a network whose outputs are no numbers."""
    score = run.state.last["test"]
    if not math.isfinite(score.loss):
        raise RunError(f"the loss on the test split is {score.loss} at step {score.step}: {DIVERGED}")


def evaluate_split(run: Run, model: nn.Module, split: str, *, keep_logits: bool = False) -> Evaluation:
    """Evaluate ``model`` on every image of a split; fewer at once if memory is short.

    Logits are kept where they are asked for and not too many.
    """
    data, result = run.eval_data[split], None
    keep_logits = keep_logits and can_keep_logits(run, split)
    while result is None:
        allocator.return_free_memory()  # training's tensors are of other sizes
        try:
            result = evaluate(model, data, precision=run.plan.precision, keep_logits=keep_logits)
        except Exception as error:
            if data.batch_size == 1 or not is_out_of_memory(error):
                raise
        if result is None:  # and the error is gone, with the tensors that it held
            logger.warning("not enough memory to evaluate %s images at once: half as many from now on", data.batch_size)
            data.batch_size //= 2
    allocator.return_free_memory()
    return result


def score_of(result: Evaluation, *, step: int) -> Score:
    """An evaluation of the weights of ``step``, as it is kept."""
    return Score(
        loss=result.loss,
        accuracy=result.accuracy,
        error=1 - result.accuracy,
        correct=result.correct,
        count=result.count,
        step=step,
    )
