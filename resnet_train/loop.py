"""The training loop: batch, step, log, evaluate, save; and what stands before its first and after its last update."""

from __future__ import annotations

import copy
import gc
import logging
import math
import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from resnet_train import build, environment, rundir
from resnet_train.checkpoint import FORMAT, Checkpoints, read_weights
from resnet_train.config.durations import due
from resnet_train.config.run import Config, check_lengths, steps_per_epoch, total_steps
from resnet_train.console import Progress, count, duration, header, progress_bar
from resnet_train.data.dataset import load_dataset
from resnet_train.data.stream import EvalData, TrainData
from resnet_train.engine import Update, evaluate, grad_norm, set_products
from resnet_train.errors import ConfigError, RunError
from resnet_train.interrupt import Interrupted, Interrupts
from resnet_train.metrics import MetricsTable, Row, TensorBoard, TrainMetrics
from resnet_train.profiling import Profiler
from resnet_train.resnet import multiply_adds, num_parameters
from resnet_train.resume import Invocation, check_same_run, is_run
from resnet_train.schedule import Rate
from resnet_train.seeding import seed_everything, set_deterministic
from resnet_train.state import TrainState, load_weights
from resnet_train.summary import Score, Summary

logger = logging.getLogger(__name__)


@dataclass
class Clock:
    """Seconds of a run over all its sessions; training time leaves evaluation, checkpoints and start-up out."""

    train_seconds: float = 0.0
    images: int = 0  # trained on in train_seconds
    earlier_seconds: float = 0.0  # whole sessions before this one
    sessions: int = 1
    _begun: float = field(default_factory=time.perf_counter)
    _running_since: float | None = None

    @property
    def total_seconds(self) -> float:
        """Since the run's beginning, without the time between sessions."""
        return self.earlier_seconds + time.perf_counter() - self._begun

    def start(self) -> None:
        """Begin to count training time."""
        self._running_since = time.perf_counter()

    def stop(self, images: int) -> None:
        """Add the time since `start`, in which ``images`` were trained on."""
        assert self._running_since is not None
        self.train_seconds += time.perf_counter() - self._running_since
        self.images += images
        self._running_since = None

    def discard(self) -> float:
        """Leave out the time since `start`, and begin to count anew; returns those seconds."""
        assert self._running_since is not None
        seconds = time.perf_counter() - self._running_since
        self._running_since = time.perf_counter()
        return seconds

    def mark(self) -> tuple[float, int]:
        """Now, for `speed`."""
        return self.train_seconds, self.images

    def speed(self, since: tuple[float, int] = (0.0, 0)) -> float:
        """Images per second of training time, since an earlier `mark`."""
        seconds, images = since
        return (self.images - images) / max(self.train_seconds - seconds, 1e-9)

    def state_dict(self) -> dict[str, float | int]:
        """What the next session has to know."""
        return {
            "train_seconds": self.train_seconds,
            "images": self.images,
            "earlier_seconds": self.total_seconds,
            "sessions": self.sessions + 1,
        }


@dataclass
class Run:
    """What a run is made of, built and ready."""

    config: Config
    directory: Path
    command: str
    plan: build.Plan
    state: TrainState
    update: Update
    profiler: Profiler
    train_data: TrainData
    eval_data: dict[str, EvalData]  # split: its images
    classes: tuple[str, ...]
    rate: Rate
    total_steps: int
    steps_per_epoch: Fraction
    clock: Clock
    checkpoints: Checkpoints
    table: MetricsTable
    tensorboard: TensorBoard
    facts: dict[str, Any]  # for the summary: what does not change while the run trains

    @property
    def watched(self) -> str:
        """The split that is evaluated while the run trains; test only where nothing is chosen by it."""
        return "val" if "val" in self.eval_data else "test"


