"""The entry point: ``resnet-train [overrides]`` from a shell, `run` from Python.

A run, from top to bottom: its directory is found or made and locked; everything is built from the configuration
(`training.setup`); the run begins, or continues where it stopped (`training.session`, `runs.resume`); then the loop
(`training.loop`) and the summary. torch is imported after the lock, so that whatever is wrong with a request is said
within a second.

Nothing is imported before it is needed: a Ctrl-C before `main` begins leaves a traceback.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing's own would have to be imported
if TYPE_CHECKING:
    from pathlib import Path

    from resnet_train.config.run import Config
    from resnet_train.runs.directory import Invocation
    from resnet_train.runs.summary import Summary
    from resnet_train.runs.time_limit import TimeLimit


def run(
    config: Config,
    *,
    directory: Path | None = None,
    invocation: Invocation | None = None,
    command: str | None = None,
    owns_process: bool = False,
) -> Summary:
    """Train what ``config`` describes and return its summary.

    Args:
        config: checked when it was made, e.g. by `resnet_train.load_config`.
        directory: of the run; one that holds the same run already is continued where it stopped. By default a new one
            under ``outputs/``, or ``config.resume``.
        invocation: the overrides that made ``config``, for the tables of sweeps.
        command: what was typed, for the summary.
        owns_process: whether process-wide switches may be set: the command line's process is its own.

    Raises:
        ConfigError: ``config`` does not fit the data, the machine and its memory, or the run that ``directory`` holds;
            or there is another run in this process.
        RunError: training failed, e.g. the loss was not finite.
        Interrupted: a signal asked to stop; everything is saved.
    """
    from resnet_train.errors import ConfigError
    from resnet_train.runs.alone import alone
    from resnet_train.runs.console import shell_quote, shown_in_a_notebook
    from resnet_train.runs.directory import lock, log_file
    from resnet_train.runs.interrupt import Interrupted, StopSignal
    from resnet_train.runs.memory import check_memory
    from resnet_train.runs.resume import finished_already

    if key := config.question:
        raise ConfigError(f"{key}: expected false, got true, which shows something and trains nothing; leave it out")
    limit = limit_of(config, owns_process=owns_process)
    with alone():
        check_memory(config)
        directory = (directory or directory_for(config)).absolute()
        finished = finished_already(config, directory)
        if finished:
            return finished
        with lock(directory) as held, shown_in_a_notebook(), log_file(directory):
            if config.deterministic:
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
            with StopSignal() as stop:  # an exception inside torch's own start would abort the process
                from resnet_train.training.loop import train
            if stop.signum is not None:
                raise Interrupted(stop.signum)
            return train(
                config,
                directory,
                lock=held,
                invocation=invocation,
                command=command or shell_quote(*sys.argv),
                limit=limit,
                owns_process=owns_process,
            )


def limit_of(config: Config, *, owns_process: bool) -> TimeLimit | None:
    """The end of ``max_time``: counted from the start of the command, for its process may be what is limited."""
    import time

    from resnet_train.config.stopping import seconds_of
    from resnet_train.runs.time_limit import PROCESS_BEGUN, TimeLimit

    if config.max_time is None:
        return None
    return TimeLimit(seconds_of(config.max_time), begun=PROCESS_BEGUN if owns_process else time.monotonic())


def directory_for(config: Config) -> Path:
    """The run directory that ``config`` continues, or a new one under ``outputs/``."""
    from datetime import datetime
    from pathlib import Path

    from resnet_train.runs.directory import create
    from resnet_train.runs.resume import find_directory

    if config.resume:
        return find_directory(config.resume)
    now = datetime.now()
    return create(Path("outputs") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}-{config.name}")


def show(config: Config, directory: Path | None = None) -> None:
    """Answer the question of ``config``: print its network, or that of the run in ``directory``, or try learning rates.

    Nothing is written.
    """
    from resnet_train.commands.network import network_table
    from resnet_train.runs.interrupt import Interrupted, StopSignal

    with StopSignal() as stop:  # as in `run`
        import torch  # noqa: F401
    if stop.signum is not None:
        raise Interrupted(stop.signum)
    if config.find_lr:
        from resnet_train.commands.find_lr import find_lr

        print(find_lr(config))
    else:
        print(network_table(config, directory))


def main() -> None:
    """``resnet-train``, ``python -m resnet_train.train``."""
    import signal

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # and not ignored
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends imports without a traceback
    from resnet_train.cli.main import main as command_line
    from resnet_train.cli.streams import make_best_effort
    from resnet_train.runs.interrupt import ctrl_c

    if ours:
        signal.signal(signal.SIGINT, ctrl_c)
    make_best_effort()
    sys.exit(command_line(sys.argv[1:], run, show))


def first() -> None:
    """``scripts/train`` without arguments."""
    from resnet_train.cli.first_run import first_run
    from resnet_train.cli.streams import make_best_effort

    make_best_effort()
    sys.exit(first_run(run))


if __name__ == "__main__":
    from resnet_train.train import main as importable  # launchers pickle `run` by the name of its module

    importable()
