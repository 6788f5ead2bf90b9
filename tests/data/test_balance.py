"""Every class is drawn equally often, and all its images before one comes again."""

from __future__ import annotations

import torch

from resnet_train.data.balance import balanced_order


def test_classes_are_drawn_equally_often() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [3] * 11)  # no image of class 2
    order = balanced_order(labels, torch.Generator().manual_seed(1))
    assert len(order) == 101
    counts = torch.bincount(labels[order], minlength=4)
    assert sorted(counts.tolist()) == [0, 33, 34, 34]
    for label, (least, most) in {0: (0, 1), 1: (1, 2), 3: (3, 4)}.items():
        times = torch.bincount(order, minlength=101)[labels == label]
        assert (int(times.min()), int(times.max())) in {(least, most), (least, least)}
    assert torch.equal(order, balanced_order(labels, torch.Generator().manual_seed(1)))
    assert not torch.equal(order, balanced_order(labels, torch.Generator().manual_seed(2)))
