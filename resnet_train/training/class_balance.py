"""Classes of different sizes: weights of the loss, and what the header says of them. See also `data.stream`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resnet_train.errors import ConfigError

SHOWN = 20  # classes in the header


def class_weights(asked: str | Sequence[float], labels: Tensor, classes: Sequence[str]) -> Tensor | None:
    """Weight of each class in the loss ``(classes,)``, float32; None where all count alike.

    ``inverse``: in proportion to 1 / images, ``sqrt``: to 1 / sqrt(images); both scaled so that the mean over the
    training images ``labels`` ``(N,)`` is 1, which leaves the size of the loss and the learning rate what they were.
    Numbers are taken as they are. Raises `ConfigError` where there are none for some class.
    """
    if asked == "none":
        return None
    images = torch.bincount(labels.cpu(), minlength=len(classes)).double()
    if not isinstance(asked, str):
        if len(asked) != len(classes):
            raise ConfigError(
                f"class_weights: expected one number for each of the {len(classes)} classes, in their order, got "
                f"{len(asked)}; try class_weights=inverse"
            )
        return torch.tensor(list(asked), dtype=torch.float32)
    if not images.all():
        missing = classes[int(images.argmin())]
        raise ConfigError(
            f"class_weights={asked}: expected training images of each class, got none of {missing!r}; try "
            f"class_weights=none"
        )
    weights = 1 / images if asked == "inverse" else images.rsqrt()
    return (weights * images.sum() / (weights * images).sum()).float()


def in_words(weights: Tensor | None, labels: Tensor, classes: Sequence[str], *, balanced: bool) -> str:
    """Training images and weight of each class, for the header; empty where classes are treated as they come."""
    if weights is None and not balanced:
        return ""
    images = torch.bincount(labels.cpu(), minlength=len(classes)).tolist()
    texts = [
        f"{name} {count:,}" + ("" if weights is None else f" (weight {weights[index]:.3g})")
        for index, (name, count) in enumerate(zip(classes, images, strict=True))
    ]
    more = len(texts) - SHOWN
    listed = ", ".join(texts[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")
    return listed + ("; drawn equally often" if balanced else "")


def corrected_twice(asked: str | Sequence[float], labels: Tensor, classes: Sequence[str]) -> str:
    """What weights do beside ``balanced_sampling``, in words; empty where the sizes of the classes give none."""
    weights = class_weights(asked, labels, classes) if isinstance(asked, str) else None
    if weights is None or weights.max() == weights.min():
        return ""
    rarest, largest = classes[int(weights.argmax())], classes[int(weights.argmin())]
    return (
        f"class_weights={asked} beside balanced_sampling=true corrects twice for the sizes of the classes: {rarest!r} "
        f"is drawn as often as {largest!r}, and each time weighs {weights.max() / weights.min():.3g} times as much; "
        f"leave one of the two out"
    )
