"""An epoch in which every class is drawn equally often."""

from __future__ import annotations

import torch
from torch import Tensor


def balanced_order(labels: Tensor, rng: torch.Generator) -> Tensor:
    """Which image stands at each place of an epoch, ``(N,)``, by ``labels`` ``(N,)``.

    Classes take turns that differ by at most one; within a class every image is drawn before one is drawn again. So
    those of small classes come several times, and some of large ones not at all: other ones in another epoch.
    """
    present = labels.unique()
    present = present[torch.randperm(len(present), generator=rng)]  # who has the places that are left over
    drawn = []
    for place, label in enumerate(present.tolist()):
        wanted = (len(labels) - place + len(present) - 1) // len(present)
        images = (labels == label).nonzero().flatten()
        rounds = -(-wanted // len(images))
        orders = [images[torch.randperm(len(images), generator=rng)] for _ in range(rounds)]
        drawn.append(torch.cat(orders)[:wanted])
    return torch.cat(drawn)[torch.randperm(len(labels), generator=rng)]
