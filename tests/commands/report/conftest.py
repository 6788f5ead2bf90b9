"""Real runs of every status, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resnet_train.commands.report.records import RunRecord, read
from resnet_train.config.run import Config
from resnet_train.errors import RunError
from resnet_train.runs.directory import Invocation
from resnet_train.train import run

SHORT = ("epochs=2", "eval_every=1", "log_every=1")


@pytest.fixture(scope="session")
def runs(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of finished runs, two learning rates with three seeds each, and of a failed one; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    for lr in ("0.1", "0.05"):
        for seed in range(3):
            overrides = [*SHORT, f"optim.lr={lr}", f"seed={seed}"]
            run(tiny(*overrides), directory=folder / f"deep/{lr}-{seed}", invocation=Invocation([], overrides))
    overrides = [*SHORT, "optim.lr=1e9"]
    with pytest.raises(RunError):
        run(tiny(*overrides), directory=folder / "diverged", invocation=Invocation([], overrides))
    return folder


@pytest.fixture
def cut(runs: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of one of the finished runs, as it was when it was killed after its first epoch."""

    def make(name: str = "cut", source: str = "deep/0.1-0") -> Path:
        directory = shutil.copytree(runs / source, tmp_path / name)
        (directory / "summary.json").unlink()
        checkpoints = directory / "checkpoints"
        (checkpoints / "step-00000013.pt").unlink()
        (checkpoints / "last.pt").unlink()
        rows = (directory / "metrics.csv").read_text().splitlines(keepends=True)
        (directory / "metrics.csv").write_text("".join(rows[:10]))  # steps 1 to 9
        return directory

    return make


@pytest.fixture
def known(runs: Path) -> Callable[..., RunRecord]:
    """The record of a finished run, with other facts in it if need be."""
    from dataclasses import replace

    found = read(runs / "deep/0.1-0")
    assert found is not None and found.summary is not None
    record, summary = found, found.summary

    def make(*, config: dict[str, Any] | None = None, result: float | None = None, **facts: Any) -> RunRecord:
        changed: dict[str, Any] = {
            key: facts.pop(key) for key in ("overrides", "directory", "precision", "status", "flags") if key in facts
        }
        if result is not None:
            scores = summary.last | {"test": replace(summary.last["test"], accuracy=result, error=1 - result)}
            facts |= {"result": result, "last": scores}
        return replace(
            record, config=_merged(record.config, config or {}), summary=replace(summary, **facts), **changed
        )

    return make


def _merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``config`` with other values for dotted keys."""
    merged = dict(config)
    for key, value in changes.items():
        first, _, rest = key.partition(".")
        merged[first] = _merged(merged.get(first, {}), {rest: value}) if rest else value
    return merged
