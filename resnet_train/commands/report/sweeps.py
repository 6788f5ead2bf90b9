"""Jobs that a sweep at work has not begun yet: they have no directory, its plan names them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException

from resnet_train.cli.compose import started
from resnet_train.cli.overrides import key_of, merge_overrides, parse
from resnet_train.cli.sweep import MAX_JOBS, expand
from resnet_train.commands.report.records import RunRecord
from resnet_train.errors import ConfigError
from resnet_train.runs.atomic import read_regular
from resnet_train.runs.directory import LOCK, check_harmless
from resnet_train.runs.lock import seems_held

PLAN = "multirun.yaml"  # which Hydra writes when a sweep begins


def waiting_jobs(sweep: Path, begun: Sequence[RunRecord]) -> list[RunRecord]:
    """Jobs of the sweep in the directory ``sweep`` that are not among ``begun``; none where nobody works on it.

    Only Hydra's basic sweeper knows its jobs beforehand.
    """
    if not seems_held(sweep / LOCK):
        return []
    try:
        text = read_regular(sweep / PLAN).decode("utf-8")
        check_harmless(text)
        overrides = _planned(yaml.safe_load(text))
        with started(parse([])):
            jobs = list(islice(expand(overrides), MAX_JOBS)) if overrides else []
    except (OSError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError, ConfigError, HydraException):
        return []
    known = {_identity(record.overrides) for record in begun}
    given = [set(job) for job in jobs]
    shared = set.intersection(*given) if len(jobs) > 1 else set()
    # The path only names the job, until it has a directory of its own.
    return [
        RunRecord(sweep / " ".join(one for one in job if one not in shared), "waiting", {}, job)
        for job in jobs
        if _identity(job) not in known
    ]


def _planned(plain: dict[str, Any]) -> list[str]:
    hydra = plain["hydra"]
    if not str(hydra["sweeper"]["_target_"]).endswith(".BasicSweeper"):
        return []
    return [str(override) for override in hydra["overrides"]["task"]]


def _identity(overrides: Sequence[str]) -> frozenset[str]:
    return frozenset(one for one in merge_overrides([], overrides) if not key_of(one).startswith("hydra."))
