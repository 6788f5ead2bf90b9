"""``find_lr=true``: what it prints, that it fits every way of training, and that it leaves nothing."""

from __future__ import annotations

import math
import random
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from resnet_train import run
from resnet_train.commands.find_lr import (
    SMALLEST,
    Point,
    curve,
    find_lr,
    learning_rates,
    range_test,
    smoothed,
    suggest,
)
from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.training.setup import build
from tests.conftest import TINY, Shell

Tiny = Callable[..., Config]


def test_learning_rates() -> None:
    rates = learning_rates()
    assert (len(rates), rates[0], rates[-1]) == (141, SMALLEST, pytest.approx(10))
    assert [later / earlier for earlier, later in pairwise(rates)] == pytest.approx([10 ** (1 / 20)] * 140)


def test_a_straight_line_is_smoothed_to_itself() -> None:
    points = smoothed([3 - 0.01 * step for step in range(60)])
    assert [point.loss for point in points] == pytest.approx([3 - 0.01 * step for step in range(60)])
    assert [point.slope for point in points] == pytest.approx([-0.2] * 60), "per factor of ten: twenty steps"
    assert smoothed([2.0]) == [Point(SMALLEST, 2.0, 0.0)]


def falling(step: int) -> float:
    """Falls around 1e-3 (step 60) by 1, and blows up behind 1e-1 (step 100)."""
    return 2.5 - 1 / (1 + math.exp(-(step - 60) / 6)) + math.exp((step - 104) / 4)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_steepest_fall_and_a_tenth_of_the_least(noise: float) -> None:
    draws = random.Random(0)
    losses = [falling(step) + draws.gauss(0, noise) for step in range(112)]
    found = suggest(smoothed(losses), losses)
    assert found is not None
    assert found.steepest.lr == pytest.approx(1e-3, rel=0.5)
    assert found.tenth == found.least.lr / 10 == pytest.approx(2.5e-3, rel=0.8)
    assert found.least.lr > found.steepest.lr


@pytest.mark.parametrize("slope", [0.0, 0.005])
def test_what_does_not_fall_suggests_nothing(slope: float) -> None:
    draws = random.Random(1)
    losses = [2.3 + slope * step + draws.gauss(0, 0.1) for step in range(141)]
    assert suggest(smoothed(losses), losses) is None
    assert suggest(smoothed(losses[:5]), losses[:5]) is None


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("length", [1, 30, 112, 141])
def test_the_curve_fits_a_terminal(monkeypatch: pytest.MonkeyPatch, length: int, encoding: str) -> None:
    class Stream:
        def __init__(self) -> None:
            self.encoding = encoding

    losses = [falling(step) for step in range(length)]
    points = smoothed(losses)
    found = suggest(points, losses)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Stream())
        lines = curve(points, found)
    assert max(map(len, lines)) <= 80
    assert "\n".join(lines).isascii() == (encoding == "ascii")
    assert lines[-1].split() == ["1e-06", "1e-05", "1e-04", "1e-03", "0.01", "0.1", "1", "10"]
    assert (found is None) == (length == 1)
    if length > 100:
        mark, tick = lines[-2].index("^"), lines[-1].index("1e-03")
        assert abs(mark - tick) <= 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("optim=sgd", "model.dropout=0.1", "dataset.augment.mixup=0.2"),
        ("optim=adamw", "precision=bf16", "accumulate=2", "clip_grad_norm=1", "ema_decay=0.9", "model.width=1"),
        ("optim=sgd", "freeze=[conv1,bn1]", "kernels=plain", "dataset.val_size=40", "early_stop.patience=1"),
    ],
    ids=["sgd", "adamw", "frozen"],
)
def test_every_way_of_training(tiny: Tiny, options: tuple[str, ...]) -> None:
    text = find_lr(tiny("find_lr=true", *options))
    assert max(map(len, text.splitlines())) <= 80
    steepest, tenth = (float(found) for found in re.findall(r"optim\.lr=(\S+)", text))
    assert 1e-4 < tenth < 1
    assert 1e-4 < steepest < 1
    assert text == find_lr(tiny("find_lr=true", *options)), "the same again"


@pytest.mark.slow
def test_it_stops_where_the_loss_diverges(tiny: Tiny) -> None:
    config = tiny("optim=sgd", "optim.momentum=0.99", "model.depth=14", "optim.weight_decay=0.5")
    losses = range_test(build(config))
    assert 60 < len(losses) < 141
    assert all(math.isfinite(loss) for loss in losses)
    text = find_lr(config)
    assert f": {len(losses)} steps of 32 images,\nlearning rates from 1e-06 to " in text
    assert ", where the loss diverged\n" in text


@pytest.mark.slow
def test_it_begins_with_the_weights_of_another_run_and_leaves_them(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny("epochs=5"), directory=tmp_path)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*.*") if path.is_file()}
    fresh, tuned = (find_lr(tiny("find_lr=true", *more)) for more in ((), (f"init_from={tmp_path}",)))
    assert f" steps of 32 images from the weights of {tmp_path},\n" in tuned
    first = [float(re.findall(r"^ +1e-06 +(\S+) +[+-]", text, re.MULTILINE)[0]) for text in (fresh, tuned)]
    assert first[1] < first[0] - 0.3
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before}


def test_python_is_refused_in_one_line(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"^find_lr: expected false, got true, which shows something and trains"):
        run(tiny("find_lr=true"))


@pytest.mark.slow
def test_it_is_all_that_happens(shell: Shell, tiny: Tiny) -> None:
    code, out, err = shell.call(*TINY, "find_lr=true", PYTHONIOENCODING="utf-8")
    assert (code, err) == (0, "")
    assert out.startswith("resnet8 on synthetic, sgd: 1")
    assert "█" in out
    assert "steepest fall (^)        optim.lr=0." in out
    assert list(shell.folder.iterdir()) == []
    run(tiny("epochs=null", "steps=1"), directory=shell.folder / "run")
    for words, message in (
        (("-m", *TINY, "find_lr=true", "seed=0,1"), "expected one network, got a sweep (-m); leave -m and its lists"),
        (
            ("resume=run", "find_lr=true"),
            "expected a run that begins, got the one in run; init_from=run in place of resume tries learning rates ",
        ),
    ):
        code, out, err = shell.call(*words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"resnet-train: find_lr: {message}")
