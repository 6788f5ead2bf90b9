"""GPUs that cannot be used, shown without a GPU: by a driver that says its version and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resnet_train.errors import ConfigError
from resnet_train.training.cuda_device import _explained, check_bf16, precision_of, why_no_cuda
from tests.conftest import TINY, Shell

SOURCE = """
int cuDriverGetVersion(int *version) { *version = %d; return 0; }
int cuInit(unsigned flags) { return 0; }
"""


@pytest.fixture
def old_driver(tmp_path: Path, compiler: str) -> dict[str, str]:
    """An environment in which a driver for CUDA 11.4 is found."""
    if sys.platform != "linux" or torch.version.cuda is None or torch.cuda.is_available():
        pytest.skip("needs Linux, a PyTorch with CUDA, and no GPU")
    (tmp_path / "driver.cpp").write_text('extern "C" {' + SOURCE % 11040 + "}")
    command = [compiler, "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(tmp_path / "driver.cpp")]
    subprocess.run(command, check=True)
    return {"LD_LIBRARY_PATH": os.pathsep.join([str(tmp_path), os.environ.get("LD_LIBRARY_PATH", "")])}


@pytest.mark.slow
def test_a_driver_that_is_too_old_is_told_in_the_header(shell: Shell, old_driver: dict[str, str]) -> None:
    arguments = [word for word in TINY if word != "device=cpu"]
    code, out, err = shell.call(*arguments, "epochs=null", "steps=1", **old_driver)
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("device ")]
    assert line.endswith(
        f"; no GPU: the NVIDIA driver serves CUDA 11.4 and older, this PyTorch is built for CUDA {torch.version.cuda}: "
        f"update the driver, or install a PyTorch for CUDA 11.4"
    )


@pytest.mark.slow
def test_a_gpu_that_is_asked_for_and_cannot_be_used(shell: Shell, old_driver: dict[str, str]) -> None:
    code, _, err = shell.call(*TINY, "device=cuda", "epochs=null", "steps=1", **old_driver)
    assert code == 2 and len(err.splitlines()) == 1
    assert err.startswith(
        "resnet-train: device: expected a GPU for cuda, got none that can be used: the NVIDIA driver "
    )


def test_other_troubles_of_cuda_are_quoted() -> None:
    assert _explained("Found no NVIDIA driver on your system. Please", built_for="13.0") == ""
    assert _explained("CUDA unknown error - this may\nbe due to", built_for="13.0").startswith(
        "CUDA does not start: CUDA unknown error - this may be due to"
    )
    assert isinstance(why_no_cuda(), str)


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((6, 1), "fp32"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((8, 9), "bf16"), ((9, 0), "bf16")],
)
def test_precision_by_capability(capability: tuple[int, int], precision: str) -> None:
    """T4 and RTX 20 are 7.5, A100 is 8.0, RTX 40 8.9, H100 and H200 9.0."""
    chosen, why = precision_of(capability)
    assert chosen == precision and why.startswith("this GPU ")
    if capability >= (8, 0):
        check_bf16(capability)
        return
    with pytest.raises(ConfigError) as raised:
        check_bf16(capability)
    assert str(raised.value).endswith(f"got one of {capability[0]}.{capability[1]}; try precision={precision}")
