"""What a session writes, and what becomes of the run where it cannot: caused for real."""

from __future__ import annotations

import re
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_train.config.run import Config
from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.runs.summary import read_summary
from resnet_train.train import run
from tests.conftest import TINY, Shell


def limit(size: int) -> None:
    """No file of this process can grow beyond ``size`` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def limited(shell: Shell, *arguments: str, size: int) -> tuple[int, str, str]:
    """Run with no file allowed to grow beyond ``size`` bytes: writes then fail as they do on a full disk."""

    started = shell.start(*arguments, preexec_fn=lambda: limit(size))
    out, err = started.communicate(timeout=120)
    return started.returncode, out, err


@pytest.mark.slow
@pytest.mark.parametrize(("stem", "size", "left"), [("imagenet", 33, 9), ("imagenet", 64, None), ("cifar", 33, None)])
def test_the_stem_of_imagenet_on_small_images(
    tiny: Callable[..., Config],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    stem: str,
    size: int,
    left: int | None,
) -> None:
    network = ("model=resnet18", "model.depth=18", "model.width=0.05", f"model.stem={stem}")
    run(tiny(*network, f"dataset.image_size={size}", "epochs=null", "steps=1", "batch_size=2"), directory=tmp_path)
    warned = [record.message for record in caplog.records if "model.stem" in record.message]
    expected = (
        f"model.stem=imagenet (7x7 with stride 2, then max-pooling) leaves {left}x{left} of {size}x{size} pixels to "
        f"the first block; model.stem=cifar, one 3x3 convolution, leaves all of them"
    )
    assert warned == ([] if left is None else [expected])


@pytest.mark.slow
def test_metrics_that_cannot_be_written_are_not_fatal(shell: Shell) -> None:
    """Event files outgrow the limit, checkpoints of so small a network do not; the table gives way to a folder.

    A longer run has every row again, since the checkpoint holds them.
    """
    overrides = (*TINY, "epochs=null", "steps=600", "log_every=1", "eval_every=200steps", "checkpoint.every=200steps")
    started = shell.start(*overrides, "kernels=plain", "hydra.run.dir=run", preexec_fn=lambda: limit(150 * 1024))
    shell.wait_for("run/checkpoints/step-00000200.pt", started)
    (shell.folder / "run/metrics.csv").unlink()
    (shell.folder / "run/metrics.csv").mkdir()
    out, err = started.communicate(timeout=120)
    assert started.returncode == 0, err
    assert "cannot write events for TensorBoard: [Errno 27] File too large; the run continues without them" in out
    assert out.count("cannot write events") == 1
    assert re.search(r"cannot write the row of step \d+ to .*/metrics.csv: \[Errno 21\] Is a directory", out)
    found = read_summary(shell.folder / "run")
    assert found is not None
    assert (found.status, found.steps) == ("finished", 600)
    assert read_checkpoint(shell.folder / "run/checkpoints/last.pt")["state"]["step"] == 600
    (shell.folder / "run/metrics.csv").rmdir()
    assert shell.call("resume=run", "steps=601")[0] == 0
    table = (shell.folder / "run" / "metrics.csv").read_text().splitlines()
    assert [int(line.partition(",")[0]) for line in table[1:]] == list(range(1, 602))


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_ends_the_run(shell: Shell) -> None:
    length = ("epochs=null", "steps=60", "checkpoint.every=20steps", "log_every=1")
    overrides = (*TINY, *length, "kernels=plain", "hydra.run.dir=run")
    assert shell.call(*overrides, "steps=20")[0] == 0
    size = (shell.folder / "run/checkpoints/last.pt").stat().st_size
    code, out, err = limited(shell, "resume=run", "steps=60", size=size + 1550)  # twenty rows more are larger
    assert code == 1
    assert "step-00000040.pt: [Errno 27] File too large; trying once more" in out
    assert err == (
        f"resnet-train: cannot write the checkpoint {shell.folder}/run/checkpoints/step-00000040.pt: File too large; "
        f"the checkpoints before it are whole. Free the disk or make it writable, then resume\n"
    )
    found = read_summary(shell.folder / "run")
    assert found is not None
    assert found.status == "failed"
    code, out, _ = shell.call("resume=run")
    assert code == 0
    assert "step-00000020.pt: 20 steps are done" in out


@pytest.mark.slow
def test_a_run_directory_that_is_begun_anew_by_another_process(shell: Shell) -> None:
    overrides = (*TINY, "epochs=null", "checkpoint.every=100steps", "log_every=10")
    assert shell.call(*overrides, "steps=200", "hydra.run.dir=straight")[0] == 0
    first = shell.start(*overrides, "steps=100000", "seed=1", "checkpoint.every=100000steps", "hydra.run.dir=run")
    shell.wait_for("run/checkpoints/last.pt", first)
    first.send_signal(signal.SIGSTOP)
    shutil.rmtree(shell.folder / "run")
    second = shell.start(*overrides, "steps=200", "hydra.run.dir=run")
    shell.wait_for("run/metrics.csv", second)
    first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 1
    assert err == (
        f"resnet-train: {shell.folder}/run was taken over by process {second.pid} on {socket.gethostname()} while this "
        "process was in it: deleted and made anew, or held by nobody for a while; this run stops and leaves it alone\n"
    )
    _, err = second.communicate(timeout=60)
    assert (second.returncode, err) == (0, "")
    straight, run = shell.folder / "straight", shell.folder / "run"
    assert (run / "metrics.csv").read_bytes() == (straight / "metrics.csv").read_bytes()
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        "step-00000100.pt",
        "step-00000200.pt",
        "last.pt",
    }
    assert len([*run.glob("events.out.*")]) == 1
    found = read_summary(shell.folder / "run")
    assert found is not None
    assert (found.status, found.seed) == ("finished", 0)


@pytest.mark.slow
def test_a_run_directory_that_is_taken_away(shell: Shell) -> None:
    overrides = (*TINY, "epochs=null", "steps=100000", "checkpoint.every=200steps", "hydra.run.dir=run")
    started = shell.start(*overrides)
    shell.wait_for("run/checkpoints/step-00000200.pt", started)
    time.sleep(0.1)  # until last.pt is a link to it
    (shell.folder / "run").rename(shell.folder / "elsewhere")
    _, err = started.communicate(timeout=60)
    assert started.returncode == 1
    path = rf"{shell.folder}/run/checkpoints/step-\d+\.pt"
    assert re.match(rf"resnet-train: cannot write the checkpoint {path}: No such file or directory; the checkp", err)
    assert err.count("\n") == 1
    assert not (shell.folder / "run").exists(), "nothing is made in its place"
    newest = max((shell.folder / "elsewhere" / "checkpoints").glob("step-*.pt"))
    assert read_checkpoint(newest)["state"]["step"] >= 200
