"""Ten steps of each kind of network give the losses that are written down beside this file.

A change that moves them moves everybody's figures: it has to say so in CHANGELOG.md, under "Numbers", and record them
anew with ``RECORD_LOSSES=1 python -m pytest tests/training/test_recorded_losses.py``.

In float64 nothing but such a change moves them. The initial weights are made of whole numbers here, since PyTorch's
normal draws differ between processors in their last bit, and such a bit grows from step to step, fast where few
pixels carry a batch norm; tests/models/test_resnet.py has the initialisation. In float32, which is what runs compute
in, rounding differs between processors and numbers of threads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn

from resnet_train.config.run import Config
from resnet_train.data.dataset import load_dataset
from resnet_train.training.lr_schedule import build_lr_schedule
from resnet_train.training.plan import build_plan
from resnet_train.training.setup import build_state, build_step_options, build_train_data
from resnet_train.training.step import train_step

FILE = Path(__file__).with_suffix(".json")
STEPS = 10
THIN = ("model=resnet20", "model.depth=8", "model.width=1")
NETWORKS = {
    "6n+2": THIN,
    "6n+2, option B": (*THIN, "model.shortcut=B"),
    "6n+2, pre-activation": (*THIN, "model.preactivation=true"),
    "6n+2, plain": ("model=plain20", *THIN[1:]),
    "basic blocks": ("model=resnet18", "model.depth=18", "model.width=0.125"),
    "basic blocks, original stem": ("model=resnet18", "model.depth=18", "model.width=0.125", "model.stem=imagenet"),
    "bottlenecks": ("model=resnet50", "model.depth=50", "model.width=0.125"),
    "bottlenecks, pre-activation": (
        *("model=resnet50", "model.depth=50", "model.width=0.125"),
        "model.preactivation=true",
    ),
    "everything": (
        *THIN,
        *("optim=adamw", "optim.lr=0.01", "schedule=linear", "schedule.warmup=3steps"),
        *("label_smoothing=0.1", "clip_grad_norm=1", "accumulate=2", "ema_decay=0.9", "dataset.augment.cutout=4"),
        *("dataset.augment.mixup=0.5", "dataset.augment.cutmix=1", "dataset.augment.crop_mode=reflect"),
    ),
}
SHALLOW = [name for name in NETWORKS if name.startswith(("6n+2", "everything"))]


def draw_weights(model: nn.Module) -> None:
    """He initialisation with uniform draws, the same to the bit on every machine."""
    draws = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            whole = torch.randint(-(2**23), 2**23, parameter.shape, generator=draws)
            fan_in = parameter[0].numel()
            parameter.data = (whole.double() / 2**23 * (6 / fan_in) ** 0.5).to(parameter.dtype)


def losses(config: Config, dtype: torch.dtype, *, lr: float) -> list[float]:
    plan, dataset = build_plan(config), load_dataset(config.dataset, seed=config.seed)
    data, options = build_train_data(config, plan, dataset), build_step_options(config, plan)
    state = build_state(config, plan, num_classes=len(dataset.classes))
    draw_weights(state.model.to(dtype, memory_format=torch.channels_last))
    if state.ema is not None:
        state.ema.to(dtype).load_state_dict(state.model.state_dict())
    lr_at = build_lr_schedule(config.schedule, lr=lr, total_steps=STEPS, steps_per_epoch=Fraction(200, 32))
    found = []
    for step in range(STEPS):
        images, labels = data.batch(step)
        output = train_step(state, images.to(dtype), labels, lr=lr_at(step), options=options)
        found.append(output.loss.item())
    return found


@pytest.fixture(scope="module")
def losses_of(tiny: Callable[..., Config]) -> Callable[[str, torch.dtype], list[float]]:
    """The losses of a network."""

    def of(network: str, dtype: torch.dtype) -> list[float]:
        config = tiny(*NETWORKS[network], "kernels=plain", "epochs=null", f"steps={STEPS}")
        return losses(config, dtype, lr=config.optim.lr / (10 if network in SHALLOW else 1000))

    return of


@pytest.fixture(scope="module")
def recorded(losses_of: Callable[[str, torch.dtype], list[float]]) -> dict[str, list[float]]:
    if os.environ.get("RECORD_LOSSES"):
        FILE.write_text(json.dumps({name: losses_of(name, torch.float64) for name in NETWORKS}, indent=1) + "\n")
    found: dict[str, list[float]] = json.loads(FILE.read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_in_float64(
    losses_of: Callable[[str, torch.dtype], list[float]], recorded: dict[str, list[float]], network: str
) -> None:
    assert losses_of(network, torch.float64) == pytest.approx(recorded[network], rel=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_in_float32(
    losses_of: Callable[[str, torch.dtype], list[float]], recorded: dict[str, list[float]], network: str
) -> None:
    found = losses_of(network, torch.float32)
    for step, (loss, expected) in enumerate(zip(found, recorded[network], strict=True)):
        bound = 1e-5 * 2**step if network in SHALLOW else 1e-4 if step == 0 else 0.2
        assert loss == pytest.approx(expected, rel=bound), f"step {step + 1}"
