from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from resnet_train.errors import ConfigError
from resnet_train.models.resnet import CifarResNet
from resnet_train.models.variant import Variant
from resnet_train.training.self_check import check_against_cpu

CPU = torch.device("cpu")


class WrongTheSecondTime(nn.Module):
    """A network that computes otherwise on the second of two devices."""

    calls = 0

    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = CifarResNet(8, Variant("A", width=0.5), num_classes=4)
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        type(self).calls += 1
        logits: Tensor = self.net(images)
        return logits * (self.factor if type(self).calls == 2 else 1.0)


def test_a_device_that_agrees_passes_and_leaves_the_network_alone() -> None:
    model = CifarResNet(8, Variant("B", dropout=0.5), num_classes=4).train()
    before = copy.deepcopy(model.state_dict())
    check_against_cpu(model, CPU, image_size=16, num_classes=4)
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("factor", [0.0, 1.1, float("nan")])
def test_a_device_that_differs_is_refused_with_both_figures(factor: float) -> None:
    WrongTheSecondTime.calls = 0
    with pytest.raises(ConfigError) as raised:
        check_against_cpu(WrongTheSecondTime(factor), CPU, image_size=16, num_classes=4)
    message = str(raised.value)
    assert (
        message.startswith("device: cpu computes this network wrongly with PyTorch ") and "expected loss 1." in message
    )
    assert message.endswith("try device=cpu, or another PyTorch")
