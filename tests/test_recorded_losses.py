"""Ten updates of each kind of network give the losses that are written down beside this file.

A change that moves them moves everybody's figures: it has to say so in CHANGELOG.md, under "Numbers", and record them
anew with ``python -m tests.test_recorded_losses``.

In float64 nothing but such a change moves them. The initial weights are made of whole numbers here, since PyTorch's
normal draws differ between processors in their last bit, and such a bit grows from update to update, fast where few
pixels carry a batch norm; test_resnet.py has the initialisation. In float32, which is what runs compute in, rounding
differs between processors and numbers of threads.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn

from resnet_train import build, cli
from resnet_train.config.store import register_schema
from resnet_train.data.dataset import load_dataset
from resnet_train.engine import train_step
from tests.conftest import TINY

FILE = Path(__file__).with_suffix(".json")
UPDATES = 10
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


def losses(network: str, dtype: torch.dtype) -> list[float]:
    register_schema()
    words = cli.merge_overrides(TINY, [*NETWORKS[network], "epochs=null", f"steps={UPDATES}"])
    config, _ = cli.compose_config(cli.parse(words), words)
    cpu = torch.device("cpu")
    dataset = load_dataset(config.dataset, seed=config.seed)
    data = build.build_train_data(config, dataset, cpu)
    state = build.build_state(config, num_classes=10, device=cpu, precision="fp32")
    draw_weights(state.model.to(dtype, memory_format=torch.channels_last))
    if state.ema is not None:
        state.ema.to(dtype).load_state_dict(state.model.state_dict())
    rate = build.build_schedule(
        config.schedule,
        lr=config.optim.lr / (10 if network in SHALLOW else 1000),
        total_steps=UPDATES,
        steps_per_epoch=Fraction(200, 32),
    )
    options = build.build_step_options(config, "fp32")
    found = []
    for step in range(UPDATES):
        images, labels = data.batch(step)
        output = train_step(state, images.to(dtype), labels, lr=rate(step), options=options)
        found.append(output.loss.item())
    return found


@pytest.mark.parametrize("network", NETWORKS)
def test_in_float64(network: str) -> None:
    assert losses(network, torch.float64) == pytest.approx(json.loads(FILE.read_text())[network], rel=1e-8)


@pytest.mark.parametrize("network", NETWORKS)
def test_in_float32(network: str) -> None:
    found, recorded = losses(network, torch.float32), json.loads(FILE.read_text())[network]
    for step, (loss, expected) in enumerate(zip(found, recorded, strict=True)):
        bound = 1e-5 * 2**step if network in SHALLOW else 1e-4 if step == 0 else 0.2
        assert loss == pytest.approx(expected, rel=bound), f"update {step + 1}"


if __name__ == "__main__":
    recorded = {network: losses(network, torch.float64) for network in NETWORKS}
    FILE.write_text(json.dumps(recorded, indent=1) + "\n")