def train(config: Config, directory: Path, *, command: str, invocation: Invocation | None = None) -> Summary:
    """Train to the end, or until a signal asks to stop; going on from the newest checkpoint in ``directory``.

    Raises `ConfigError` for what does not fit data, device or an earlier session, `RunError` for a run that failed,
    and `Interrupted` after a signal, with everything saved.
    """
    run = prepare(config, directory, command=command, invocation=invocation)
    status = "failed"
    try:
        signum = fit(run)
        if signum is not None:
            status = "interrupted"
            summarise(run, status).write(directory)
            logger.info(
                "interrupted after %s of %s updates; everything is saved. Go on with: resnet-train resume=%s",
                count(run.state.step),
                count(run.total_steps),
                shlex.quote(str(directory)),
            )
            raise Interrupted(signum)
        score_best(run)
        status = "finished"
        summary = summarise(run, status)
        summary.write(directory)
        return summary
    except Exception as error:
        with suppress(RunError):  # the first error is the one to tell
            run.checkpoints.finish()
        message = out_of_memory(config, run) if isinstance(error, torch.OutOfMemoryError) else str(error)
        with suppress(RunError):
            summarise(run, status, error=message).write(directory)
        if isinstance(error, torch.OutOfMemoryError):
            raise RunError(message) from error
        raise
    finally:
        run.tensorboard.close(status)


def out_of_memory(config: Config, run: Run) -> str:
    """What to do about it."""
    return (
        f"out of memory on {run.plan.device} with batch_size={config.batch_size}, accumulate={config.accumulate} and "
        f"precision={run.plan.precision}: try accumulate={2 * config.accumulate}, which splits each batch, a smaller "
        f"batch_size or a smaller model; the checkpoints are whole"
    )


def prepare(config: Config, directory: Path, *, command: str, invocation: Invocation | None = None) -> Run:
    """Build everything, take up the newest checkpoint if there is one, and say what will run."""
    clock = Clock()
    plan = build.build_plan(config)
    set_deterministic(config.deterministic)
    set_products(plan.precision)
    # The first optimizer of a process imports all of torch.compile, for seconds: meanwhile files can be read.
    importing = threading.Thread(target=import_module, args=("torch._dynamo",))
    importing.start()
    dataset = load_dataset(config.dataset, seed=config.seed)
    importing.join()
    check_lengths(config, len(dataset.train))
    per_epoch, total = steps_per_epoch(config, len(dataset.train)), total_steps(config, len(dataset.train))
    state = build.build_state(
        config,
        num_classes=len(dataset.classes),
        device=plan.device,
        precision=plan.precision,
        kernels=plan.kernels,
        channels_last=plan.channels_last,
    )
    checkpoints = Checkpoints(directory / "checkpoints", keep=config.checkpoint.keep)
    forced = restore(config, directory, checkpoints, state, clock, plan.precision, plan.kernels.name)
    if forced is None and config.init_from:
        begin_with(state, Path(config.init_from))
    if state.step > total:
        raise ConfigError(
            f"the run in {directory} has made {state.step} updates already, expected at most the {total} that are "
            f"asked for; give it more epochs, or start a new run"
        )
    # Only now is it certain that this run can go on: what stood in its directory until here was left alone.
    rundir.write_config(config, directory)
    if invocation is not None or not is_run(directory):
        (invocation or Invocation([], [])).write(directory)
    splits = {"test": dataset.test} if dataset.val is None else {"val": dataset.val, "test": dataset.test}
    run = Run(
        config=config,
        directory=directory,
        command=command,
        plan=plan,
        state=state,
        update=build.build_update(
            state, plan, build.build_step_options(config, plan.precision), build.build_forward(state, plan)
        ),
        profiler=Profiler(directory, plan.device, enabled=config.profile, updates_left=total - state.step),
        train_data=build.build_train_data(config, dataset, plan.device, plan.kernels, channels_last=plan.channels_last),
        eval_data={
            name: build.build_eval_data(config.dataset, split, plan.device, channels_last=plan.channels_last)
            for name, split in splits.items()
        },
        classes=dataset.classes,
        rate=build.build_schedule(config.schedule, lr=config.optim.lr, total_steps=total, steps_per_epoch=per_epoch),
        total_steps=total,
        steps_per_epoch=per_epoch,
        clock=clock,
        checkpoints=checkpoints,
        table=MetricsTable(directory / "metrics.csv", from_step=state.step),
        # With all updates made and the run not finished, the last step's numbers are written once more below.
        tensorboard=TensorBoard(
            directory,
            config,
            from_step=min(state.step, total - 1),
            metrics=tuple(f"accuracy/{split}" for split in splits),
        ),
        facts={
            "model": config.model.name,
            "parameters": num_parameters(state.model),
            "multiply_adds": multiply_adds(state.model, dataset.image_size),
            "dataset": config.dataset.name,
            "images": {"train": len(dataset.train), **{name: len(split) for name, split in splits.items()}},
            "device": str(plan.device),
            "hardware": environment.hardware(plan.device),
            "forced": forced or [],
            "kernels": plan.kernels.name,
            "compiled": plan.compiled,
            "graph": plan.graph,
            "versions": environment.versions(),
            "git_commit": environment.git_commit(),
        },
    )
    describe(run, image_size=dataset.image_size)
    if forced is not None and state.step < total:
        logger.info("the learning rate goes on at %.4g, towards %s updates", run.rate(state.step), count(total))
    if state.step == total:
        chosen = ("loss/test", "accuracy/test") if run.watched == "val" else ()  # score_best is about to write them
        run.tensorboard.write(total, {tag: value for tag, value in run.table.row.items() if tag not in chosen})
    if forced is None:
        images, _ = run.train_data.batch(0)
        run.tensorboard.write_images(images, mean=config.dataset.mean, std=config.dataset.std)
        save(run)
    return run


