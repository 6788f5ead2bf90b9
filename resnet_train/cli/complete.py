"""What a shell offers for a word that is being typed: flags, runs to resume, values of keys that have few.

Everything else (keys, options of groups, files) is completed by Hydra.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from resnet_train.cli.overrides import FLAGS
from resnet_train.config.checks import CHOICES
from resnet_train.config.run import Config
from resnet_train.config.store import SCHEMA
from resnet_train.runs.directory import CONFIG

MAX_RUNS = 50  # the newest ones


def complete(line: str) -> list[str] | None:
    """Words that the last one of ``line`` may become; None where Hydra knows better."""
    word = line.rpartition(" ")[2]
    if word.startswith("-"):
        return [flag for flag in FLAGS if flag.startswith(word)]
    key, equals, value = word.partition("=")
    if not equals:
        return None
    if key in ("resume", "init_from"):
        offered = [*(["latest"] if key == "resume" else []), *runs()]
        return [f"{key}={run}" for run in offered if run.startswith(value)] or None
    options = CHOICES.get(key) or (("true", "false") if key in switches() else ())
    return [f"{key}={option}" for option in options if option.startswith(value)] or None


def runs(outputs: Path = Path("outputs")) -> list[str]:
    """Run directories, the newest first."""
    found = sorted(outputs.glob(f"**/{CONFIG}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [str(path.parent) for path in found[:MAX_RUNS]]


def switches() -> set[str]:
    """Keys that are true or false."""
    found = {field.name for field in fields(Config) if field.type == "bool"}
    for path, schema in SCHEMA.items():
        group = path.partition("/")[0]
        found |= {f"{group}.{field.name}" for field in fields(schema) if field.type == "bool"}
    return found | {"dataset.augment.flip"}
