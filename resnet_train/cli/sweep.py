"""A sweep: one run for each combination. All are checked first; a failing one does not end the others; a table ends it.

Hydra's sweepers and launchers run the jobs, so those that are installed as plugins work too (`launchers`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from resnet_train.cli.compose import compose, started
from resnet_train.cli.job import STOPPED, Job, TooManyFailures, Train, check_inputs
from resnet_train.cli.launchers import BASIC, forward, launcher_of, plugin_overrides, sweeper_of
from resnet_train.cli.overrides import Request, key_of, merge_overrides, quoted, value_of, values_of, without
from resnet_train.cli.sweep_table import SweepJob, sweep_table
from resnet_train.errors import ConfigError, RunError
from resnet_train.runs import directory as directories
from resnet_train.runs.console import runnable
from resnet_train.runs.interrupt import Interrupted, StopSignal
from resnet_train.runs.summary import read_summary

MAX_CHECKED_JOBS = 200  # of a sweep, before it starts; a composition takes some 0.1 s
MAX_JOBS = 10_000  # of Hydra's basic sweeper, which holds them all in memory


@dataclass(frozen=True)
class SweepOptions:
    """What is the sweep's own, not its jobs'."""

    name: str | None = None  # of a sweep that can be given again, and then continues
    max_failures: int | None = None


def take_sweep_options(request: Request) -> tuple[SweepOptions, Request]:
    """Take ``sweep=NAME`` and ``max_failures=N`` out of the overrides; raises `ConfigError` for other values."""
    rules = {
        "sweep": (
            r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(\.|$))[\w.+-]*[\w+-]",  # what Windows can name a folder
            "a name of letters, digits and . _ + -",
        ),
        "max_failures": (r"[1-9]\d{0,9}", "a number above 0"),
    }
    found: dict[str, str] = {}
    for override in request.overrides:
        key, value = key_of(override), value_of(override)
        if key in rules:
            pattern, expected = rules[key]
            if not re.fullmatch(pattern, value):
                raise ConfigError(f"{key}: expected {expected}, got {value!r}")
            found[key] = value
    options = SweepOptions(found.get("sweep"), int(found["max_failures"]) if "max_failures" in found else None)
    return options, request.with_overrides(without(request.overrides, *rules))


def sweep(request: Request, train: Train) -> int:
    """Run all jobs, print their table and return the exit code; raises what the first failing job raised.

    Signals are the sweep's from here to the table: the jobs that run are saved, and no other begins.
    """
    options, request = take_sweep_options(request)
    if values_of(request.overrides, "resume"):
        raise ConfigError("resume: expected one run, got a sweep (-m); resume its jobs one by one, without -m")
    marker: list[Path] = []

    def spread(signum: int) -> None:
        for path in marker:
            path.touch()
        forward(signum)

    with StopSignal(forward=spread) as stop, ExitStack() as stack:
        jobs, hydra, overrides, keys = plan(request, options, stop)
        directory = sweep_directory(options, request, Path(hydra.sweep.dir))
        stack.enter_context(directories.lock(directory, kind="sweep"))
        marker.append(directory / STOPPED)
        marker[0].unlink(missing_ok=True)
        job = Job(
            train,
            flags=request.flags,
            swept=keys,
            failures_left=options.max_failures,
            stop=stop if launcher_of(hydra) == BASIC else None,
        )
        try:
            with started(request) as others:
                GlobalHydra.instance().hydra.multirun(  # type: ignore[union-attr]
                    config_name=request.config_name,
                    task_function=job,
                    overrides=[*others, *overrides, f"hydra.sweep.dir={quoted(directory)}", "hydra.mode=MULTIRUN"],
                )
            if stop.signum is not None and sweeper_of(hydra) != BASIC:  # which raises if a job was not run to its end
                raise Interrupted(stop.signum)
        except TooManyFailures:
            raise RunError(
                f"the sweep was ended after {options.max_failures} failed jobs, as max_failures asks for"
            ) from None
        except Exception:
            if stop.signum is not None:
                raise Interrupted(stop.signum) from None
            raise
        finally:
            failed = print_table(directory, jobs)
            marker[0].unlink(missing_ok=True)
    if failed and sweeper_of(hydra) != BASIC:  # the basic one raises what the first of them raised
        raise RunError(f"{failed} jobs of the sweep have failed; train.log in the directory of each says why")
    return 0


def plan(
    request: Request, options: SweepOptions, stop: StopSignal
) -> tuple[list[list[str]], DictConfig, list[str], list[str]]:
    """All jobs, checked; Hydra's own configuration; the overrides for it; the swept keys. Raises `ConfigError`."""
    with started(request):
        jobs = list(islice(expand(request.overrides), MAX_JOBS + 1))
    if not jobs:
        raise ConfigError(f"expected values to sweep over, got none: {' '.join(request.overrides)}")
    hydra = compose(request, [*jobs[0], "hydra.mode=MULTIRUN"]).hydra
    if len(jobs) > MAX_JOBS and sweeper_of(hydra) == BASIC:  # others choose some of them
        raise ConfigError(f"expected a sweep of at most {MAX_JOBS:,} jobs, got more; sweep over fewer values")
    for job in jobs[:MAX_CHECKED_JOBS]:
        if stop.signum is not None:
            raise Interrupted(stop.signum)
        config = compose(request, job).config
        if key := config.question:
            raise ConfigError(f"{key}: expected one network, got a sweep (-m); leave -m and its lists out")
        check_inputs(config)
    with started(request):
        check_discrete(request, hydra)
        keys = swept_keys(request.overrides)
    overrides = [
        *without(request.overrides, "hydra.sweep.dir"),
        *plugin_overrides(hydra, request.overrides, max_failures=options.max_failures),
    ]
    if not values_of(request.overrides, "hydra.sweep.subdir"):
        overrides.append(f"hydra.sweep.subdir='{job_folder(keys)}'")
    return jobs, hydra, overrides, keys


