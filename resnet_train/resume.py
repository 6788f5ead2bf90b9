"""Finding a run again, and judging whether a changed configuration still is that run. Needs no torch."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resnet_train import summary
from resnet_train.config.run import Config
from resnet_train.errors import ConfigError

INVOCATION = "invocation.json"
# Changes of these keys leave the run the same run. epochs and steps change its length, and with it the schedule.
CHANGEABLE = frozenset(
    {
        "channels_last",
        "checkpoint.every",
        "checkpoint.keep",
        "compile",
        "dataset.cache",
        "dataset.download",
        "dataset.mirrors",
        "dataset.root",
        "deterministic",
        "device",
        "epochs",
        "eval_every",
        "graph",
        "kernels",
        "log_every",
        "name",
        "profile",
        "precision",  # the word may change, what it means on this machine may not: loop.restore compares that
        "resume",
        "resume_force",
        "steps",
    }
)


@dataclass(frozen=True)
class Invocation:
    """The words that started a run, as Hydra takes them: enough to compose its configuration again."""

    flags: list[str]  # --config-dir and the like
    overrides: list[str]

    def write(self, directory: Path) -> None:
        """Write ``invocation.json`` atomically."""
        temporary = directory / f".{INVOCATION}.tmp"
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")
        os.replace(temporary, directory / INVOCATION)


def is_run(directory: Path) -> bool:
    """Whether a run was once started in ``directory``."""
    return (directory / INVOCATION).is_file()


def read_invocation(directory: Path) -> Invocation:
    """The words that started the run in ``directory``; raises `ConfigError` where that is not a run."""
    if not directory.is_dir():
        raise ConfigError(f"resume: expected a run directory, got {str(directory)!r}, which does not exist")
    path = directory / INVOCATION
    try:
        plain = json.loads(path.read_text())
        invocation = Invocation(**plain)
        lists = (invocation.flags, invocation.overrides)
        if not all(isinstance(words, list) and all(isinstance(word, str) for word in words) for words in lists):
            raise ValueError("expected lists of words")
    except FileNotFoundError:
        raise ConfigError(
            f"resume: expected a run directory, got {str(directory)!r}, which holds no {INVOCATION}; "
            f"run directories look like outputs/2026-01-31/12-00-00-resnet20"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"resume: {path} is damaged: {str(error).splitlines()[0]}") from None
    return invocation


def latest(outputs: Path) -> Path:
    """The newest run under ``outputs`` that has not finished; raises `ConfigError` where there is none.

    Newest by the last change of its checkpoints, or of the run's beginning.
    """
    unfinished = []
    for path in outputs.glob(f"**/{INVOCATION}"):
        found = summary.read(path.parent)
        if found is None or found.status != "finished":
            files = [path, *path.parent.glob("checkpoints/step-*.pt")]
            unfinished.append((max(file.stat().st_mtime for file in files), path.parent))
    if not unfinished:
        raise ConfigError(f"resume=latest: expected an unfinished run under {str(outputs)!r}, found none")
    return max(unfinished)[1]


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
        return f"{self.key}: saved {_shown(self.saved)}, requested {_shown(self.requested)}"


def changes(saved: dict[str, Any], config: Config) -> list[Change]:
    """Every key in which ``config`` differs from a saved one (plain, nested), sorted by key."""
    before, after = flatten(saved), flatten(asdict(config))
    return [
        Change(key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if key not in ("resume", "resume_force") and (before.get(key), key in before) != (after.get(key), key in after)
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
            details=table(found),
        )
    return found


def table(found: list[Change]) -> str:
    """Changes as a person reads them: key, saved, requested, allowed or not."""
    rows = [("key", "saved", "requested", "allowed")]
    rows += [
        (change.key, _shown(change.saved), _shown(change.requested), "yes" if change.allowed else "no")
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
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
