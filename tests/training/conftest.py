"""Fixtures around whole runs."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="session")
def rows() -> Callable[[Path], list[dict[str, str]]]:
    """The rows of a run's metrics.csv."""

    def read(directory: Path) -> list[dict[str, str]]:
        with open(directory / "metrics.csv", newline="") as file:
            return list(csv.DictReader(file))

    return read


@pytest.fixture(scope="session")
def events() -> Callable[[Path], EventAccumulator]:
    """What TensorBoard shows of a run."""
    return lambda directory: EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()


@pytest.fixture(scope="session")
def cut_back() -> Callable[..., Path]:
    """What a machine that lost power just after the checkpoint of ``step`` leaves behind, later rows included."""

    def cut(source: Path, target: Path, *, step: int) -> Path:
        shutil.copytree(source, target)
        (target / "summary.json").unlink()
        for path in (target / "checkpoints").glob("*.pt"):
            if path.name in ("last.pt", "best.pt") or int(path.stem.partition("-")[2]) > step:
                path.unlink()
        return target

    return cut


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Any, Any], None]:
    """Equal to the last bit, whatever the nesting."""

    def check(left: Any, right: Any, where: str = "") -> None:
        assert type(left) is type(right), where
        if isinstance(left, torch.Tensor):
            assert (left.dtype, left.shape) == (right.dtype, right.shape), where
            assert torch.equal(left, right), where
        elif isinstance(left, dict):
            assert list(left) == list(right), where
            for key in left:
                check(left[key], right[key], f"{where}.{key}")
        elif isinstance(left, list | tuple):
            assert len(left) == len(right), where
            for index, pair in enumerate(zip(left, right, strict=True)):
                check(*pair, f"{where}[{index}]")
        else:
            assert left == right, where

    return check
