"""What happens at resume, in this order. Needs no torch until a checkpoint is read.

1. The directory is found: the one that ``resume=`` or ``hydra.run.dir=`` names, or for ``resume=latest`` the newest
   one that is unfinished and in which no process is (`find_directory`).
2. The resolved configuration in the newest whole checkpoint is read as data; ``config.yaml`` counts only where there is
   none (`saved.saved_config`). The command line lays its overrides over it. Interpolations were resolved
   when the run began and are not resolved again.
3. The result is compared with what was saved. Each key that differs is named, and refused unless it is in `CHANGEABLE`
   or ``resume_force=true`` lets it through (`check_same_run`).
4. A run is over where its summary says so and its newest checkpoint has as many steps as are asked for now; then its
   summary is the answer (`finished_already`).
5. The newest checkpoint that is whole is taken; corrupt ones are named in the log and passed over
   (`Checkpoints.newest`). Where there is none at all, the run begins.
6. The configuration inside the checkpoint is compared as in 3; the data have to be those that it was trained on, class
   by class and image by image (`check_same_data`); the precision of this machine has to be the saved one, its kernels
   may differ, which is said (`choose_checkpoint`).
7. What was forced is written down, with the step, beside what earlier sessions forced (`Resumed.forced`).
8. The checkpoint is loaded (`training.restore`). Nothing but the lock and the log was written until here.
9. Where the configuration is another one now, a checkpoint of the same step is written with it, before anything else:
   what a run is and how far it is changes in one step (`training.session`). ``config.yaml``, ``invocation.json``,
   ``metrics.csv`` and the event files are copies of what the checkpoint holds, and are made whole again.
10. What has changed is announced, then the header (`training.report`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_train.config.older import NEWER, with_former
from resnet_train.config.paths import with_absolute_paths
from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.runs.console import printable
from resnet_train.runs.data_identity import DataIdentity, check_same_data
from resnet_train.runs.directory import CONFIG, INVOCATION, LOCK, NOT_SAVED, is_run, lasting
from resnet_train.runs.lock import is_held
from resnet_train.runs.saved import Notice, broken_copies, is_over, length, saved_config
from resnet_train.runs.summary import Summary, read_summary

if TYPE_CHECKING:
    from resnet_train.runs.checkpoint import Checkpoints

# Changes of these keys leave the run the same run. epochs and steps change its length, and with it the schedule.
CHANGEABLE = frozenset(
    {
        "channels_last",
        "checkpoint.every",
        "checkpoint.keep",
        "compile",
        "dataset.cache",
        "dataset.download",
        "dataset.labels",
        "dataset.mirrors",
        "dataset.root",
        "deterministic",
        "device",
        "diagnostics",
        "early_stop.min_delta",  # it and patience say how long the run is, as epochs does
        "early_stop.patience",
        "epochs",
        "eval_every",
        "graph",
        "kernels",
        "log_every",
        "max_time",  # of each session anew
        "name",
        "profile",
        "precision",  # auto may become fp32; what it means on this machine may not change: step 6
        "resume",
        "resume_force",
        "steps",
    }
)


# ----------------------------------------------------------------------------------------------------- 1: the directory


def find_directory(name: str, outputs: Path = Path("outputs")) -> Path:
    """The run directory that ``resume=NAME`` means; raises `ConfigError` where it holds nothing to continue."""
    if not name:
        raise ConfigError("resume: expected a run directory or latest, got nothing; resume=null starts a new run")
    directory = latest(outputs) if name == "latest" else Path(name)
    if not directory.is_dir():
        raise ConfigError(f"resume: expected a run directory, got {str(directory)!r}, which does not exist")
    if not is_run(directory):
        raise ConfigError(
            f"resume: expected a run directory, got {str(directory)!r}, which holds no {CONFIG}; "
            f"run directories look like outputs/2026-01-31/12-00-00-resnet20"
        )
    if not any(directory.glob("checkpoints/*.pt")):
        raise ConfigError(
            f"resume: expected a checkpoint in {directory}/checkpoints, found none; restore one from a backup, or "
            f"begin again in the same place with hydra.run.dir={directory}"
        )
    return directory


def latest(outputs: Path) -> Path:
    """The newest run under ``outputs`` that has not finished; raises `ConfigError` where there is none.

    Newest by the last change of its checkpoints, or of the run's beginning.
    """
    unfinished = []
    patterns = (CONFIG, INVOCATION, "checkpoints/step-*.pt")
    found = {path.parent for name in patterns for path in outputs.glob(f"**/{name}")}
    for directory in {path.parent if path.name == "checkpoints" else path for path in found}:
        if not is_over(directory) and not is_held(directory / LOCK):
            files = [directory / CONFIG, directory / INVOCATION, *directory.glob("checkpoints/step-*.pt")]
            unfinished.append((max((file.stat().st_mtime for file in files if file.exists()), default=0.0), directory))
    if not unfinished:
        raise ConfigError(f"resume=latest: expected an unfinished run under {str(outputs)!r}, found none")
    return max(unfinished)[1]


# ------------------------------------------------------------------------------------------ 3: is it still the same run


@dataclass(frozen=True)
class Change:
    """One key whose value differs from that of the saved run."""

    key: str
    saved: Any
    requested: Any

    @property
    def allowed(self) -> bool:
        """Whether the run remains the same run with it."""
        return self.key in CHANGEABLE

    def __str__(self) -> str:
        return f"{printable(self.key)}: saved {_shown(self.saved)}, requested {_shown(self.requested)}"


def changes(saved: dict[str, Any], config: Config) -> list[Change]:
    """Every key in which ``config`` differs from a saved one (plain, nested), sorted by key.

    A key that the saved one lacks, since its version had none, is no difference where it may change.
    """
    before, after = flatten(with_absolute_paths(with_former(saved))), flatten(lasting(config))
    before = {key: value for key, value in NEWER.items() if key in after} | before
    return [
        Change(key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if key.partition(".")[0] not in NOT_SAVED
        and (key in before or key not in CHANGEABLE)
        and (before.get(key), key in before) != (after.get(key), key in after)
    ]


def check_same_run(saved: dict[str, Any], config: Config, directory: Path) -> list[Change]:
    """Return the changes; raises `ConfigError` that names every one which would make it another run.

    With ``resume_force=true`` these are returned too.
    """
    found = changes(saved, config)
    refused = [change for change in found if not change.allowed]
    if refused and not config.resume_force:
        raise ConfigError(
            f"resume: this would be another run than the one in {directory}: "
            f"{'; '.join(map(str, refused))}. Leave it as it was, or start a new run",
            details=changes_table(found),
        )
    return found


def changes_table(found: list[Change]) -> str:
    """Changes as a person reads them: key, saved, requested, allowed or not."""
    rows = [("key", "saved", "requested", "allowed")]
    rows += [
        (printable(change.key), _shown(change.saved), _shown(change.requested), "yes" if change.allowed else "no")
        for change in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optim": {"lr": 0.1}}`` to ``{"optim.lr": 0.1}``."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _shown(value: Any) -> str:
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return printable(shown)


# -------------------------------------------------------------------------------------------------- 4: is anything left


def finished_already(config: Config, directory: Path) -> Summary | None:
    """The summary of a run that has nothing left to do.

    Raises `ConfigError` where ``directory`` holds another run, or one that stopped early and is to be longer.
    """
    saved = saved_config(directory)
    if saved is None:
        return None
    check_same_run(saved, config, directory)
    found = read_summary(directory)
    if found is None or not is_over(directory, found, lasting(config)):
        return None
    asked = length(lasting(config), found)
    if found.stopped_early and asked not in (found.steps, found.total_steps):
        raise ConfigError(
            f"{'epochs' if config.steps is None else 'steps'}: expected the run in {directory} to wait longer, for it "
            f"stopped early after {found.steps} of {found.total_steps} steps, with {found.waited} evaluations without "
            f"a rise, and would stop again; add early_stop.patience=null or more than {found.waited} to continue it"
        )
    return replace(found, directory=str(directory))  # which may have been moved


# --------------------------------------------------------------------------------------------- 5 to 7: what to continue


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run continues from, judged and accepted."""

    path: Path
    content: dict[str, Any]
    forced: list[str]  # changes that resume_force let through, in this session and the ones before
    changed: bool  # whether another configuration was saved than the one that continues
    notices: list[Notice]  # what to announce


