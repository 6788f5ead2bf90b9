"""Everything is built from the configuration, and nothing else happens."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.training.launches import FewLaunches
from resnet_train.training.setup import build, build_forward
from resnet_train.training.timetable import Due, Timetable
from tests.conftest import TINY, Shell

Tiny = Callable[..., Config]


def test_a_run_is_what_the_configuration_says(tiny: Tiny) -> None:
    run = build(
        tiny("epochs=2", "dataset.val_size=40", "ema_decay=0.9", "model.dropout=0.1", "seed=3", "kernels=plain")
    )
    assert (run.timetable.total_steps, run.timetable.steps_per_epoch) == (10, Fraction(160, 32))
    assert {split: len(data.split) for split, data in run.eval_data.items()} == {"val": 40, "test": 50}
    assert (run.watched, run.seed, run.has_dropout, run.image_size) == ("val", 3, True, 16)
    assert len(run.classes) == 10
    assert run.state.step == 0
    assert run.state.ema is not None
    assert run.facts.images == {"train": 160, "val": 40, "test": 50}
    assert run.facts.classes == list(run.classes)
    assert (run.facts.kernels, run.facts.precision, run.facts.seed) == ("plain", "fp32", 3)
    assert run.facts.parameters == sum(parameter.numel() for parameter in run.state.model.parameters())
    assert run.lr_schedule(0) == pytest.approx(0.1)
    images, labels = run.train_data.batch(0)
    run.train_step(images, labels, lr=run.lr_schedule(0))
    assert run.state.step == 1
    with pytest.raises(FrozenInstanceError):
        run.seed = 4  # type: ignore[misc]


def test_building_leaves_no_trace(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny("deterministic=true", "profile=true", "init_from=nowhere", "kernels=plain")
    config.resume = "nowhere"
    before = asdict(config)
    switches = [
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    ]
    with caplog.at_level(logging.DEBUG, "resnet_train"):
        build(config)
    assert caplog.messages == []
    assert list(tmp_path.iterdir()) == []
    assert asdict(config) == before
    assert switches == [
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    ]


@pytest.mark.slow
def test_two_builds_begin_with_the_same_weights(tiny: Tiny) -> None:
    first, second, other = (build(tiny(f"seed={seed}")).state.model.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_lengths_that_the_data_do_not_allow(tiny: Tiny) -> None:
    """Where only a look at the files tells how many images there are, this is when it is found."""
    config = tiny()
    config.batch_size = 1000
    with pytest.raises(ConfigError, match=r"^batch_size: expected at most the 200 training images, got 1000; "):
        build(config)


FOUR = ("dataset.image_size=4", "dataset.augment.crop_padding=0")
ORIGINAL = ("model=resnet18", "model.depth=18", "model.width=0.0625", "model.stem=imagenet", "dataset.image_size=32")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "fix"),
    [
        ((*ORIGINAL, "batch_size=8", "accumulate=8"), "accumulate=4"),
        ((*ORIGINAL, "batch_size=9", "accumulate=9"), "accumulate=3"),
        ((*ORIGINAL, "batch_size=1"), "batch_size=2"),
        ((*FOUR, "batch_size=5", "accumulate=5"), "accumulate=1"),
        ((*FOUR, "batch_size=1", "model.preactivation=true"), "batch_size=2"),
    ],
    ids=str,
)
def test_batch_norm_over_one_value_is_refused(tiny: Tiny, overrides: tuple[str, ...], fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(tiny(*overrides))
    text = str(caught.value)
    assert text.startswith("batch_size: expected more than one value per channel in each batch norm, got one image of ")
    assert text.endswith(f"; try {fix}")
    fixed = build(tiny(*overrides, fix))
    fixed.train_step(*fixed.train_data.batch(0), lr=0.1)


def test_one_image_of_several_pixels_is_enough(tiny: Tiny) -> None:
    built = build(tiny("dataset.image_size=8", "batch_size=4", "accumulate=4"))
    assert built.train_step(*built.train_data.batch(0), lr=0.1).loss.isfinite()


@pytest.mark.slow
def test_launches_are_saved_where_there_are_any(tiny: Tiny) -> None:
    run = build(tiny("kernels=plain"))
    assert run.forward is run.state.model
    on_cuda = replace(run.plan, device=torch.device("cuda", 0), precision="bf16")
    assert isinstance(build_forward(on_cuda, run.state), FewLaunches)
    compiled = build_forward(replace(on_cuda, compiled=True), run.state)
    assert not isinstance(compiled, FewLaunches), "it joins casts by itself"


TIMETABLE = Timetable(
    total_steps=12,
    steps_per_epoch=Fraction(5, 2),
    epochs=None,
    log_every=4,
    eval_every=2,
    checkpoint_every="6 steps",
)


@pytest.mark.parametrize(
    ("step", "signum", "expected"),
    [
        (1, None, Due(log=False, epoch=False, evaluation=False, checkpoint=False, signum=None)),
        (3, None, Due(log=False, epoch=True, evaluation=False, checkpoint=False, signum=None)),
        (4, None, Due(log=True, epoch=False, evaluation=False, checkpoint=False, signum=None)),
        (5, None, Due(log=False, epoch=True, evaluation=True, checkpoint=False, signum=None)),
        (6, None, Due(log=False, epoch=False, evaluation=False, checkpoint=True, signum=None)),
        (7, 15, Due(log=False, epoch=False, evaluation=False, checkpoint=True, signum=15)),
        (12, None, Due(log=True, epoch=True, evaluation=True, checkpoint=True, signum=None)),
    ],
)
def test_what_is_due_after_a_step(step: int, signum: int | None, expected: Due) -> None:
    due = TIMETABLE.due(step, signum)
    assert due == expected
    assert due.anything == (step != 1)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_imports_no_compiler(optimizer: str, shell: Shell) -> None:
    """PyTorch has many functions that import torch.compile at their first call, for seconds at every start."""
    program = (sys.executable, "-X", "importtime", "-m", "resnet_train")
    code, _, err = shell.call(*TINY, "epochs=1", f"optim={optimizer}", program=program)
    assert code == 0, err
    assert " torch.optim\n" in err
    assert " torch._dynamo" not in err
