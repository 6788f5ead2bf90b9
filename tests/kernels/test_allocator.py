"""The allocator of large tensors, in a process of its own: it is there to stay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MEMORY = """
import os, torch
from resnet_train.kernels import allocator

def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

allocator.return_free_memory()
allocator.install()
kept = torch.arange(2_000_000)
blocks = [torch.ones(10_000_000 + 3_000_000 * i) for i in range(4)]
full = megabytes()
del blocks
idle = megabytes()
allocator.return_free_memory()
print(round(full - idle), round(idle - megabytes()), bool((kept == torch.arange(2_000_000)).all()))
again = torch.ones(10_000_000)
print(again.sum().item())
"""


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory in use")
def test_memory_is_kept_until_it_is_asked_back() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.stderr == ""
    (still_there, returned, untouched), (total,) = (line.split() for line in done.stdout.splitlines())
    assert int(still_there) < 8, "of the 221 MB of the four tensors, all are kept"
    assert int(returned) > 200
    assert (untouched, total) == ("True", "10000000.0")


WHO = """
import sys
from resnet_train.kernels import allocator, choose
import torch

backend = choose.choose_backend(
    "fused", activation="relu", device=torch.device("cpu"), precision="fp32", compiled=False, channels_last=True
)
backend.convert(torch.nn.Linear(1, 1))
print(backend.name, allocator._load.cache_info().currsize)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_to_choose_kernels_does_not_install_it() -> None:
    done = subprocess.run([sys.executable, "-c", WHO], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("fused 0\n", "")
