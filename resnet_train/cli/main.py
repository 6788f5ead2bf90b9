"""``resnet-train``: what a command line asks for, and which exit code it ends with."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import hydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from resnet_train.cli.complete import complete
from resnet_train.cli.compose import VERSION_BASE, Composed, compose, compose_saved
from resnet_train.cli.explain import explain, is_config_error
from resnet_train.cli.help import help_text
from resnet_train.cli.job import Show, Train, check_inputs, console_log, run_and_report
from resnet_train.cli.overrides import PROGRAM, Request, merge_overrides, parse, unquoted, values_of, without
from resnet_train.cli.sweep import sweep
from resnet_train.config.run import Config
from resnet_train.config.store import config_folder, register_schema
from resnet_train.data.available import check_available
from resnet_train.errors import ConfigError
from resnet_train.runs import directory as directories
from resnet_train.runs import resume
from resnet_train.runs.console import printable
from resnet_train.runs.interrupt import Interrupted, ctrl_c
from resnet_train.runs.saved import saved_config, saved_invocation

EXIT_FAILED, EXIT_CONFIG = 1, 2


def main(arguments: Sequence[str], train: Train, answer: Show | None = None) -> int:
    """Run a command line; returns the exit code (0, 1 failed, 2 configuration, 128 + signal).

    ``train`` is `resnet_train.train.run`, which refuses ``summary=true`` and ``find_lr=true``, and ``answer`` is
    `resnet_train.train.show`, which answers them. With ``HYDRA_FULL_ERROR=1`` errors show where they come from.
    """
    try:
        return _main(parse(arguments), train, answer)
    except Interrupted as interrupted:
        return interrupted.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as ended:  # Hydra's own: --hydra-help, completion
        return ended.code if isinstance(ended.code, int) else EXIT_FAILED
    except Exception as error:
        if ctrl_c.pressed:  # whatever a library made of it
            print("interrupted", file=sys.stderr)
            return 130
        return fail(PROGRAM, error)


def fail(program: str, error: Exception) -> int:
    """Say what is wrong in one line, below the details that there may be; returns the exit code."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
    if isinstance(error, ConfigError) and error.details:
        print(error.details, file=sys.stderr)
    print(f"{program}: {printable(explain(error))}", file=sys.stderr)  # it may quote a stranger's file
    return EXIT_CONFIG if is_config_error(error) else EXIT_FAILED


def _main(request: Request, train: Train, answer: Show | None) -> int:
    if request.help:
        print(help_text())
    elif request.version:
        print(f"{PROGRAM} {metadata.version(PROGRAM)}")
    elif request.show:
        show(request, compose(request))
    elif offered := completion(request):
        print(" ".join(offered))
    elif request.info or request.passed_on:
        if request.info:
            compose(request)  # what would be refused is refused in one line
        register_schema()
        hydra.main(config_path=str(config_folder()), config_name="train", version_base=VERSION_BASE)(_unreachable)()
    elif request.multirun:
        return sweep(request, train)
    else:
        return run(request, train, answer)
    return 0


def completion(request: Request) -> list[str] | None:
    """What is offered for a word that is being typed; None where Hydra answers, or nothing is typed."""
    asked = request.passed_on and "query=bash" in request.overrides
    return complete(os.environ.get("COMP_LINE", "")) if asked else None


def _unreachable(_: DictConfig) -> None:
    raise AssertionError("Hydra only answers questions here")


def show(request: Request, composed: Composed) -> None:
    """Print the configuration, or one node of it; raises `ConfigError` where there is no such node."""
    node = composed.node
    if request.show != "job":
        with read_write(node), open_dict(node):
            node["hydra"] = composed.hydra
    shown = OmegaConf.masked_copy(node, "hydra") if request.show == "hydra" else node
    if request.package is not None and request.package != "_global_":
        shown = OmegaConf.select(node, request.package)
        if shown is None:
            raise ConfigError(f"--package: expected a node of the configuration, got {request.package!r}")
        print(f"# @package {request.package}")
    print(OmegaConf.to_yaml(shown, resolve=request.resolve) if OmegaConf.is_config(shown) else f"{shown}\n", end="")


# -------------------------------------------------------------------------------------------------------- a single run