def choose_checkpoint(
    config: Config, directory: Path, checkpoints: Checkpoints, *, precision: str, kernels: str, data: DataIdentity
) -> Resumed | None:
    """The newest whole checkpoint of the run in ``directory``; None where there is none and the run begins.

    Raises `ConfigError` where every checkpoint is corrupt, or where continuing would make it another run. ``precision``
    and ``kernels`` are those of this machine, ``data`` those that were read now.
    """
    found = checkpoints.newest()
    if found is None:
        return None
    path, content = found
    kept = content.get("forced")
    forced: list[str] = list(map(str, kept)) if isinstance(kept, list) else []
    forced_before = len(forced)
    notices = broken_copies(directory, content)
    saved, step = content.get("config"), _completed_steps(content)
    if not isinstance(saved, dict) or step is None:
        raise ConfigError(f"the checkpoint {path} is whole, but not of a run: it lacks its configuration or its steps")

    def force(change: str) -> None:
        notices.append((logging.WARNING, f"another run from here on, by resume_force: {change}"))
        forced.append(f"after {step} steps: {change}")

    found_changes = check_same_run(saved, config, directory)
    for change in found_changes:
        if change.allowed:
            notices.append((logging.INFO, f"changed for the rest of this run: {change}"))
        else:
            force(str(change))
    for difference in check_same_data(content, data, config, directory):
        force(f"data: {difference}")
    if "data" not in content:
        text = "the checkpoint is of version 0.1.0, which did not note its data: only the classes could be compared"
        notices.append((logging.INFO, text))
    trained = printable(str(content.get("precision")))
    if trained != precision:
        if not config.resume_force:
            raise ConfigError(
                f"precision: the run in {directory} was trained in {trained}, this would continue in "
                f"{precision} ({config.precision}); add precision={trained}"
            )
        force(f"precision: saved {trained}, requested {precision}")
    before = printable(str(content.get("kernels", "plain")))
    if before != kernels:
        change_of_kernels = f"kernels ({before} before, {kernels} now): equal to rounding, not to the bit"
        notices.append((logging.INFO, f"changed for the rest of this run: {change_of_kernels}"))
    return Resumed(path, content, forced, bool(found_changes or len(forced) > forced_before), notices)


def _completed_steps(content: dict[str, Any]) -> int | None:
    state = content.get("state")
    step = state.get("step") if isinstance(state, dict) else None
    return step if isinstance(step, int) else None
