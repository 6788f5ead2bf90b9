from __future__ import annotations

import math
import warnings

import pytest
import torch
from sklearn import metrics as sklearn

from resnet_train.training.scores import NUM_BINS, mistakes, reliability, score, wilson


def draw(count: int, num_classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (count,), generator=draws)
    logits = torch.randn(count, num_classes, generator=draws)
    logits[torch.arange(count), labels] += 1
    return logits, labels


@pytest.mark.parametrize(("count", "num_classes"), [(1, 2), (7, 3), (500, 10), (300, 100)])
def test_measures_are_scikit_learns(count: int, num_classes: int) -> None:
    logits, labels = draw(count, num_classes, seed=count)
    found = score(logits, labels, classes=tuple(map(str, range(num_classes))))
    predicted, names = logits.argmax(1), list(range(num_classes))
    assert found.correct == sklearn.accuracy_score(labels, predicted, normalize=False)
    assert torch.equal(
        torch.tensor(found.confusion), torch.tensor(sklearn.confusion_matrix(labels, predicted, labels=names))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes without images
        per_class = sklearn.precision_recall_fscore_support(labels, predicted, labels=names, zero_division=0)
        assert found.balanced_accuracy == pytest.approx(sklearn.balanced_accuracy_score(labels, predicted))
    ours = zip(*((one.precision, one.recall, one.f1, one.support) for one in found.per_class), strict=True)
    for got, expected in zip(ours, per_class, strict=True):
        assert got == pytest.approx(expected.tolist())
    for average, kind in ((found.macro, "macro"), (found.weighted, "weighted")):
        expected = sklearn.precision_recall_fscore_support(labels, predicted, average=kind, zero_division=0)[:3]
        assert (average.precision, average.recall, average.f1) == pytest.approx(expected)
    probabilities = logits.double().softmax(1).numpy()
    assert found.loss == pytest.approx(sklearn.log_loss(labels, probabilities, labels=names))
    if num_classes > 5:
        assert found.top5 == sklearn.top_k_accuracy_score(labels, probabilities, k=5, labels=names)
    else:
        assert found.top5 is None


def test_a_class_without_images_or_predictions_counts_nowhere() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.5]])
    found = score(logits, torch.tensor([0, 1]), classes=("a", "b", "none"))
    assert found.accuracy == found.balanced_accuracy == found.macro.f1 == found.weighted.f1 == 1
    assert found.per_class[2].support == found.per_class[2].f1 == 0


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    # Worked by hand: (share + z^2/2n +- z sqrt(share (1 - share) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    [(0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (9125, 10000, 0.90680, 0.91788)],
)
def test_wilson(correct: int, count: int, low: float, high: float) -> None:
    assert wilson(correct, count) == pytest.approx((low, high), abs=5e-6)


def test_calibration_error_is_the_distance_between_confidence_and_accuracy() -> None:
    confidence = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.55, 1.0], dtype=torch.float64)
    hit = torch.tensor([True, True, True, False, False, True])
    bins = reliability(confidence, hit)
    assert len(bins) == NUM_BINS and sum(one.count for one in bins) == 6
    last = bins[-1]
    assert (last.count, last.accuracy) == (5, pytest.approx(0.8)) and last.confidence == pytest.approx(0.96)
    logits = confidence.log()[:, None].repeat(1, 2)
    logits[:, 1] = (1 - confidence).clamp(min=1e-30).log()
    found = score(logits, (~hit).long(), classes=("a", "b"))
    assert found.calibration_error == pytest.approx(5 / 6 * 0.16 + 1 / 6 * 0.55)
    assert math.isclose(sum(one.count for one in found.reliability), 6)


def test_mistakes_are_the_worst_first() -> None:
    logits = torch.tensor([[4.0, 0.0], [0.0, 1.0], [0.0, 5.0], [3.0, 0.0]])
    found = mistakes(logits, torch.tensor([0, 0, 0, 1]))
    assert found.index.tolist() == [2, 3, 1]
    assert found.label.tolist() == [0, 1, 0] and found.predicted.tolist() == [1, 0, 1]
    assert found.confidence.tolist() == sorted(found.confidence.tolist(), reverse=True)