def run(request: Request, train: Train, answer: Show | None) -> int:
    """One run, new or resumed; with ``summary=true`` or ``find_lr=true`` only a look."""
    for key in ("sweep", "max_failures"):
        if values_of(request.overrides, key):
            raise ConfigError(f"{key}: it is for sweeps; put -m in front, or leave it out")
    directory = resumed_directory(request)
    overrides = without(request.overrides, "resume")
    if directory is not None:
        return _resume(request.with_overrides(overrides), directory, train, answer)
    composed = compose(request, overrides)
    if composed.hydra.mode == RunMode.MULTIRUN:
        return sweep(replace(request, overrides=tuple(overrides), multirun=True), train)
    check_hydra(composed.hydra)
    if not composed.config.summary:  # which shows a network without its data
        check_inputs(composed.config)
    if composed.config.question and answer is not None:
        answer(composed.config)
        return 0
    fixed = values_of(overrides, "hydra.run.dir")
    wanted = Path(composed.hydra.run.dir)
    if fixed and directories.is_foreign(wanted):
        raise ConfigError(f"hydra.run.dir: expected a new or empty folder, or a run's, got {wanted}; choose another")
    directory, made = (wanted.absolute(), make(wanted)) if fixed else (directories.create(wanted), True)
    try:
        _train(request, overrides, composed.config, directory, train)
    except ConfigError:
        if made and not (directory / "checkpoints").exists():
            shutil.rmtree(directory, ignore_errors=True)  # the run never began: leave nothing behind
            if not fixed:
                with contextlib.suppress(OSError):  # not empty
                    directory.parent.rmdir()  # of the day
                    directory.parent.parent.rmdir()
        raise
    return 0


def make(directory: Path) -> bool:
    """Whether ``directory`` was made now, and by this process; what cannot be made is told later."""
    try:
        directory.mkdir(parents=True)
        return True
    except OSError:
        return False


def _resume(request: Request, directory: Path, train: Train, answer: Show | None) -> int:
    """Continue the run in ``directory``: the start of the order that `resnet_train.runs.resume` lists."""
    saved = saved_config(directory)
    composed = compose(request) if saved is None else compose_saved(request, saved)
    if composed.config.find_lr:
        raise ConfigError(
            f"find_lr: expected a run that begins, got the one in {directory}; init_from={directory} in place of "
            f"resume tries learning rates from its weights on"
        )
    if composed.config.question and answer is not None:
        answer(composed.config, directory)
        return 0
    finished = resume.finished_already(composed.config, directory.absolute())
    if finished:
        print(f"finished already: {finished.sentence()}\n{printable(finished.directory)}")
        return 0
    check_available(composed.config.dataset)
    earlier = saved_invocation(directory).overrides if saved is not None else []
    _train(request, merge_overrides(earlier, request.overrides), composed.config, directory.absolute(), train)
    return 0


def _train(request: Request, overrides: Sequence[str], config: Config, directory: Path, train: Train) -> None:
    directories.check_writable(directory)
    with console_log(), directories.log_file(directory):
        run_and_report(train, config, directory, without(overrides, "hydra.run.dir"), flags=request.flags)


def resumed_directory(request: Request) -> Path | None:
    """The run that is asked for, by ``resume=`` or as ``hydra.run.dir``; None for a new one. Raises `ConfigError`."""
    asked, fixed = values_of(request.overrides, "resume"), values_of(request.overrides, "hydra.run.dir")
    if asked and asked[-1] != "null":
        value = Path(unquoted(asked[-1]))
        if value.suffix == ".pt" and value.parent.name == "checkpoints":
            raise ConfigError(
                f"resume: expected a run directory, got the checkpoint {value}; resume={value.parent.parent} continues "
                f"from the newest one, init_from={value} starts a new run from this one"
            )
        return resume.find_directory(unquoted(asked[-1]))
    if fixed and directories.is_run(Path(unquoted(fixed[-1]))):
        return Path(unquoted(fixed[-1]))
    return None


def check_hydra(node: DictConfig) -> None:
    """Raise `ConfigError` for what Hydra would do around a job: a single run is called without it."""
    for key, value in (("hydra.callbacks", node.callbacks), ("hydra.job.env_set", node.job.env_set)):
        if value:
            raise ConfigError(f"{key}: only sweeps (-m) take it, got {OmegaConf.to_container(value)}; leave it out")
    if node.job.chdir:
        raise ConfigError("hydra.job.chdir: a run stays in the folder that it was started in; leave it out")
