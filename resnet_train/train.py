"""The entry point: ``resnet-train [overrides]`` from a shell, `run` from Python.

Words of the shell become a typed `Config` (cli.py), the config becomes a run (loop.py). torch is imported in between,
so that help, completion and every configuration error answer at once.
"""

from __future__ import annotations

import os
import shlex
import sys
from datetime import datetime
from pathlib import Path

from resnet_train import rundir, summary
from resnet_train.config.run import Config
from resnet_train.resume import Invocation, check_same_run
from resnet_train.summary import Summary


def run(
    config: Config,
    *,
    directory: Path | None = None,
    invocation: Invocation | None = None,
    command: str | None = None,
) -> Summary:
    """Train what ``config`` describes and return what came of it.

    Args:
        config: checked when it was made; see `resnet_train.config`.
        directory: of the run; one that holds the same run already is taken up where it stopped. By default a new one
            under ``outputs/``, or ``config.resume``.
        invocation: the words to compose ``config`` again, kept for ``resume=``.
        command: what was typed, for the summary.

    Raises:
        ConfigError: ``config`` does not fit the data, the machine, or the run that ``directory`` holds.
        RunError: training failed, e.g. the loss was not finite.
        Interrupted: a signal asked to stop; everything is saved.
    """
    if directory is None and config.resume:
        directory = Path(config.resume)
    if directory is None:
        now = datetime.now()
        directory = rundir.create(Path("outputs") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}-{config.name}")
    directory = directory.absolute()
    finished = finished_already(config, directory)
    if finished:
        return finished
    with rundir.lock(directory), rundir.log_file(directory):
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        from resnet_train.loop import train

        return train(config, directory, invocation=invocation, command=command or shlex.join(sys.argv))


def finished_already(config: Config, directory: Path) -> Summary | None:
    """The summary of a run that has nothing left to do; raises `ConfigError` where ``directory`` holds another run."""
    saved = rundir.read_config(directory)
    if saved is None:
        return None
    lengthened = any(change.key in ("epochs", "steps") for change in check_same_run(saved, config, directory))
    found = summary.read(directory)
    return found if found is not None and found.status == "finished" and not lengthened else None


def main() -> None:
    """``resnet-train``, ``python -m resnet_train.train``."""
    from resnet_train import cli

    sys.exit(cli.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
