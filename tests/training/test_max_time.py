"""``max_time``: sessions that end when their time is up, and a run that ends as if there had been one."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_train.config.run import Config
from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.runs.interrupt import EXIT_REQUEUE, Interrupted
from resnet_train.runs.summary import read_summary
from resnet_train.train import run
from tests.conftest import TINY, Shell

Tiny = Callable[..., Config]
LENGTH = ("epochs=null", "steps=5", "dataset.val_size=40", "eval_every=2steps", "log_every=1", "ema_decay=0.9")


@pytest.mark.slow
def test_each_session_makes_a_step(tiny: Tiny, tmp_path: Path, assert_same: Callable[..., None]) -> None:
    """However short it is: so the end is reached, and it is that of the undisturbed run."""
    straight = run(tiny(*LENGTH), directory=tmp_path / "straight")
    config = tiny(*LENGTH, "max_time=0.001 s")
    for done in range(1, 6):
        with pytest.raises(Interrupted) as caught:
            run(config, directory=tmp_path / "cut")
        assert caught.value.exit_code == EXIT_REQUEUE
        found = read_summary(tmp_path / "cut")
        assert found is not None
        assert (found.status, found.steps, found.result) == ("interrupted", done, None)
    result = run(config, directory=tmp_path / "cut")  # nothing but the result is left
    assert (result.status, result.result, result.last, result.sessions) == (
        "finished",
        straight.result,
        straight.last,
        6,
    )
    assert_same(*(read_checkpoint(tmp_path / name / "checkpoints/last.pt")["state"] for name in ("straight", "cut")))
    assert (tmp_path / "straight/metrics.csv").read_bytes() == (tmp_path / "cut/metrics.csv").read_bytes()


@pytest.mark.slow
def test_a_process_saves_and_ends_with_75(shell: Shell, tiny: Tiny, assert_same: Callable[..., None]) -> None:
    """And is killed before its next checkpoint, and ends as if it had not been."""
    words = (*TINY, "epochs=null", "steps=160", "checkpoint.every=150steps", "log_every=10", "hydra.run.dir=cut")
    code, out, err = shell.call(*words, "max_time=0.001 s")
    assert (code, err) == (75, "")
    assert "the time of max_time is up after 1 of 160 steps; everything is saved. Continue with: resnet-tr" in out
    started = shell.start("resume=cut", "max_time=1:00:00")
    table = shell.folder / "cut/metrics.csv"
    while started.poll() is None and not any(line.startswith("80,") for line in table.read_text().splitlines()):
        time.sleep(0.01)
    os.kill(started.pid, signal.SIGKILL)
    out, _ = started.communicate()
    assert "changed for the rest of this run: max_time: saved 0.001 s, requested 1:00:00" in out
    assert shell.call(*words)[0] == 0
    run(tiny("epochs=null", "steps=160", "log_every=10"), directory=shell.folder / "straight")
    assert_same(
        *(read_checkpoint(shell.folder / name / "checkpoints/last.pt")["state"] for name in ("straight", "cut"))
    )
    assert table.read_bytes() == (shell.folder / "straight/metrics.csv").read_bytes()


@pytest.mark.slow
def test_a_sweep_ends_with_the_time_and_is_continued(shell: Shell) -> None:
    """The jobs share the process, and what limits it: each command makes one step here."""
    words = (*TINY, "-m", "epochs=null", "steps=1", "seed=0,1", "sweep=limited", "max_time=0.001 s")
    for code, status in (
        (75, ["interrupted"]),
        (75, ["finished", "interrupted"]),
        (0, ["finished", "finished"]),
    ):
        found, out, err = shell.call(*words)
        assert (found, err) == (code, "")
        assert re.findall("finished|interrupted", "".join(shell.table(out))) == status
