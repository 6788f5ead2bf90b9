"""From the words of a shell to a `Config`: the one place that knows Hydra. Does not import torch.

A run is composed and checked here first, before Hydra makes a directory or opens a log, so that a word that is wrong
leaves nothing behind. Then Hydra takes over: it composes the same words again and calls `_task`, once, or once for
each job of a sweep.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import product
from pathlib import Path
from textwrap import indent
from typing import Any

import hydra
from hydra import compose, version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from resnet_train import resume, rundir, summary
from resnet_train.config.dataset import CifarConfig
from resnet_train.config.run import Config
from resnet_train.config.store import config_folder, options_of, register_schema, unknown_keys
from resnet_train.console import duration
from resnet_train.data.available import check_available
from resnet_train.errors import ConfigError, RunError
from resnet_train.explain import PROGRAM, explain, is_config_error, natural, unknown_key_message
from resnet_train.interrupt import Interrupted
from resnet_train.resume import Invocation

MAX_CHECKED_JOBS = 200  # of a sweep, before it starts; a composition takes some 0.1 s
EXIT_FAILED, EXIT_CONFIG = 1, 2


def main(words: list[str]) -> int:
    """Run the command line; returns the exit code (0, 1 failed, 2 configuration, 128 + signal)."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        return _main(words)
    except Interrupted as interrupted:
        return interrupted.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as ended:  # Hydra's own: help, flags that argparse refuses
        return ended.code if isinstance(ended.code, int) else EXIT_FAILED
    except Exception as error:
        if wants_traceback:
            traceback.print_exc()
        if isinstance(error, ConfigError) and error.details:
            print(error.details, file=sys.stderr)
        code = EXIT_CONFIG if is_config_error(error) else EXIT_FAILED
        print(f"{PROGRAM}: {explain(error)}", file=sys.stderr)
        return code


def _main(words: list[str]) -> int:
    register_schema()
    request = parse(words)
    if request.help:
        print(help_text())
        return 0
    if request.version:
        print(f"{PROGRAM} {metadata.version(PROGRAM)}")
        return 0
    if request.shows_config:
        compose_config(request, request.overrides)  # what would be refused is not shown as if it were not
    if request.only_shows:
        _call_hydra([expand_home(word) for word in words])
        return 0
    if request.multirun:
        return _sweep(request)
    return _run(request)


# -------------------------------------------------------------------------------------------------------------- parsing


@dataclass
class Request:
    """A command line, taken apart."""

    flags: list[str]  # --config-dir and the like, to be repeated when a run is resumed
    overrides: list[str]
    multirun: bool
    help: bool
    version: bool
    shows_config: bool
    only_shows: bool  # configuration, completion: nothing runs
    config_name: str
    config_dir: str | None

    @property
    def words(self) -> list[str]:
        """The command line again."""
        return [*self.flags, *self.overrides, *(["--multirun"] if self.multirun else [])]


