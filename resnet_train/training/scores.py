"""How good predictions are: from logits and labels to the measures that papers and users ask for.

Definitions are scikit-learn's; a quotient without a denominator (the precision of a class that is never predicted) is
0, as there.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

NUM_BINS = 15  # of the calibration error, as in Guo et al. 2017 (arXiv 1706.04599)
Z_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True)
class Averages:
    """Means over the classes."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ClassScore:
    """One class against all others; all in [0, 1]."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int  # images that are of it


@dataclass(frozen=True)
class Bin:
    """The images whose confidence lies in ``(low, high]``."""

    low: float
    high: float
    count: int
    confidence: float  # their mean; 0 where there are none
    accuracy: float


@dataclass(frozen=True)
class Scores:
    """Every measure of one evaluation; accuracies are in [0, 1]."""

    count: int
    correct: int
    accuracy: float
    error: float  # 1 - accuracy
    interval: tuple[float, float]  # of the accuracy, 95 %: `wilson`
    top5: float | None  # None with five classes or fewer
    loss: float  # mean cross-entropy
    balanced_accuracy: float  # mean recall over the classes that have images
    macro: Averages  # over the classes that have images or predictions
    weighted: Averages  # by support
    calibration_error: float  # expected, over `NUM_BINS` bins of equal width
    reliability: tuple[Bin, ...]
    classes: tuple[str, ...]
    per_class: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]  # rows: label; columns: prediction

    def plain(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)


def score(logits: Tensor, labels: Tensor, *, classes: tuple[str, ...]) -> Scores:
    """Measure ``logits`` ``(N, C)`` (or log-probabilities) against ``labels`` int64 ``(N,)``, both on the CPU."""
    count, num_classes = logits.shape
    predicted = logits.argmax(1)
    hit = predicted == labels
    confusion = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    confusion = confusion.reshape(num_classes, num_classes)
    correct, per_class = int(hit.sum()), class_scores(confusion, classes)
    confidence = logits.double().softmax(1).amax(1)
    bins = reliability(confidence, hit)
    present = [one for one, row in zip(per_class, confusion + confusion.T, strict=True) if row.any()]
    with_images = [one for one in per_class if one.support]
    return Scores(
        count=count,
        correct=correct,
        accuracy=correct / count,
        error=1 - correct / count,
        interval=wilson(correct, count),
        top5=float((logits.topk(5).indices == labels[:, None]).any(1).double().mean()) if num_classes > 5 else None,
        loss=float(F.cross_entropy(logits.double(), labels)),
        balanced_accuracy=math.fsum(one.recall for one in with_images) / len(with_images),
        macro=averages(present, [1] * len(present)),
        weighted=averages(with_images, [one.support for one in with_images]),
        calibration_error=math.fsum(one.count / count * abs(one.accuracy - one.confidence) for one in bins),
        reliability=bins,
        classes=classes,
        per_class=per_class,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def wilson(correct: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927): unlike the usual one it holds near 0 and 1 too."""
    share, spread = correct / count, Z_95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def class_scores(confusion: Tensor, classes: tuple[str, ...]) -> tuple[ClassScore, ...]:
    """Precision, recall and F1 of each class from the matrix ``(C, C)`` of labels and predictions."""
    hits = confusion.diagonal().tolist()
    found = zip(classes, hits, confusion.sum(1).tolist(), confusion.sum(0).tolist(), strict=True)
    return tuple(
        ClassScore(
            name=name,
            precision=hit / predicted if predicted else 0.0,
            recall=hit / support if support else 0.0,
            f1=2 * hit / (support + predicted) if support + predicted else 0.0,
            support=support,
        )
        for name, hit, support, predicted in found
    )


def averages(scores: list[ClassScore], weights: list[int]) -> Averages:
    """Means of ``scores`` with ``weights``."""
    total = sum(weights)
    precision, recall, f1 = (
        math.fsum(weight * getattr(one, name) for one, weight in zip(scores, weights, strict=True)) / total
        for name in ("precision", "recall", "f1")
    )
    return Averages(precision, recall, f1)


def reliability(confidence: Tensor, hit: Tensor) -> tuple[Bin, ...]:
    """How often the prediction is right where it is so sure: ``confidence`` float64 and ``hit`` bool, ``(N,)``."""
    index = (confidence * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
    counts = torch.bincount(index, minlength=NUM_BINS)
    sums, hits = (
        torch.bincount(index, weights=values, minlength=NUM_BINS) / counts.clamp(min=1)
        for values in (confidence, hit.double())
    )
    rows = zip(counts.tolist(), sums.tolist(), hits.tolist(), strict=True)
    return tuple(Bin(number / NUM_BINS, (number + 1) / NUM_BINS, *row) for number, row in enumerate(rows))


@dataclass(frozen=True)
class Mistakes:
    """Wrongly classified images, the most confident first; each ``(M,)``."""

    index: Tensor  # in the split
    label: Tensor
    predicted: Tensor
    confidence: Tensor  # of the prediction, in [0, 1]


def mistakes(logits: Tensor, labels: Tensor) -> Mistakes:
    """What ``logits`` ``(N, C)`` get wrong, worst first."""
    confidence, predicted = logits.double().softmax(1).max(1)
    wrong = (predicted != labels).nonzero().flatten()
    order = wrong[confidence[wrong].argsort(descending=True, stable=True)]
    return Mistakes(order, labels[order], predicted[order], confidence[order])
