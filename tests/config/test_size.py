"""The least memory that a run takes: never more than what its tensors take, and not much less."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from resnet_train.config.run import Config
from resnet_train.config.size import activations_need, known_data_need, weights_need
from resnet_train.data.dataset import load_dataset
from resnet_train.models.build import build_model
from resnet_train.models.count import layers, num_parameters

NETWORKS = [
    "model=resnet20",
    "model=resnet20 model.preactivation=true model.width=2.5 model.depth=14",
    "model=plain18 model.width=0.1",
    "model=resnet34 model.stem=imagenet dataset=synthetic dataset.image_size=33",
    "model=resnet50",
    "model=resnet50 model.preactivation=true model.width=0.5",
    "model=resnet101 model.width=0.25",
    "model=resnet152 model.shortcut=A model.width=0.25",
]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", NETWORKS)
def test_of_the_networks(overrides: str, checked: Callable[[str], Config]) -> None:
    config = checked(f"{overrides} optim=adamw ema_decay=0.9 batch_size=64 accumulate=2")
    size = 33 if "33" in overrides else 32
    model = build_model(config.model, num_classes=10, seed=0)
    weights = weights_need(config).num_bytes / (5 * 4)  # weight, gradient, two moments, moving average
    assert 0.75 * num_parameters(model) < weights <= num_parameters(model)
    values = sum(layer.values_in for layer in layers(model, size))
    assert 0.75 * 32 * 2 * values < activations_need(config).num_bytes <= 32 * 2 * values


def test_of_the_images(checked: Callable[[str], Config]) -> None:
    dataset = checked("dataset=synthetic dataset.num_train=300 dataset.num_test=100 dataset.num_classes=3").dataset
    data, need = load_dataset(dataset, seed=0), known_data_need(dataset)
    assert need is not None
    tensors = [tensor for split in (data.train, data.test) for tensor in (split.images, split.labels)]
    assert need.num_bytes == sum(tensor.nbytes for tensor in tensors) + 3 * 32 * 32 * 3 * 4, "and the patterns"
    assert known_data_need(checked("dataset=cifar10").dataset) is None