class _Parser(argparse.ArgumentParser):
    """Hydra's flags, with errors as `ConfigError` instead of a usage text."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{message}; {PROGRAM} --help lists what there is")


def parse(words: list[str]) -> Request:
    """Split a command line into Hydra's flags and overrides; raises `ConfigError` for unknown flags."""
    parser = _Parser(add_help=False, parents=[get_args_parser()], conflict_handler="resolve")
    parser.add_argument("--version", action="store_true")
    arguments = parser.parse_intermixed_args(words)  # flags may stand anywhere
    if arguments.cfg and arguments.multirun:
        raise ConfigError("--cfg shows the configuration of one run; expected no -m and no lists of values beside it")
    modes = {
        "--run": arguments.run,
        "--multirun": arguments.multirun,
        "--cfg": arguments.cfg,
        "--info": arguments.info is not None,
        "--shell-completion": arguments.shell_completion,
    }
    chosen = [flag for flag, given in modes.items() if given]
    if len(chosen) > 1:
        raise ConfigError(f"expected one of {', '.join(modes)}, got {' and '.join(chosen)}")
    if arguments.resolve and not arguments.cfg:
        raise ConfigError("--resolve shows a configuration as it will be used; expected --cfg job beside it")
    flags: list[str] = []
    for flag, value in (("--config-dir", arguments.config_dir), ("--config-path", arguments.config_path)):
        if value is not None:
            if not Path(value).is_dir():
                raise ConfigError(f"{flag}: expected a folder of YAML files, got {value!r}, which is none")
            flags += [flag, str(Path(value).absolute())]
    if arguments.config_name is not None:
        flags += ["--config-name", arguments.config_name]
    return Request(
        flags=flags,
        overrides=[expand_home(word) for word in arguments.overrides],
        multirun=arguments.multirun,
        help=arguments.help,
        version=arguments.version,
        shows_config=arguments.cfg in ("job", "all"),
        only_shows=bool(
            arguments.hydra_help
            or arguments.cfg
            or arguments.info is not None
            or arguments.shell_completion
            or arguments.experimental_rerun
        ),
        config_name=arguments.config_name or "train",
        config_dir=arguments.config_dir,
    )


def expand_home(override: str) -> str:
    """``dataset.root='/home/me/data'`` for ``dataset.root=~/data``, which shells leave as it is."""
    key, _, value = override.partition("=")
    return f"{key}={quoted(Path(value).expanduser())}" if value == "~" or value.startswith("~/") else override


def key_of(override: str) -> str:
    """``optim.lr`` for ``+optim.lr=0.1``."""
    return override.lstrip("+~").partition("=")[0]


def merge_overrides(saved: Sequence[str], given: Sequence[str]) -> list[str]:
    """Saved overrides, then those given now; of two for one key the later one stays."""
    merged: dict[str, str] = {}
    for override in (*saved, *given):
        merged.pop(key_of(override), None)
        merged[key_of(override)] = override
    return list(merged.values())


def help_text() -> str:
    """What there is to set: groups with their options, and the commented values of conf/train.yaml."""
    groups = "\n".join(
        f"  {group + '=':12}{', '.join(sorted(options_of(group), key=natural))}"
        for group in ("model", "dataset", "optim", "schedule", "experiment")
    )
    _, _, values = (config_folder() / "train.yaml").read_text().partition("\nname:")
    values = "name:" + values.partition("\nhydra:")[0]
    return f"""\
{PROGRAM} trains a residual network; every word changes one value of its configuration.

  {PROGRAM} experiment=quick                          a recipe: ResNet-20 on CIFAR-10 in ten epochs
  {PROGRAM} model=resnet18 optim.lr=0.1               a run of your own, into a new directory under outputs/
  {PROGRAM} -m model=resnet20,resnet32 seed=0,1,2     a sweep: one run for each combination
  {PROGRAM} resume=outputs/DATE/TIME-NAME             go on where a run stopped, exactly; resume=latest: the newest

Groups:
{groups}
  The keys of an option, and what they mean, stand in its file in {config_folder()}

Values (conf/train.yaml):
{indent(values, "  ")}
Flags:
  -m, --multirun        run every combination of comma-separated values
  --cfg job             print the whole configuration and do nothing; with --resolve, as it will be used
  --config-dir DIR      a folder with YAML options of your own; with --config-name NAME, of your own main file
  --version             the version of this program
  -sc install=bash      complete words in this shell (bash, zsh, fish)
  --hydra-help          all flags of Hydra"""


# ------------------------------------------------------------------------------------------------------------ composing


