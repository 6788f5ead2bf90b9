"""The images of an evaluation, and allocations that really fail: a process is given less memory than it needs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from resnet_train.config.run import Config
from resnet_train.errors import RunError
from resnet_train.models.count import layers
from resnet_train.models.resnet import CifarResNet, ResNet
from resnet_train.training.memory import (
    eval_batch_size,
    gpu_times,
    is_out_of_memory,
    out_of_memory_named,
    out_of_memory_while_reading,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("build", "image_size", "expected"),
    [
        (lambda: CifarResNet(20), 32, 500),
        (lambda: CifarResNet(20), 64, 500),
        (lambda: ResNet(18), 32, 500),
        (lambda: ResNet(50), 32, 170),
        (lambda: ResNet(18), 64, 128),
        (lambda: ResNet(18), 224, 10),
        (lambda: ResNet(18, stem="imagenet"), 224, 70),
        (lambda: ResNet(50), 1024, 1),
    ],
)
def test_images_at_once_by_network_and_size(
    build: Callable[[], torch.nn.Module], image_size: int, expected: int
) -> None:
    with torch.device("meta"):
        model = build()
    assert eval_batch_size(layers(model, image_size), torch.device("cpu")) == expected


@pytest.mark.parametrize(
    ("gibibytes", "times", "resnet20", "resnet18"),
    [(4, 1, 500, 500), (8, 1, 500, 500), (15, 2, 1000, 1000), (40, 4, 2000, 2000), (79, 8, 4000, 4000)],
)
def test_a_larger_gpu_takes_more_images_at_once(
    monkeypatch: pytest.MonkeyPatch, gibibytes: int, times: int, resnet20: int, resnet18: int
) -> None:
    """By all the memory that it has; how much is free plays no part."""
    assert gpu_times(gibibytes << 30) == times
    card = SimpleNamespace(total_memory=gibibytes << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: card)
    with torch.device("meta"):
        models = CifarResNet(20), ResNet(18)
    found = [eval_batch_size(layers(model, 32), torch.device("cuda", 0)) for model in models]
    assert found == [resnet20, resnet18]


def test_errors_of_memory_are_told_from_others() -> None:
    texts = (
        "std::bad_alloc",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "Unable to find a valid cuDNN algorithm to run convolution",
    )
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), *map(RuntimeError, texts)):
        assert is_out_of_memory(error)
    for other in (RuntimeError("expected 3 channels"), ValueError("not enough memory"), KeyError("bad_alloc")):
        assert not is_out_of_memory(other)


def test_a_resumed_run_is_told_what_it_may_do(tiny: Callable[..., Config]) -> None:
    """Batch size and model are its own: other ones would be refused."""
    config = replace(tiny("batch_size=32"), resume="outputs/mine")
    with pytest.raises(RunError) as raised, out_of_memory_named(config):
        raise MemoryError
    assert str(raised.value) == (
        "out of memory on cpu with batch_size=32, accumulate=1 and precision=fp32: resume it where there is more "
        "memory (device=cpu, another machine), or start a new run from its weights with init_from=outputs/mine and "
        "accumulate=2; the checkpoints are whole"
    )


def test_memory_that_reading_takes_is_not_blamed_on_the_network() -> None:
    with pytest.raises(RunError, match=r"^out of memory while the data set was read"), out_of_memory_while_reading():
        raise MemoryError
    with pytest.raises(KeyError), out_of_memory_while_reading():
        raise KeyError


# Everything is built; then the address space may grow by so many megabytes and no more.
LIMITED = """
import logging, resource, sys
from pathlib import Path
import numpy
import torch
from resnet_train import load_config, run
from resnet_train.training import loop

overrides, megabytes, folder = sys.argv[3:], int(sys.argv[1]), sys.argv[2]
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
common = ["dataset=synthetic", "dataset.num_train=64", "model.width=1", "kernels=plain", "precision=fp32"]
run(load_config([*common, "dataset.image_size=8", "dataset.num_test=8", "epochs=null", "steps=1", "batch_size=2"]),
    directory=Path(folder, "first"))
numpy.ones((300, 300)) @ numpy.ones((300, 300))  # OpenBLAS takes its own memory at its first product, or aborts
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + megabytes * 2**20,) * 2)
try:
    print(run(load_config([*common, "epochs=null", "steps=2", *overrides]), directory=Path(folder, "run")).last["test"])
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


def limited(folder: Path, megabytes: int, *overrides: str) -> list[str]:
    """Lines of a run that may take so much memory beside what the process has."""
    words = [sys.executable, "-c", LIMITED, str(megabytes), str(folder), *overrides]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
def test_an_evaluation_that_does_not_fit_takes_fewer_images(tmp_path: Path) -> None:
    """500 images of 64x64 take some 390 MB in ResNet-8, and a step of 8 of them far less."""
    overrides = ("model.depth=8", "dataset.image_size=64", "dataset.num_test=500", "batch_size=8")
    enough, short = (limited(tmp_path / str(size), size, *overrides) for size in (4000, 290))
    assert not any("not enough memory" in line for line in enough)
    assert "not enough memory to evaluate 500 images at once: half as many from now on" in short
    assert short[-1].startswith("Score(loss=")
    correct = [line.partition("correct=")[2] for line in (enough[-1], short[-1])]
    assert correct[0] == correct[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
def test_a_step_that_does_not_fit_names_what_to_lower(tmp_path: Path) -> None:
    overrides = ("model.depth=20", "dataset.image_size=64", "dataset.num_test=8", "batch_size=64", "device=cpu")
    assert limited(tmp_path, 150, *overrides)[-1] == (
        "RunError: out of memory on cpu with batch_size=64, accumulate=1 and precision=fp32: try accumulate=2, which "
        "splits each batch, a smaller batch_size, a smaller model or smaller images; the checkpoints are whole"
    )
