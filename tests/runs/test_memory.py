"""What is sure not to fit is refused in one line, before anything is allocated or written."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.runs.memory import amount, check_memory, total_bytes
from resnet_train.train import run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "got"),
    [
        (
            ["dataset.num_train=999999999", "dataset.image_size=64"],
            "dataset.num_train: expected what fits into the ... of memory that this machine has, got 1,000,000,049 "
            "images of 64x64 in 10 classes, which take 12.3 TB or more; take fewer or smaller ones",
        ),
        (
            ["dataset.num_classes=1000000", "dataset.image_size=1024"],
            "dataset.num_classes: expected what fits into the ... of memory that this machine has, got 250 images of "
            "1024x1024 in 1,000,000 classes, which take 12.6 TB or more; take fewer or smaller ones",
        ),
        (
            ["model.depth=9998", "model.width=64"],
            "model.width: expected what fits into the ... of memory that this machine has, got 3 copies of 660,",
        ),
        (
            ["dataset.num_train=1000000", "batch_size=1000000", "dataset.image_size=16", "model.width=64"],
            "batch_size: expected what fits into the ... of memory that this machine has, got what the layers keep of "
            "1,000,000 images of 16x16, which take ",
        ),
    ],
    ids=["images", "classes", "weights", "activations"],
)
def test_what_cannot_fit_is_refused_before_anything_is_allocated(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], got: str
) -> None:
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        run(tiny(*overrides))
    before, after = got.split("...")
    assert str(caught.value).startswith(before)
    assert after in str(caught.value)
    assert time.monotonic() - started < 10
    if not overrides[0].startswith("dataset.num_train=1000000"):
        assert os.listdir(tmp_path) == [], "not even a directory"


@pytest.mark.slow
def test_the_command_line_answers_at_once(shell: Any, tiny_overrides: tuple[str, ...]) -> None:
    program = (sys.executable, "-m", "resnet_train.train")
    code, out, err = shell.call(*tiny_overrides, "dataset.num_train=999999999", program=program)
    assert (code, out) == (2, "")
    assert err.startswith("resnet-train: dataset.num_train: expected what fits into the ")
    assert err.count("\n") == 1
    assert os.listdir(shell.folder) == []


def test_what_fits_is_let_through(tiny: Callable[..., Config]) -> None:
    check_memory(tiny("batch_size=200"), on_cpu=True)


def test_the_memory_of_a_machine_and_of_a_container(tmp_path: Path) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    for folder in (proc, cgroup / "memory"):
        folder.mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:  2000 kB\nMemFree:  10 kB\nSwapTotal:  500 kB\nHugePages_Total:  0\n")
    assert total_bytes(proc, cgroup) == 2500 * 1024
    (cgroup / "memory.max").write_text("max\n")
    assert total_bytes(proc, cgroup) == 2500 * 1024
    (cgroup / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert total_bytes(proc, cgroup) == 2500 * 1024
    (cgroup / "memory.max").write_text("1000000\n")
    assert total_bytes(proc, cgroup) == 1_000_000
    elsewhere = total_bytes(tmp_path / "none", tmp_path / "none")
    assert elsewhere is None or elsewhere > 10**9, "without /proc"


def test_amounts() -> None:
    sizes = {12_300_000: "12.3 MB", 2 * 10**9: "2.0 GB", 1_228 * 10**12: "1.2 PB", 5 * 10**19: "50,000.0 PB"}
    assert {size: amount(size) for size in sizes} == sizes