def begin_with(state: TrainState, path: Path) -> None:
    """Take the weights of another run; raises `ConfigError` where they do not fit."""
    weights = read_weights(path)
    try:
        left = load_weights(state.model, weights)
    except ValueError as error:
        raise ConfigError(f"init_from: the weights in {path} are of another network: {error}") from error
    if state.ema is not None:
        state.ema.load_state_dict(state.model.state_dict())
    logger.info("beginning with %d of the %d tensors of %s", len(weights) - len(left), len(weights), path)
    for text in left:
        logger.info("left as initialised: %s", text)


def restore(
    config: Config,
    directory: Path,
    checkpoints: Checkpoints,
    state: TrainState,
    clock: Clock,
    precision: str,
    kernels: str,
) -> list[str] | None:
    """Take up the newest whole checkpoint, strictly; None where there is none and the run begins.

    Returns the changes that ``resume_force=true`` let through, in this session and the ones before.
    """
    found = checkpoints.newest()
    if found is None:
        return None
    path, content = found
    forced: list[str] = content.get("forced", [])
    for change in check_same_run(content["config"], config, directory):
        if change.allowed:
            logger.info("changed for the rest of this run: %s", change)
        else:
            logger.warning("another run from here on, by resume_force: %s", change)
            forced.append(f"after {content['state']['step']} updates: {change}")
    if content["precision"] != precision and not config.resume_force:
        raise ConfigError(
            f"precision: the run in {directory} was trained in {content['precision']}, this would go on in "
            f"{precision} ({config.precision}); add precision={content['precision']}"
        )
    if content.get("kernels", "plain") != kernels:
        logger.info(
            "changed for the rest of this run: kernels (%s before, %s now): equal to rounding, not to the bit",
            content.get("kernels", "plain"),
            kernels,
        )
    try:
        state.load_state_dict(content["state"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"the checkpoint {path} is of another network or optimizer: {' '.join(str(error).split())[:300]}"
        ) from error
    clock.__dict__.update(content["clock"])
    logger.info("resuming from %s: %s updates are done", path, count(state.step))
    return forced


def fit(run: Run) -> int | None:
    """Make the updates that are left; returns the signal that asked to stop, or None after the last update."""
    config, state, clock = run.config, run.state, run.clock
    metrics = TrainMetrics(state.progress, skips_overflow=state.scaler.is_enabled())
    logged = line_before = clock.mark()  # at the last log and at the last line, for the throughput since then
    with Interrupts() as interrupts, progress_bar(done=state.step, total=run.total_steps) as progress, at_rest():
        clock.start()
        unread = 0  # updates since the last synchronisation
        first = state.step
        for step in range(first, run.total_steps):
            run.profiler.before_update(step)
            images, labels = run.train_data.batch(step)  # (B, 3, H, W), (B,)
            if config.model.dropout:
                seed_everything(config.seed, "dropout", step)
            output = run.update(images, labels, lr=run.rate(step))
            run.profiler.after_update(state.step)
            metrics.add(output)
            progress.advance()
            unread += 1
            if run.facts["compiled"] and step == first:
                metrics.read(state.step)
                logger.info("first update, with compilation, in %.1f s: left out of the training time", clock.discard())
                unread = 0

            done, last = state.step, state.step == run.total_steps
            log_due = done % config.log_every == 0 or last
            epoch_due = due(done, 1, run.steps_per_epoch) or last
            eval_due = due(done, config.eval_every, run.steps_per_epoch) or last
            save_due = due(done, config.checkpoint.every, run.steps_per_epoch) or last
            stop = interrupts.signum
            is_due = log_due or epoch_due or eval_due or save_due or bool(stop)
            if not (is_due or watching(run, progress)):
                continue
            # The only synchronisation with the device; raises if a loss is not finite.
            metrics.read(done, grad_norm(state, output) if is_due else None)
            run.checkpoints.check()
            clock.stop(unread * config.batch_size)
            unread = 0
            row: Row = {"epoch": float(done / run.steps_per_epoch), "lr": run.rate(step)}
            speed = clock.speed(since=logged)
            loss, accuracy = metrics.peek()
            progress.show(loss=loss, accuracy=accuracy, lr=row["lr"], images_per_second=speed)
            if log_due:
                row["loss/train"], row["accuracy/train"] = metrics.end_window()
                row["gradient_norm"] = metrics.grad_norm()
                logged = clock.mark()
            epoch = end_epoch(run, metrics) if epoch_due else None
            is_best = False
            if eval_due:
                score = evaluate_split(run, run.watched)
                is_best = record(run, run.watched, score)
                row |= {f"loss/{run.watched}": score.loss, f"accuracy/{run.watched}": score.accuracy}
            if log_due or eval_due:
                run.table.write(done, row)
                run.tensorboard.write(done, row | ({"throughput/images_per_second": speed} if log_due else {}))
            if epoch_due or eval_due:
                log_line(run, epoch, row, clock.speed(since=line_before))
                line_before = clock.mark()
            if save_due or stop or (is_best and run.watched == "val"):
                save(run, best=is_best and run.watched == "val")
            if stop:
                run.checkpoints.finish()
                return stop
            clock.start()
        run.checkpoints.finish()
    return None


@contextmanager
def at_rest() -> Iterator[None]:
    """What is there now stays to the end: the collector of cycles need not look through it again and again."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def watching(run: Run, progress: Progress) -> bool:
    """Whether to read the metrics now for the progress bar: only on the CPU, where reading costs nothing."""
    return progress.visible and run.plan.device.type == "cpu"


def end_epoch(run: Run, metrics: TrainMetrics) -> Score:
    """Keep the means over the epoch's updates, of augmented images and weights on the move, as the train score."""
    images = metrics.epoch_updates() * run.config.batch_size
    loss, accuracy = metrics.end_epoch()
    score = Score(
        loss=loss,
        accuracy=accuracy,
        error=1 - accuracy,
        correct=round(accuracy * images),
        count=images,
        step=run.state.step,
    )
    record(run, "train", score)
    return score


def evaluate_split(run: Run, split: str) -> Score:
    """Score the current weights, or their moving average, on every image of a split."""
    result = evaluate(run.state.eval_model, run.eval_data[split], precision=run.plan.precision)
    return Score(
        loss=result.loss,
        accuracy=result.accuracy,
        error=1 - result.accuracy,
        correct=result.correct,
        count=result.count,
        step=run.state.step,
    )


def record(run: Run, split: str, score: Score) -> bool:
    """Keep ``score`` as the last of its split, and as the best if it is that; the earlier of two equal ones stays."""
    run.state.last[split] = score
    best = run.state.best.get(split)
    if best is None or score.accuracy > best.accuracy:
        run.state.best[split] = score
        return True
    return False


def score_best(run: Run) -> None:
    """With a validation split: score the weights that were best on it, once, on the test split."""
    if run.watched == "test":
        return
    chosen = copy.deepcopy(run.state.eval_model)
    saved = run.checkpoints.best()["state"]
    chosen.load_state_dict(saved["model"] if saved["ema"] is None else saved["ema"])
    result = evaluate(chosen, run.eval_data["test"], precision=run.plan.precision)
    score = Score(
        loss=result.loss,
        accuracy=result.accuracy,
        error=1 - result.accuracy,
        correct=result.correct,
        count=result.count,
        step=saved["step"],
    )
    record(run, "test", score)
    row: Row = {"loss/test": score.loss, "accuracy/test": score.accuracy}
    run.table.write(run.total_steps, row)
    run.tensorboard.write(run.total_steps, row)


def save(run: Run, *, best: bool = False) -> None:
    """Begin to write a checkpoint of this very moment; it is on disk when the next one begins, or `fit` returns."""
    content = {
        "format": FORMAT,
        "state": run.state.state_dict(),
        "config": asdict(run.config),
        "precision": run.plan.precision,
        "device": str(run.plan.device),
        "kernels": run.facts["kernels"],
        "forced": run.facts["forced"],
        "classes": list(run.classes),
        "versions": run.facts["versions"],
        "clock": run.clock.state_dict(),
    }
    run.checkpoints.begin_save(content, step=run.state.step, best=best)


def describe(run: Run, *, image_size: int) -> None:
    """Log the header."""
    config, facts, images = run.config, run.facts, run.facts["images"]
    splits = ", ".join(f"{count(number)} {split}" for split, number in images.items())
    length = f"{count(run.total_steps)} updates of {config.batch_size} images"
    header(
        [
            (
                "model",
                f"{config.model.name}: {count(facts['parameters'])} parameters, "
                f"{facts['multiply_adds'] / 1e6:,.1f} M multiply-adds an image",
            ),
            (
                "data",
                f"{config.dataset.name}: {splits} images of {image_size}x{image_size}, {len(run.classes)} classes",
            ),
            ("device", f"{facts['device']} ({facts['hardware']})"),
            *run.plan.lines(),
            ("length", f"{length}, {epochs(run)} epochs, seed {config.seed}"),
            ("directory", str(run.directory)),
        ]
    )


def epochs(run: Run) -> str:
    """The length of the run in epochs, as it was asked for."""
    asked = run.config.epochs
    return str(asked) if asked is not None else f"{float(run.total_steps / run.steps_per_epoch):.4g}"


def log_line(run: Run, epoch: Score | None, row: Row, speed: float) -> None:
    """Log one line: where the run is, and how it does; ``epoch`` is the train score, if one has ended."""
    done, split = run.state.step, run.watched
    whole = due(done, 1, run.steps_per_epoch)
    at = str(math.floor(done / run.steps_per_epoch)) if whole else f"{row['epoch']:.4g}"
    parts = [f"epoch {at}/{epochs(run)}", f"update {count(done)}"]
    if epoch:
        parts.append(f"train loss {epoch.loss:.4f} accuracy {100 * epoch.accuracy:.2f} %")
    if f"loss/{split}" in row:
        parts.append(f"{split} loss {row[f'loss/{split}']:.4f} accuracy {100 * row[f'accuracy/{split}']:.2f} %")
    parts += [f"lr {row['lr']:.4g}", f"{speed:,.0f} images/s", duration(run.clock.total_seconds)]
    logger.info("%s", ", ".join(parts))


def summarise(run: Run, status: str, *, error: str | None = None) -> Summary:
    """Gather what the run came to."""
    state, clock, test = run.state, run.clock, run.state.last.get("test")
    best_val = state.best.get("val")
    if run.watched == "val":
        rule = "of the weights that were best on the validation split"
        rule += f" (after {count(best_val.step)} updates), scored once" if best_val else ""
    else:
        rule = f"after the last of {count(run.total_steps)} updates"
    finished = status == "finished" and test is not None
    return Summary(
        status=status,
        name=run.config.name,
        directory=str(run.directory),
        result_split="test",
        result_rule=rule,
        result=test.accuracy if finished and test else None,
        objective=(best_val or test).accuracy if finished and (best_val or test) else None,  # type: ignore[union-attr]
        last=state.last,
        best=state.best,
        steps=state.step,
        total_steps=run.total_steps,
        epochs=float(state.step / run.steps_per_epoch),
        train_seconds=clock.train_seconds,
        total_seconds=clock.total_seconds,
        images_per_second=clock.speed() if clock.images else 0.0,
        peak_memory_bytes=environment.peak_memory_bytes(run.plan.device),
        precision=run.plan.precision,
        seed=run.config.seed,
        command=run.command,
        sessions=clock.sessions,
        error=error,
        **run.facts,
    )