def compose_config(request: Request, overrides: Sequence[str]) -> tuple[Config, DictConfig]:
    """Compose and check; returns the typed config and Hydra's own node, as ``cfg.hydra``."""
    search_path = create_config_search_path(str(config_folder()))
    if request.config_dir:
        folder = Path(request.config_dir).absolute()
        search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    version.setbase("1.3")
    Hydra.create_main_hydra2(task_name=PROGRAM, config_search_path=search_path)
    try:
        composed = compose(request.config_name, overrides=list(overrides), return_hydra_config=True)
    except (ConfigError, HydraException, OmegaConfBaseException):
        raise
    except Exception as error:  # Hydra's parser meets some words with a bare ValueError or AssertionError
        raise ConfigError(f"cannot make sense of {shlex.join(overrides)}: {error}") from error
    finally:
        GlobalHydra.instance().clear()
    with read_write(composed), open_dict(composed):
        hydra_node = composed.pop("hydra")
    return to_config(composed), hydra_node


def to_config(composed: DictConfig) -> Config:
    """Convert what Hydra composed, once; raises `ConfigError` for unknown keys and values out of range."""
    if OmegaConf.get_type(composed) is not Config:
        raise ConfigError("the primary config lacks the schema; begin its defaults with: - schema/train@_here_")
    unknown = unknown_keys(composed, Config)
    if unknown:
        raise ConfigError(unknown_key_message(unknown[0], composed))
    for group in filter(options_of, map(str, composed)):
        if not OmegaConf.is_interpolation(composed, group) and composed[group] is None:
            raise ConfigError(f"{group}: expected one of {', '.join(sorted(options_of(group), key=natural))}, got null")
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, ConfigError):
            raise cause from None
        raise
    assert isinstance(config, Config)
    return config


def offline_config(overrides: list[str]) -> tuple[Config, list[str], str]:
    """Compose as resnet-train does; without CIFAR-10 at hand, made-up images of the same shape take its place.

    Returns the configuration, the overrides that make it, and a few words on the images.
    """
    config, _ = compose_config(parse(overrides), overrides)
    if isinstance(config.dataset, CifarConfig):
        try:
            config.dataset.download = False
            check_available(config.dataset)
        except ConfigError:
            shape = ["dataset=synthetic", "dataset.num_train=50000", "dataset.num_test=10", "dataset.image_size=32"]
            classes = 10 if config.dataset.name == "cifar10" else 100
            kept = [word for word in overrides if not key_of(word).startswith("dataset")]
            overrides = [*kept, *shape, "dataset.augment.flip=true", f"dataset.num_classes={classes}"]
            config, _ = compose_config(parse(overrides), overrides)
            return config, overrides, "made-up images of the same shape, since CIFAR is not at hand"
    return config, overrides, config.dataset.name


# -------------------------------------------------------------------------------------------------------------- running


def _run(request: Request) -> int:
    """One run, new or taken up again."""
    given = request.overrides
    for word in given:
        if word.partition("=")[0] in ("sweep", "max_failures"):
            raise ConfigError(f"{key_of(word)}: it is for sweeps; put -m in front, or leave it out")
    asked = [word for word in given if key_of(word) == "resume"]
    directory: Path | None = None
    if asked and asked[-1].partition("=")[2] != "null":
        directory = _resumed_directory(asked[-1].partition("=")[2])
    given = [word for word in given if key_of(word) != "resume"]
    fixed = [word.partition("=")[2] for word in given if key_of(word) == "hydra.run.dir"]
    if directory is None and fixed and resume.is_run(Path(fixed[-1])):
        directory = Path(fixed[-1])
    if directory is not None:
        invocation = resume.read_invocation(directory)
        request.flags = invocation.flags + [flag for flag in request.flags if flag not in invocation.flags]
        saved = parse(invocation.flags)
        request.config_name, request.config_dir = saved.config_name, saved.config_dir
        given = merge_overrides(invocation.overrides, given)
        if asked and not any(directory.glob("checkpoints/*.pt")):
            raise ConfigError(
                f"resume: expected a checkpoint in {directory}/checkpoints, found none; restore one from a backup, or "
                f"begin again in the same place with hydra.run.dir={directory}"
            )
    words = [word for word in given if key_of(word) != "hydra.run.dir"]
    config, hydra_node = compose_config(request, given)
    if hydra_node.mode == RunMode.MULTIRUN:
        request.overrides, request.multirun = given, True
        return _sweep(request)
    if directory is not None:
        from resnet_train.train import finished_already

        finished = finished_already(config, directory.absolute())
        if finished:
            print(f"finished already: {finished.sentence()}\n{finished.directory}")
            return 0
    check_available(config.dataset)
    if directory is None:  # a run that is taken up has weights of its own
        check_weights(config)
    made = False
    if directory is None:
        directory = Path(hydra_node.run.dir)
        made = not directory.exists()
        directory = directory if fixed else rundir.create(directory)
    directory = directory.absolute()
    rundir.check_writable(directory)
    global _flags
    _flags = request.flags
    try:
        _call_hydra([*request.flags, *words, f"hydra.run.dir={quoted(directory)}"])
    except ConfigError:
        if made and not (directory / "checkpoints").exists():
            shutil.rmtree(directory, ignore_errors=True)  # the run never began: leave nothing behind
            if not fixed:
                with contextlib.suppress(OSError):  # not empty
                    directory.parent.rmdir()  # of the day
                    directory.parent.parent.rmdir()
        raise
    return 0


