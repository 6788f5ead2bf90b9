"""One run of the command line: alone, or as a job of a sweep that a launcher calls, perhaps in another process."""

from __future__ import annotations

import logging
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from resnet_train.cli.compose import to_config
from resnet_train.cli.overrides import PROGRAM, without
from resnet_train.config.run import Config
from resnet_train.config.store import register_schema
from resnet_train.data.available import check_available
from resnet_train.errors import RunError
from resnet_train.runs import directory as directories
from resnet_train.runs.console import duration, log_on_stdout, runnable, shell_quote
from resnet_train.runs.directory import Invocation, is_run
from resnet_train.runs.interrupt import Interrupted, StopSignal
from resnet_train.runs.lock import hold
from resnet_train.runs.memory import check_memory
from resnet_train.runs.saved import check_there
from resnet_train.runs.summary import Summary

logger = logging.getLogger(__name__)

JOB_LOCK = ".job.lock"  # in the directory of a job that runs in a process of its own
STOPPED = ".stopped"  # in a sweep's directory: no job is to begin


class Train(Protocol):
    """What trains: `resnet_train.train.run`, handed in so that nothing here imports torch."""

    def __call__(
        self, config: Config, *, directory: Path, invocation: Invocation, command: str, owns_process: bool
    ) -> Summary:
        """See `resnet_train.train.run`."""
        ...


class Show(Protocol):
    """What answers ``summary=true`` and ``find_lr=true``: `resnet_train.train.show`, handed in for the same reason."""

    def __call__(self, config: Config, directory: Path | None = None) -> None:
        """See `resnet_train.train.show`."""
        ...


class TooManyFailures(BaseException):
    """Ends a sweep: not an ``Exception``, which Hydra would keep until all jobs have run."""


class Job:
    """A job of a sweep, as Hydra's launchers call it; returns what sweepers maximise.

    ``swept``: keys in which the jobs differ. ``failures_left`` counts down where jobs share this process; None for any
    number.
    """

    def __init__(
        self,
        train: Train,
        *,
        flags: Sequence[str] = (),
        swept: Sequence[str] = (),
        failures_left: int | None = None,
        stop: StopSignal | None = None,
    ) -> None:
        self.train = train
        self.flags = list(flags)
        self.swept = list(swept)
        self.failures_left = failures_left
        self.stop = stop  # of the sweep, where jobs share its process

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"stop": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        """In another process, which has to know the schema before the job's configuration is composed there."""
        register_schema()
        self.__dict__.update(state)

    def __call__(self, composed: DictConfig) -> float | None:
        """Train what Hydra composed, in the directory that it chose; not where the sweep was asked to stop."""
        hydra = HydraConfig.get()
        if self.stop is not None and self.stop.signum is not None:
            raise Interrupted(self.stop.signum)
        if self.stop is None and Path(hydra.sweep.dir, STOPPED).exists():
            raise RunError("the sweep was stopped before this job")
        try:
            directory, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
            with directories.log_file(directory), self.alone(directory):
                if not is_run(directory):
                    Invocation(self.flags, overrides, self.swept).write(directory)
                config = to_config(composed)
                result = run_and_report(self.train, config, directory, overrides, flags=self.flags, swept=self.swept)
                return result.objective
        except Interrupted as interrupted:
            if self.stop is not None:
                raise
            raise RunError(f"{interrupted}, and saved") from None  # a launcher takes it as the end of this job alone
        except Exception:
            if self.failures_left is not None:
                self.failures_left -= 1
                if self.failures_left == 0:
                    raise TooManyFailures from None
            raise

    def alone(self, directory: Path) -> AbstractContextManager[object]:
        """Wait for an equal job, as a sampler in parallel may draw it twice: the second finds the first's result."""
        return nullcontext() if self.stop is not None else hold(directory / JOB_LOCK, wait=True)


def check_inputs(config: Config) -> None:
    """Raise `ConfigError` where the data or ``init_from`` are not there, or cannot fit: before torch is imported."""
    check_memory(config)
    check_available(config.dataset)
    if config.init_from is not None:
        check_there(Path(config.init_from), key="init_from")


def run_and_report(
    train: Train,
    config: Config,
    directory: Path,
    overrides: Sequence[str],
    *,
    flags: Sequence[str],
    swept: Sequence[str] = (),
) -> Summary:
    """Train, and print what a person wants to know then; all but ``config`` is kept, to be told in tables."""
    if "torch" not in sys.modules:
        logger.info("loading PyTorch and the data set (%s)", config.dataset.name)
    # A change is forced through once, not whenever the run is resumed.
    kept = without(overrides, "resume_force")
    command = shell_quote(*[PROGRAM, *flags, *overrides])
    invocation = Invocation(list(flags), kept, list(swept))
    result = train(config, directory=directory, invocation=invocation, command=command, owns_process=True)
    longer = "early_stop.patience=null" if result.stopped_early else f"{'steps' if config.steps else 'epochs'}=..."
    print(
        f"\n{result.sentence()}\n"
        f"trained {duration(result.train_seconds)} at {result.images_per_second:,.0f} images/s, "
        f"{duration(result.total_seconds)} in all\n"
        f"{result.directory}\n"
        f"  {runnable('tensorboard', '--logdir', result.directory)}\n"
        f"  {runnable(PROGRAM, f'resume={result.directory}')} {longer}   # train on"
    )
    return result


class ConsoleFormatter(logging.Formatter):
    """Messages as they are; on a terminal folded to its width, lines of the header below their value."""

    def format(self, record: logging.LogRecord) -> str:
        """The text for the console."""
        text = super().format(record)
        if not sys.stdout.isatty() or "\n" in text:
            return text
        name = re.match(r"\w+ {2,}", text)
        indent = " " * (len(name[0]) if name else 4)
        columns = shutil.get_terminal_size().columns
        return textwrap.fill(
            text,
            columns,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )


def console_log() -> AbstractContextManager[None]:
    """Show the package's log on standard output, a message a line, as sweeps do by Hydra's configuration."""
    return log_on_stdout(ConsoleFormatter())