def job_folder(keys: Sequence[str]) -> str:
    """The folder of a job, as an interpolation: see `resnet_train.config.store.job_name`."""
    parts = "${name},${hydra.overrides.task},${hydra.job.override_dirname},${hydra.sweep.dir}"
    return f'${{job_name:{parts},"{" ".join(keys)}"}}'


def check_discrete(request: Request, hydra: DictConfig) -> None:
    """Raise `ConfigError` for values that the basic sweeper cannot list."""
    if sweeper_of(hydra) != BASIC:
        return
    for override in parsed(request.overrides):
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise ConfigError(
                f"{override.get_key_element()}: expected values to run through, as in 0.1,0.2, got "
                f"{override.get_value_string()}, which takes a sweeper such as hydra/sweeper=optuna"
            )


def sweep_directory(options: SweepOptions, request: Request, default: Path) -> Path:
    """The directory that was asked for, by name or path, or a new one; absolute."""
    if options.name is not None:
        return Path("outputs", "sweeps", options.name).absolute()
    if not values_of(request.overrides, "hydra.sweep.dir"):
        return directories.create(default)
    ours = any(default.glob(f"*/{directories.INVOCATION}")) or (default / "multirun.yaml").exists()
    if not ours and directories.is_foreign(default):
        raise ConfigError(
            f"hydra.sweep.dir: expected a new or empty folder or that of a sweep, got {default}; choose another"
        )
    return default.absolute()


def expand(overrides: Sequence[str]) -> Iterator[list[str]]:
    """The combinations that Hydra's basic sweeper runs, one list of overrides a job, made one by one.

    What is no list of values (``interval`` of other sweepers) is left out. Needs Hydra `started`.
    """
    axes: dict[str, Callable[[], Iterable[str]]] = {}
    for override in parsed(overrides):
        key = override.get_key_element()
        if not override.is_sweep_override():
            fixed = override.get_value_element_as_str()
            axes[key] = lambda fixed=fixed: [fixed]  # type: ignore[misc]
        elif override.is_discrete_sweep():
            axes[key] = override.sweep_string_iterator

    def combinations(keys: Sequence[str]) -> Iterator[list[str]]:
        if not keys:
            yield []
            return
        for value in axes[keys[0]]():
            for rest in combinations(keys[1:]):
                yield [f"{keys[0]}={value}", *rest]

    return combinations(list(axes))


def parsed(overrides: Sequence[str]) -> list[Override]:
    """Overrides in Hydra's own form. Needs Hydra `started`, since ``glob`` looks at the options of a group."""
    loader = GlobalHydra.instance().config_loader()
    return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))


def swept_keys(overrides: Sequence[str]) -> list[str]:
    """Keys that the jobs differ in. Needs Hydra `started`."""
    return [override.get_key_element().lstrip("+~") for override in parsed(overrides) if override.is_sweep_override()]


def print_table(directory: Path, combinations: Sequence[Sequence[str]]) -> int:
    """Print the jobs with their results: those of this command in its order, then earlier ones; how many failed."""
    order = {
        frozenset(
            override for override in merge_overrides([], job) if not key_of(override).startswith("hydra.")
        ): number
        for number, job in enumerate(combinations)
    }
    found = []
    for path in directory.glob(f"*/{directories.INVOCATION}"):
        try:
            overrides = directories.read_invocation(path.parent).overrides
        except ConfigError:
            overrides = []  # corrupt, or not ours: the job is listed all the same
        rank = order.get(frozenset(merge_overrides([], overrides)), len(order))
        found.append((rank, path.parent, overrides))
    if not found:
        return 0
    found.sort()
    jobs = [SweepJob(path.name, overrides, read_summary(path)) for _, path, overrides in found]
    print(f"\n{sweep_table(jobs)}\n\nsweep: {directory}")
    print(runnable("tensorboard", "--logdir", str(directory)))
    return sum(job.summary is not None and job.summary.status == "failed" for job in jobs)