def check_weights(config: Config) -> None:
    """Raise `ConfigError` where ``init_from`` names nothing."""
    if config.init_from is not None and not Path(config.init_from).exists():
        raise ConfigError(
            f"init_from: expected a run directory or a file, got {config.init_from!r}, which does not exist"
        )


def _resumed_directory(word: str) -> Path:
    word = word.strip("\"'")
    if not word:
        raise ConfigError("resume: expected a run directory or latest, got nothing; resume=null starts a new run")
    return resume.latest(Path("outputs")) if word == "latest" else Path(word)


def _sweep(request: Request) -> int:
    """A job for each combination; whatever happens to one of them, the others run. Ends with a table."""
    name, allowed_failures = take_sweep_words(request)
    if any(key_of(word) == "resume" for word in request.overrides):
        raise ConfigError("resume: expected one run, got a sweep (-m); resume its jobs one by one, without -m")
    combinations = expand(request.overrides)
    for combination in combinations[:MAX_CHECKED_JOBS]:
        config, _ = compose_config(request, combination)
        check_available(config.dataset)
        check_weights(config)
    first = combinations[0]
    _, hydra_node = compose_config(request, [*first, "hydra.mode=MULTIRUN"])
    fixed = name is not None or any(key_of(word) == "hydra.sweep.dir" for word in request.overrides)
    directory = Path("outputs", "sweeps", name) if name is not None else Path(hydra_node.sweep.dir)
    directory = directory.absolute() if fixed else rundir.create(directory)
    global _flags, _failures_left
    _flags, _failures_left = request.flags, allowed_failures
    words = [word for word in request.overrides if key_of(word) != "hydra.sweep.dir"]
    try:
        _call_hydra([*request.flags, *words, f"hydra.sweep.dir={quoted(directory)}", "--multirun"])
    except TooManyFailures:
        raise RunError(f"the sweep was ended after {allowed_failures} failed jobs, as max_failures asks for") from None
    finally:
        print_table(directory, combinations)
    return 0


class TooManyFailures(BaseException):
    """Ends a sweep: not an ``Exception``, which Hydra would keep until all jobs have run."""


def take_sweep_words(request: Request) -> tuple[str | None, int | None]:
    """Take ``sweep=NAME`` and ``max_failures=N`` out of the overrides."""
    found = {"sweep": "", "max_failures": ""}
    for word in request.overrides:
        if word.partition("=")[0] in found:
            found[word.partition("=")[0]] = word.partition("=")[2]
            if not re.fullmatch(r"[\w.+-]+" if word.startswith("sweep=") else r"[1-9]\d*", word.partition("=")[2]):
                expected = "a name of letters, digits and . _ + -" if word.startswith("sweep=") else "a number above 0"
                raise ConfigError(f"{key_of(word)}: expected {expected}, got {word.partition('=')[2]!r}")
    request.overrides = [word for word in request.overrides if word.partition("=")[0] not in found]
    return found["sweep"] or None, int(found["max_failures"]) if found["max_failures"] else None


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """The combinations that Hydra's basic sweeper will run: one list of overrides a job."""
    axes = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_sweep_override():
            if override.is_discrete_sweep():
                key = override.get_key_element()
                axes.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            axes.append([f"{override.get_key_element()}={override.get_value_element_as_str()}"])
    return [list(combination) for combination in product(*axes)]


