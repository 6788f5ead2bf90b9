"""Facts about the machine and the source."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

import resnet_train
from resnet_train.runs import environment

CPU = torch.device("cpu")


def test_the_machine() -> None:
    threads = torch.get_num_threads()
    assert environment.hardware(CPU).endswith(f", {threads} thread{'s' * (threads != 1)}")
    assert environment.peak_memory_bytes(CPU) > 1e6
    assert {"python", "torch", "numpy", "resnet-train"} <= environment.versions().keys()


def test_the_commit_is_that_of_the_checkout() -> None:
    root = Path(resnet_train.__file__).parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a checkout")
    commit = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert environment.git_commit() in (commit, f"{commit}+changes")
