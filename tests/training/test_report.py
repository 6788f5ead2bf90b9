"""What a run says, and the summary that it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from resnet_train.config.run import Config
from resnet_train.errors import RunError
from resnet_train.runs.directory import lock
from resnet_train.runs.summary import Score, read_summary
from resnet_train.train import run
from resnet_train.training import report
from resnet_train.training.clock import Clock
from resnet_train.training.session import open_session
from resnet_train.training.setup import build
from resnet_train.training.timetable import Timetable

Tiny = Callable[..., Config]
TIMETABLE = Timetable(
    total_steps=20, steps_per_epoch=Fraction(25, 4), epochs=None, log_every=5, eval_every=1, checkpoint_every=1
)


def test_the_length_in_epochs_is_as_it_was_asked_for() -> None:
    assert report.epochs(TIMETABLE) == "3.2"
    assert report.epochs(replace(TIMETABLE, epochs=3, total_steps=19)) == "3"


@pytest.mark.slow
def test_a_line_says_what_was_measured_and_the_speed_since_the_line_before(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built = build(tiny("epochs=2"))
    with lock(tmp_path) as held:
        session = open_session(built, tiny("epochs=2"), tmp_path, lock=held, clock=Clock(), command="", invocation=None)
        clock, score = session.clock, Score(loss=2.5, accuracy=0.25, error=0.75, correct=56, count=224, step=7)
        try:
            with caplog.at_level("INFO"):
                for step, row, train_score in (
                    (5, {"epoch": 0.8, "lr": 0.1, "loss/test": 2.25, "accuracy/test": 0.125}, None),
                    (7, {"epoch": 1.12, "lr": 0.05}, score),
                ):
                    built.state.step = step
                    clock.train_seconds, clock.images = step / 10, 32 * step
                    report.log_line(built, session, row, train_score)
        finally:
            session.tensorboard.close("interrupted")
            session.checkpoints.finish()
    assert caplog.messages == [
        "epoch 0.8/2, step 5, test loss 2.2500 accuracy 12.50 %, lr 0.1, 320 images/s, 0:00:00",
        "epoch 1/2, step 7, train loss 2.5000 accuracy 25.00 %, lr 0.05, 320 images/s, 0:00:00",
    ]


@pytest.mark.slow
def test_out_of_memory_says_what_to_try(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **_more: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", no_memory)
    with pytest.raises(RunError) as raised:
        run(tiny("epochs=1", "accumulate=2"), directory=tmp_path)
    assert str(raised.value) == (
        "out of memory on cpu with batch_size=32, accumulate=2 and precision=fp32: try accumulate=4, which splits each "
        "batch, a smaller batch_size, a smaller model or smaller images; the checkpoints are whole"
    )
    found = read_summary(tmp_path)
    assert found is not None
    assert (found.status, found.error) == ("failed", str(raised.value))
