"""A sweep: one run for each combination. All are checked first; a failing one does not end the others; a table ends it.

Hydra's sweepers and launchers run the jobs, so those that are installed as plugins work too (`launchers`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from resnet_train.cli.compose import compose, started
from resnet_train.cli.job import Job, TooManyFailures, Train, check_inputs
from resnet_train.cli.launchers import BASIC, plugin_overrides, sweeper_of
from resnet_train.cli.overrides import Request, key_of, merge_overrides, quoted, value_of, values_of, without
from resnet_train.errors import ConfigError, RunError
from resnet_train.runs import directory as directories
from resnet_train.runs.console import runnable
from resnet_train.runs.summary import read_summary, sweep_table

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
    """Run all jobs, print their table and return the exit code; raises what the first failing job raised."""
    options, request = take_sweep_options(request)
    if values_of(request.overrides, "resume"):
        raise ConfigError("resume: expected one run, got a sweep (-m); resume its jobs one by one, without -m")
    jobs = check_jobs(request)
    hydra = compose(request, [*jobs[0], "hydra.mode=MULTIRUN"]).hydra
    with started(request):
        check_discrete(request, hydra)
    plugins = plugin_overrides(hydra, request.overrides, max_failures=options.max_failures)
    directory = sweep_directory(options, request, Path(hydra.sweep.dir))
    overrides = [*without(request.overrides, "hydra.sweep.dir"), *plugins, f"hydra.sweep.dir={quoted(directory)}"]
    try:
        with started(request) as others:
            GlobalHydra.instance().hydra.multirun(  # type: ignore[union-attr]
                config_name=request.config_name,
                task_function=Job(train, flags=request.flags, failures_left=options.max_failures),
                overrides=[*others, *overrides, "hydra.mode=MULTIRUN"],
            )
    except TooManyFailures:
        raise RunError(
            f"the sweep was ended after {options.max_failures} failed jobs, as max_failures asks for"
        ) from None
    finally:
        failed = print_table(directory, jobs)
    if failed and sweeper_of(hydra) != BASIC:  # the basic one raises what the first of them raised
        raise RunError(f"{failed} jobs of the sweep have failed; train.log in the directory of each says why")
    return 0


def check_jobs(request: Request) -> list[list[str]]:
    """The overrides of all jobs, the first `MAX_CHECKED_JOBS` composed and checked; raises `ConfigError`."""
    with started(request):
        jobs = list(islice(expand(request.overrides), MAX_JOBS + 1))
    if len(jobs) > MAX_JOBS:
        raise ConfigError(f"expected a sweep of at most {MAX_JOBS:,} jobs, got more; sweep over fewer values")
    for job in jobs[:MAX_CHECKED_JOBS]:
        check_inputs(compose(request, job).config)
    return jobs


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
    return default.absolute() if values_of(request.overrides, "hydra.sweep.dir") else directories.create(default)


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
        overrides = directories.read_invocation(path.parent).overrides
        rank = order.get(frozenset(merge_overrides([], overrides)), len(order))
        found.append((rank, " ".join(overrides), path.parent))
    if not found:
        return 0
    found.sort()
    jobs, words = [job for _, _, job in found], [overrides for _, overrides, _ in found]
    print(f"\n{sweep_table(jobs, words)}\n\nsweep: {directory}")
    print(runnable("tensorboard", "--logdir", str(directory)))
    results = [read_summary(job) for job in jobs]
    return sum(result is not None and result.status == "failed" for result in results)
