"""One run of the command line: alone, or as a job of a sweep that a launcher calls, perhaps in another process."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from resnet_train.cli.compose import to_config
from resnet_train.cli.overrides import PROGRAM, without
from resnet_train.config.run import Config
from resnet_train.config.store import register_schema
from resnet_train.data.available import check_available
from resnet_train.errors import ConfigError
from resnet_train.runs import directory as directories
from resnet_train.runs.console import duration, runnable, shell_quote
from resnet_train.runs.directory import Invocation, is_run
from resnet_train.runs.summary import Summary


class Train(Protocol):
    """What trains: `resnet_train.train.run`, handed in so that nothing here imports torch."""

    def __call__(
        self, config: Config, *, directory: Path, invocation: Invocation, command: str, owns_process: bool
    ) -> Summary:
        """See `resnet_train.train.run`."""
        ...


class TooManyFailures(BaseException):
    """Ends a sweep: not an ``Exception``, which Hydra would keep until all jobs have run."""


class Job:
    """A job of a sweep, as Hydra's launchers call it; returns what sweepers maximise.

    ``failures_left`` counts down where jobs share this process; None for any number.
    """

    def __init__(self, train: Train, *, flags: Sequence[str] = (), failures_left: int | None = None) -> None:
        self.train = train
        self.flags = list(flags)
        self.failures_left = failures_left

    def __setstate__(self, state: dict[str, object]) -> None:
        """In another process, which has to know the schema before the job's configuration is composed there."""
        register_schema()
        self.__dict__.update(state)

    def __call__(self, composed: DictConfig) -> float | None:
        """Train what Hydra composed, in the directory that it chose."""
        hydra = HydraConfig.get()
        try:
            directory, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
            with directories.log_file(directory):
                if not is_run(directory):
                    Invocation(self.flags, overrides).write(directory)
                config = to_config(composed)
                return run_and_report(self.train, config, directory, overrides, flags=self.flags).objective
        except Exception:
            if self.failures_left is not None:
                self.failures_left -= 1
                if self.failures_left == 0:
                    raise TooManyFailures from None
            raise


def check_inputs(config: Config) -> None:
    """Raise `ConfigError` where the data or ``init_from`` are not there: by their names, before torch is imported."""
    check_available(config.dataset)
    if config.init_from is not None and not Path(config.init_from).exists():
        raise ConfigError(
            f"init_from: expected a run directory or a file, got {config.init_from!r}, which does not exist"
        )


def run_and_report(
    train: Train, config: Config, directory: Path, overrides: Sequence[str], *, flags: Sequence[str]
) -> Summary:
    """Train, and print what a person wants to know then; ``flags`` and ``overrides`` are kept, to be told in tables."""
    # A change is forced through once, not whenever the run is resumed.
    kept = without(overrides, "resume_force")
    command = shell_quote(*[PROGRAM, *flags, *overrides])
    result = train(
        config, directory=directory, invocation=Invocation(list(flags), kept), command=command, owns_process=True
    )
    print(
        f"\n{result.sentence()}\n"
        f"trained {duration(result.train_seconds)} at {result.images_per_second:,.0f} images/s, "
        f"{duration(result.total_seconds)} in all\n"
        f"{result.directory}\n"
        f"  {runnable('tensorboard', '--logdir', result.directory)}\n"
        f"  {runnable(PROGRAM, f'resume={result.directory}')} {'steps' if config.steps else 'epochs'}=...   # train on"
    )
    return result


@contextmanager
def console_log() -> Iterator[None]:
    """Show the package's log on standard output, a message a line, as sweeps do by Hydra's configuration."""
    root, package = logging.getLogger(), logging.getLogger("resnet_train")
    handler, level = logging.StreamHandler(sys.stdout), package.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.setLevel(level)
        root.removeHandler(handler)
