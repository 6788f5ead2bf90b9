"""Weights of classes: their size, their loss, and a run that is killed and goes on to the bit."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.train import run
from resnet_train.training.class_balance import class_weights, corrected_twice, in_words
from resnet_train.training.step import StepOptions, training_loss
from tests.conftest import TINY, Shell

LABELS = torch.tensor([0] * 16 + [1] * 4)
CLASSES = ("cats", "dogs")


@pytest.mark.parametrize(("asked", "ratio"), [("inverse", 4.0), ("sqrt", 2.0)])
def test_the_mean_weight_of_an_image_is_one(asked: str, ratio: float) -> None:
    weights = class_weights(asked, LABELS, CLASSES)
    assert weights is not None
    assert weights[1] / weights[0] == pytest.approx(ratio)
    assert weights[LABELS].mean() == pytest.approx(1)


def test_what_the_header_says() -> None:
    assert in_words(None, LABELS, CLASSES, balanced=False) == ""
    assert in_words(None, LABELS, CLASSES, balanced=True) == "cats 16, dogs 4; drawn equally often"
    weights = class_weights("inverse", LABELS, CLASSES)
    assert in_words(weights, LABELS, CLASSES, balanced=False) == "cats 16 (weight 0.625), dogs 4 (weight 2.5)"
    many = in_words(None, torch.arange(25), [f"c{number}" for number in range(25)], balanced=True)
    assert many.endswith("c19 1 and 5 more; drawn equally often")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([1.0], "expected one number for each of the 2 classes, in their order, got 1"),
        ("sqrt", "expected training images of each class, got none of 'dogs'"),
    ],
)
def test_weights_that_do_not_fit_the_data(asked: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        class_weights(asked, torch.zeros(3, dtype=torch.int64), CLASSES)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_micro_batches_and_distributions_agree(smoothing: float) -> None:
    logits = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = class_weights("inverse", LABELS, CLASSES)
    assert weights is not None
    options = StepOptions(label_smoothing=smoothing, class_weights=weights)
    loss = training_loss(logits, LABELS, options)
    target = F.one_hot(LABELS, 2).double() * (1 - smoothing) + smoothing / 2
    by_hand = -(target * weights * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(training_loss(logits, F.one_hot(LABELS, 2).double(), options), loss)
    halves = [training_loss(*pair, options) for pair in zip(logits.chunk(2), LABELS.chunk(2), strict=True)]
    torch.testing.assert_close(torch.stack(halves).mean(), loss)


@pytest.mark.parametrize(("asked", "times"), [("inverse", "4"), ("sqrt", "2")])
def test_weights_beside_balanced_sampling_correct_twice(asked: str, times: str) -> None:
    assert corrected_twice(asked, LABELS, CLASSES) == (
        f"class_weights={asked} beside balanced_sampling=true corrects twice for the sizes of the classes: 'dogs' is "
        f"drawn as often as 'cats', and each time weighs {times} times as much; leave one of the two out"
    )
    assert corrected_twice(asked, torch.arange(2), CLASSES) == "", "classes of one size"


@pytest.mark.parametrize("asked", ["none", [1.0, 4.0]])
def test_weights_that_are_given_as_numbers_are_meant(asked: Any) -> None:
    assert corrected_twice(asked, LABELS, CLASSES) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (("class_weights=inverse", "balanced_sampling=true"), True),
        (("class_weights=inverse",), False),
        (("balanced_sampling=true",), False),
    ],
)
def test_a_run_that_corrects_twice_warns_once(
    tiny: Callable[..., Config],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    options: tuple[str, ...],
    *,
    warned: bool,
) -> None:
    run(tiny(*options, "epochs=null", "steps=1"), directory=tmp_path)
    found = [record for record in caplog.records if "corrects twice" in record.message]
    assert [record.levelname for record in found] == ["WARNING"] * warned
    run(tiny(*options, "epochs=null", "steps=2"), directory=tmp_path)
    assert len([record for record in caplog.records if "corrects twice" in record.message]) == len(found), "resumed"


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_bit(shell: Shell) -> None:
    options = ("class_weights=inverse", "balanced_sampling=true", "accumulate=2", "label_smoothing=0.1")
    length = ("epochs=null", "steps=120", "checkpoint.every=20steps", "log_every=1", "kernels=plain")
    code, out, err = shell.call(*TINY, *options, *length, "hydra.run.dir=straight")
    assert code == 0, err
    assert re.search(r"classes    pattern 0 \d+ \(weight [\d.]+\), .*; drawn equally often", out)
    assert out.count("corrects twice for the sizes of the classes") == 1
    started = shell.start(*TINY, *options, *length, "hydra.run.dir=killed")
    shell.wait_for("killed/checkpoints/step-00000040.pt", started)
    os.kill(started.pid, signal.SIGKILL)
    started.communicate()
    assert not (shell.folder / "killed/checkpoints/step-00000120.pt").exists()
    code, _, err = shell.call("resume=killed", "class_weights=sqrt")
    assert code == 2 and "class_weights: saved inverse, requested sqrt" in err
    code, out, err = shell.call("resume=killed")
    assert code == 0 and "resuming from" in out, err
    one, other = (
        read_checkpoint(shell.folder / name / "checkpoints/last.pt")["state"] for name in ("straight", "killed")
    )
    assert one["step"] == other["step"] == 120
    assert all(torch.equal(tensor, other["model"][name]) for name, tensor in one["model"].items())
