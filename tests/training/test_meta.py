"""Whole steps with their backward pass at the sizes of real runs, on tensors without values: to read one raises."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from resnet_train.config.dataset import AugmentConfig
from resnet_train.data.dataset import Split
from resnet_train.data.stream import TrainData
from resnet_train.models.resnet import CifarResNet, ResNet
from resnet_train.models.variant import Variant
from resnet_train.training import optim
from resnet_train.training.launches import FewLaunches
from resnet_train.training.state import TrainState
from resnet_train.training.step import StepOptions, grad_norm, train_step

META = torch.device("meta")
NETWORKS = {
    "resnet20, batch 128": (lambda: CifarResNet(20), 128, 32),
    "resnet18, batch 512": (lambda: ResNet(18), 512, 32),
    "resnet50, batch 256": (lambda: ResNet(50, Variant("B", preactivation=True), stem="imagenet"), 256, 224),
}


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows no such device."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


def meta_data(batch_size: int, size: int, **augment: Any) -> TrainData:
    options = {"crop_padding": 4, "crop_mode": "zeros", "flip": True, "cutout": 0, "mixup": 0.0, "cutmix": 0.0}
    images = torch.empty(4 * batch_size, size, size, 3, dtype=torch.uint8, device=META)
    return TrainData(
        Split(images, torch.empty(4 * batch_size, dtype=torch.int64, device=META)),
        batch_size=batch_size,
        seed=0,
        augment=AugmentConfig(**{**options, **augment}),
        mean=[0.5] * 3,
        std=[0.2] * 3,
        num_classes=10,
        device=META,
    )


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("options", "augment"),
    [
        (StepOptions(), {}),
        (StepOptions(accumulate=2, label_smoothing=0.1, clip_grad_norm=1.0, ema_decay=0.99), {"mixup": 0.2}),
        (StepOptions(), {"cutmix": 1.0, "cutout": 8, "crop_mode": "reflect"}),
    ],
    ids=["plain", "everything", "cutmix"],
)
def test_no_value_is_read(network: str, options: StepOptions, augment: dict[str, Any]) -> None:
    build, batch_size, size = NETWORKS[network]
    with META:
        model = build().to(memory_format=torch.channels_last)
    state = TrainState(
        model,
        optim.sgd(model, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, decay_norm_and_bias=True),
        torch.amp.GradScaler("cpu", enabled=False),
        copy.deepcopy(model).requires_grad_(False).eval() if options.ema_decay is not None else None,
    )
    data, forward = meta_data(batch_size, size, **augment), FewLaunches(model, precision="fp32")
    for step in range(2):
        images, labels = data.batch(step)
        assert images.shape == (batch_size, 3, size, size)
        output = train_step(state, images, labels, lr=0.1, options=options, forward=forward)
        assert {output.loss.shape, output.accuracy.shape, grad_norm(state, output).shape} == {torch.Size([])}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.shape == parameter.shape, name


@pytest.mark.parametrize("read", [torch.Tensor.item, torch.Tensor.tolist, torch.nonzero, torch.Tensor.cpu, bool])
def test_what_is_read_raises(read: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        read(nn.Linear(1, 1, device=META).weight)
