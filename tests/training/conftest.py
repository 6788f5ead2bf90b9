"""Fixtures around whole runs."""

from __future__ import annotations

import copy
import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from resnet_train.models.resnet import CifarResNet
from resnet_train.models.variant import Variant
from resnet_train.training import optim
from resnet_train.training.state import TrainState


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


@pytest.fixture(scope="session")
def small_state() -> Callable[..., TrainState]:
    """A network of 12,000 parameters for 8x8 images of 4 classes, and all that its training changes."""

    def make(
        *,
        optimizer: str = "sgd",
        momentum: float = 0.9,
        ema: bool = False,
        loss_scale: float | None = None,
        dropout: float = 0.0,
        device: str = "cpu",
    ) -> TrainState:
        torch.manual_seed(0)
        model = CifarResNet(8, Variant("A", width=0.25, dropout=dropout), num_classes=4)
        model.to(device, memory_format=torch.channels_last)
        if optimizer == "adamw":
            chosen: torch.optim.Optimizer = optim.adamw(
                model, lr=1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, decay_norm_and_bias=False
            )
        else:
            chosen = optim.sgd(
                model,
                lr=1,
                momentum=momentum,
                nesterov=momentum > 0,
                weight_decay=1e-2,
                decay_norm_and_bias=False,
            )
        scaler = torch.amp.GradScaler(
            device, enabled=loss_scale is not None, init_scale=loss_scale or 1.0, growth_interval=3
        )
        return TrainState(model, chosen, scaler, copy.deepcopy(model).requires_grad_(False).eval() if ema else None)

    return make


@pytest.fixture(scope="session")
def small_batch() -> Callable[..., tuple[Tensor, Tensor]]:
    """Batch number ``seed`` for it: 8 images, and their labels or distributions over the classes."""

    def make(seed: int, *, distributions: bool = False, device: str = "cpu") -> tuple[Tensor, Tensor]:
        draws = torch.Generator().manual_seed(seed)
        images = torch.randn(8, 3, 8, 8, generator=draws).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(4, (8,), generator=draws)
        chances = torch.rand(8, 4, generator=draws).softmax(1)
        return images.to(device), (chances if distributions else labels).to(device)

    return make
