"""What a network could reach, from what the machine can do."""

from __future__ import annotations

import pytest
import torch

from resnet_train.commands.bench.roofline import copy_bandwidth, matmul_ceiling, roofline
from resnet_train.models.count import Layer


def test_the_first_layer_needs_no_gradient_of_its_input() -> None:
    first, second = Layer(100, values_in=3, values_out=10), Layer(1000, values_in=10, values_out=20)
    roof = roofline([first, second], flops=2.0, bandwidth=4.0, bytes_per_value=2)
    assert roof.compute == 2 * 100 + 3 * 1000
    assert roof.memory == pytest.approx(2 * (3 * 13 + 11 * 30) / 4)
    assert roof.images_per_second == pytest.approx(1 / (roof.compute + roof.memory))


@pytest.mark.slow
def test_the_machine_is_measured() -> None:
    cpu = torch.device("cpu")
    assert 0 < matmul_ceiling(cpu, torch.float32) < float("inf")
    assert matmul_ceiling(cpu, torch.bool) == float("inf")  # a type that cannot be multiplied
    assert copy_bandwidth(cpu) > 0