def print_table(directory: Path, combinations: Sequence[Sequence[str]]) -> None:
    """Print the jobs of a sweep with their results: those of this command in its order, then those of earlier ones."""
    order = {
        frozenset(word for word in merge_overrides([], words) if not key_of(word).startswith("hydra.")): number
        for number, words in enumerate(combinations)
    }
    found = []
    for path in directory.glob(f"*/{resume.INVOCATION}"):
        words = resume.read_invocation(path.parent).overrides
        found.append((order.get(frozenset(merge_overrides([], words)), len(order)), " ".join(words), path.parent))
    if found:
        jobs, overrides = [job for _, _, job in sorted(found)], [words for _, words, _ in sorted(found)]
        print(f"\n{summary.sweep_table(jobs, overrides)}\n\nsweep: {directory}")
        print(f"tensorboard --logdir {shlex.quote(str(directory))}")


_failures_left: int | None = None  # of a sweep, until it ends
_flags: list[str] = []  # of this process's command line; Hydra does not hand them to the task
_failure: list[Exception] = []  # of a single run: raised behind Hydra's back, which would print lines of its own


def _task(composed: DictConfig) -> float | None:
    """One job, called by Hydra; returns what sweepers maximise."""
    hydra_config = HydraConfig.get()
    try:
        return _job(composed, hydra_config)
    except Exception as error:
        if hydra_config.mode == RunMode.MULTIRUN:
            _count_failure()
            raise
        _failure.append(error)
        return None


def _count_failure() -> None:
    global _failures_left
    if _failures_left is not None:
        _failures_left -= 1
        if _failures_left == 0:
            raise TooManyFailures


def _job(composed: DictConfig, hydra_config: Any) -> float | None:
    directory = Path(hydra_config.runtime.output_dir)
    overrides = list(hydra_config.overrides.task)
    # A change is forced through once, not whenever the run is taken up again.
    invocation = Invocation(_flags, [word for word in overrides if key_of(word) != "resume_force"])
    with rundir.log_file(directory):
        if not resume.is_run(directory):
            invocation.write(directory)
        config = to_config(composed)
        from resnet_train.train import run

        result = run(
            config,
            directory=directory,
            invocation=invocation,
            command=shlex.join([PROGRAM, *_flags, *overrides]),
        )
    print(
        f"\n{result.sentence()}\n"
        f"trained {duration(result.train_seconds)} at {result.images_per_second:,.0f} images/s, "
        f"{duration(result.total_seconds)} in all\n"
        f"{result.directory}\n"
        f"  tensorboard --logdir {shlex.quote(result.directory)}\n"
        f"  {PROGRAM} resume={shlex.quote(result.directory)} {'steps' if config.steps else 'epochs'}=...   # train on"
    )
    return result.objective


def _call_hydra(words: list[str]) -> None:
    """Give ``words`` to Hydra, whose errors then reach `main` instead of being printed."""
    before = os.environ.get("HYDRA_FULL_ERROR"), sys.argv
    os.environ["HYDRA_FULL_ERROR"], sys.argv = "1", [PROGRAM, *words]
    GlobalHydra.instance().clear()
    try:
        hydra.main(config_path=str(config_folder()), config_name="train", version_base="1.3")(_task)()
        if _failure:
            raise _failure.pop()
    finally:
        sys.argv = before[1]
        if before[0] is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before[0]


def quoted(path: Path) -> str:
    """A path as a value in Hydra's grammar."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"
