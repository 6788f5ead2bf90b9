from __future__ import annotations

import pytest
import torch
from torch import Tensor

from resnet_train.inference.augmented import VIEWS, ask, views

IMAGES = torch.arange(2 * 5 * 5 * 3, dtype=torch.uint8).reshape(2, 5, 5, 3)


@pytest.mark.parametrize("kind", VIEWS)
def test_weights_of_the_views_sum_to_one(kind: str) -> None:
    found = list(views(IMAGES, kind))
    assert sum(weight for weight, _ in found) == 1
    assert all(view.shape == IMAGES.shape and view.dtype == torch.uint8 for _, view in found)
    assert found[0][1] is IMAGES  # whose logits are known already


def test_multicrop_moves_by_one_pixel_and_mirrors() -> None:
    found = [view for _, view in views(IMAGES, "multicrop")]
    assert len(found) == 6
    assert torch.equal(found[1], IMAGES.flip(2))
    assert torch.equal(found[2][:, 1:, 1:], IMAGES[:, :-1, :-1])  # down and to the right
    assert torch.equal(found[2][:, 0, 1:], IMAGES[:, 1, :-1])  # the border reflected
    assert torch.equal(found[4][:, :-1, :-1], IMAGES[:, 1:, 1:])


def leftness(images: Tensor) -> Tensor:
    """A network that knows left from right: it is sure where the left half is brighter."""
    difference = images[:, :, :2].float().mean((1, 2, 3)) - images[:, :, 3:].float().mean((1, 2, 3))
    return torch.stack([difference, torch.zeros_like(difference)], 1)


def test_the_mean_is_of_probabilities() -> None:
    logits, number = ask(leftness, IMAGES, kind="flip")
    expected = (leftness(IMAGES).double().softmax(1) + leftness(IMAGES.flip(2)).double().softmax(1)) / 2
    assert number == 2 and torch.allclose(logits.exp(), expected)


def test_only_images_below_a_confidence_are_augmented() -> None:
    images = torch.zeros(3, 5, 5, 3, dtype=torch.uint8)
    images[0, :, :2] = 200  # sure
    images[2, :, :2] = 1  # not so sure
    asked: list[int] = []

    def network(given: Tensor) -> Tensor:
        asked.append(len(given))
        return leftness(given)

    logits, number = ask(network, images, kind="flip", below=0.9)
    assert number == 2 and asked == [3, 2]
    assert torch.allclose(logits[0], leftness(images)[0].double().log_softmax(0))
    assert torch.allclose(logits[2].exp(), torch.tensor([0.5, 0.5], dtype=torch.float64))
    same, number = ask(network, images, kind="none", below=0.9)
    assert number == 0 and torch.equal(same, leftness(images))
