"""Faults that are caused for real: what is promised for each stands in docs/reliability.md."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from resnet_train import checkpoint, rundir, summary
from resnet_train.errors import ConfigError, RunError
from resnet_train.train import run
from tests.conftest import TINY
from tests.test_cli import PROGRAM, call, wait_for
from tests.test_train import Tiny, cut_back, rows

VERIFY = (str(Path(PROGRAM).with_name("resnet-verify")),)


# --------------------------------------------------------------------------------------------------- two in a directory


@pytest.mark.slow
def test_a_second_process_is_refused_by_name(tmp_path: Path) -> None:
    words = (*TINY, "epochs=null", "steps=4000", "checkpoint.every=50steps", "hydra.run.dir=run")
    first = subprocess.Popen((PROGRAM, *words), cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        wait_for(tmp_path / "run" / "checkpoints" / "step-00000050.pt", first)
        for again in (words, ("resume=run",)):
            code, _, err = call(*again, cwd=tmp_path)
            assert code == 2
            assert err == (
                f"resnet-train: the run directory {tmp_path}/run is in use by process {first.pid} on "
                f"{os.uname().nodename}; wait for it, stop it, or choose another directory with hydra.run.dir=FOLDER\n"
            )
    finally:
        first.kill()
        first.wait()
    # It is gone, without having given its lock back: that is taken over.
    done = int(sorted((tmp_path / "run" / "checkpoints").glob("step-*.pt"))[-1].stem.partition("-")[2])
    code, out, err = call("resume=run", f"steps={done + 20}", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "resuming from" in out


def test_a_lock_is_given_back(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            rundir.lock(tmp_path),
            pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on "),
            rundir.lock(tmp_path),
        ):
            pass
    with pytest.raises(ValueError, match="inside"), rundir.lock(tmp_path):
        raise ValueError("inside")
    with rundir.lock(tmp_path):
        pass


# ----------------------------------------------------------------------------------------------------------- full disks


def limited(words: tuple[str, ...], size: int, cwd: Path) -> tuple[int, str, str]:
    """Run with no file allowed to grow beyond ``size`` bytes: writes then fail as they do on a full disk."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    done = subprocess.run(
        (PROGRAM, *words), cwd=cwd, capture_output=True, text=True, timeout=120, preexec_fn=limit, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_metrics_that_cannot_be_written_end_no_run(tmp_path: Path) -> None:
    """Event files and the table outgrow the limit; checkpoints of so small a network do not."""
    words = (*TINY, "epochs=null", "steps=1500", "log_every=1", "eval_every=500steps", "checkpoint.every=500steps")
    code, out, err = limited((*words, "kernels=plain", "hydra.run.dir=run"), 64 * 1024, tmp_path)
    assert code == 0, err
    assert "cannot write events for TensorBoard: [Errno 27] File too large; the run goes on without them" in out
    assert out.count("cannot write events") == 1
    assert re.search(r"cannot write the row of update \d+ to .*/metrics.csv: \[Errno 27\] File too large; the run", out)
    found = summary.read(tmp_path / "run")
    assert found is not None
    assert (found.status, found.steps) == ("finished", 1500)
    table = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len({line.count(",") for line in table[:-1]}) == 1, "rows that are there are whole"
    assert checkpoint.read(tmp_path / "run/checkpoints/last.pt")["state"]["step"] == 1500


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    words = (*TINY, "epochs=null", "steps=60", "checkpoint.every=20steps", "kernels=plain", "hydra.run.dir=run")
    assert call(*words, "steps=20", cwd=tmp_path)[0] == 0
    size = (tmp_path / "run/checkpoints/last.pt").stat().st_size
    code, out, err = limited(("resume=run", "steps=60"), size - 100, tmp_path)
    assert code == 1
    assert "step-00000040.pt: [Errno 27] File too large; trying once more" in out
    assert err == (
        f"resnet-train: cannot write the checkpoint {tmp_path}/run/checkpoints/step-00000040.pt: File too large; the "
        f"checkpoints before it are whole. Free the disk or make it writable, then resume\n"
    )
    found = summary.read(tmp_path / "run")
    assert found is not None
    assert found.status == "failed"
    code, out, _ = call("resume=run", cwd=tmp_path)
    assert code == 0
    assert "step-00000020.pt: 20 updates are done" in out


@pytest.mark.slow
def test_a_run_directory_that_is_taken_away(tmp_path: Path) -> None:
    words = (*TINY, "epochs=null", "steps=100000", "checkpoint.every=200steps", "hydra.run.dir=run")
    started = subprocess.Popen(
        (PROGRAM, *words), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "run" / "checkpoints" / "step-00000200.pt", started)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    out, err = started.communicate(timeout=60)
    assert started.returncode == 1
    assert "trying once more" in out
    path = rf"{tmp_path}/run/checkpoints/step-\d+\.pt"
    assert re.match(rf"resnet-train: cannot write the checkpoint {path}: No such file or directory; the checkp", err)
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists(), "nothing is made in its place"
    newest = max((tmp_path / "elsewhere" / "checkpoints").glob("step-*.pt"))
    assert checkpoint.read(newest)["state"]["step"] >= 200


def test_no_more_file_handles(tmp_path: Path) -> None:
    """Nothing can be opened: neither rows nor checkpoints; what is there stays whole."""
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
    checkpoints.save({"format": checkpoint.FORMAT}, step=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(RunError, match="Too many open files; the checkpoints before it are whole"):
            checkpoints.save({"format": checkpoint.FORMAT}, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    newest = checkpoints.newest()
    assert newest is not None
    assert newest[0].name == "step-00000001.pt"


# ------------------------------------------------------------------------------------------------------------- force


@pytest.mark.slow
def test_a_change_that_is_refused_is_shown_as_a_table(tmp_path: Path) -> None:
    assert call(*TINY, "epochs=1", "hydra.run.dir=run", cwd=tmp_path)[0] == 0
    code, _, err = call("resume=run", "optim.lr=0.2", "epochs=2", "seed=3", cwd=tmp_path)
    assert code == 2
    *table, line = err.splitlines()
    assert table == [
        "key       saved  requested  allowed",
        "epochs    1      2          yes",
        "optim.lr  0.1    0.2        no",
        "seed      0      3          no",
    ]
    assert line.startswith("resnet-train: resume: this would be another run than the one in ")


@pytest.mark.slow
def test_forced_changes_are_recorded_and_forced_once(tmp_path: Path) -> None:
    assert call(*TINY, "epochs=1", "hydra.run.dir=run", cwd=tmp_path)[0] == 0
    code, out, err = call("resume=run", "optim.lr=0.2", "epochs=2", "resume_force=true", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "another run from here on, by resume_force: optim.lr: saved 0.1, requested 0.2" in out
    assert "the learning rate goes on at " in out
    assert "resume_force" not in (tmp_path / "run/invocation.json").read_text()
    code, _, err = call("resume=run", "optim.lr=0.3", cwd=tmp_path)
    assert code == 2
    assert "optim.lr: saved 0.2, requested 0.3" in err
    assert call("resume=run", "epochs=3", cwd=tmp_path)[0] == 0
    found = summary.read(tmp_path / "run")
    assert found is not None
    assert found.forced == ["after 7 updates: optim.lr: saved 0.1, requested 0.2"]


# --------------------------------------------------------------------------------------------------------- init_from


@pytest.mark.slow
def test_a_run_begins_with_the_weights_of_another(tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tiny("epochs=1", "ema_decay=0.5"), directory=tmp_path / "first")
    source = checkpoint.read(tmp_path / "first/checkpoints/last.pt")["state"]
    plain = tmp_path / "weights.pt"
    torch.save(source["ema"], plain)
    for number, path in enumerate((tmp_path / "first", tmp_path / "first/checkpoints/last.pt", plain)):
        directory = tmp_path / f"second-{number}"
        with caplog.at_level("INFO"):
            run(tiny("epochs=1", "seed=5", f"init_from={path}", "ema_decay=0.9"), directory=directory)
        assert f"beginning with 44 of the 44 tensors of {path}" in caplog.text
        for key in ("model", "ema"):
            start = checkpoint.read(directory / "checkpoints/step-00000000.pt")["state"][key]
            assert all(torch.equal(start[name], source["ema"][name]) for name in start), "the moving average, if any"


def test_the_classifier_may_differ(tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tiny("epochs=1"), directory=tmp_path / "first")
    with caplog.at_level("INFO"):
        run(tiny("epochs=1", "dataset.num_classes=3", f"init_from={tmp_path / 'first'}"), directory=tmp_path / "second")
    assert "beginning with 42 of the 44 tensors" in caplog.text
    assert "left as initialised: fc.bias is (10,) there and (3,) here" in caplog.text
    assert "left as initialised: fc.weight is (10, 16) there and (3, 16) here" in caplog.text


@pytest.mark.slow
def test_what_init_from_refuses(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny("epochs=1"), directory=tmp_path / "first")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no weights")
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    broken = tmp_path / "broken.pt"
    whole = (tmp_path / "first/checkpoints/last.pt").read_bytes()
    broken.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    cases = {
        "empty": "init_from: expected a run with checkpoints, got .*/empty, which has none",
        "text": "init_from: cannot read .*/text: ",
        "numbers.pt": "init_from: expected weights by name in .*/numbers.pt, got dict of other things",
        "broken.pt": "init_from: cannot read .*/broken.pt: ",
    }
    for name, message in cases.items():
        with pytest.raises(ConfigError, match=message):
            run(tiny("epochs=1", f"init_from={tmp_path / name}"), directory=tmp_path / f"from-{name}")
    with pytest.raises(ConfigError, match=r"init_from: the weights in .* are of another network: layer1\.1\.bn1\."):
        run(tiny("epochs=1", "model.depth=14", f"init_from={tmp_path / 'first'}"), directory=tmp_path / "deeper")
    code, _, err = call(*TINY, "init_from=nowhere", cwd=tmp_path)
    assert code == 2
    assert err == ("resnet-train: init_from: expected a run directory or a file, got 'nowhere', which does not exist\n")


@pytest.mark.slow
def test_a_run_that_is_taken_up_does_not_begin_again(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny("epochs=1"), directory=tmp_path / "first")
    length = ("epochs=null", "steps=12", "checkpoint.every=1steps", "checkpoint.keep=100", "log_every=1")
    config = tiny(*length, f"init_from={tmp_path / 'first'}")
    run(config, directory=tmp_path / "straight")
    run(config, directory=cut_back(tmp_path / "straight", tmp_path / "resumed", step=7))
    assert rows(tmp_path / "straight") == rows(tmp_path / "resumed")


# ------------------------------------------------------------------------------------------------------------- sweeps

SWEEP = (*TINY, "-m", "epochs=null", "steps=300", "checkpoint.every=20steps", "checkpoint.keep=99", "sweep=seeds")


def results(folder: Path) -> dict[str, str]:
    """Overrides of each job, and what its table of metrics came to."""
    return {
        " ".join(json.loads((job / "invocation.json").read_text())["overrides"]): (job / "metrics.csv").read_text()
        for job in (folder / "outputs/sweeps/seeds").iterdir()
        if job.is_dir()
    }


@pytest.mark.slow
def test_a_run_outlives_the_run_that_it_began_with(tmp_path: Path) -> None:
    assert call(*TINY, "epochs=1", "hydra.run.dir=first", cwd=tmp_path)[0] == 0
    assert call(*TINY, "epochs=1", "init_from=first", "hydra.run.dir=second", cwd=tmp_path)[0] == 0
    shutil.rmtree(tmp_path / "first")
    code, out, err = call("resume=second", "epochs=2", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "epoch 2/2" in out


@pytest.mark.slow
def test_a_sweep_that_was_killed_comes_to_the_same(tmp_path: Path) -> None:
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    code, _, err = call(*SWEEP, "seed=0,1,2", "model.width=0.25,0.3", cwd=tmp_path / "straight")
    assert (code, err) == (0, "")

    started = subprocess.Popen(
        (PROGRAM, *SWEEP, "seed=0,1,2", "model.width=0.25,0.3"), cwd=tmp_path / "killed", stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "killed").rglob("checkpoints/step-00000100.pt"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    started.send_signal(signal.SIGKILL)
    started.wait()
    before = results(tmp_path / "killed")
    assert 2 <= len(before) < 6

    # Another order of the values, and one more of them: jobs are known by what they are.
    code, out, err = call(*SWEEP, "model.width=0.3,0.25", "seed=3,2,1,0", cwd=tmp_path / "killed")
    assert (code, err) == (0, "")
    assert "resuming from" in out
    straight, killed = results(tmp_path / "straight"), results(tmp_path / "killed")
    assert len(straight) == 6
    by_words = {frozenset(words.split()): table for words, table in killed.items()}
    assert len(by_words) == len(killed) == 8
    for words, table in straight.items():
        assert by_words[frozenset(words.split())] == table, words
    listed = out[out.index("\njob ") :].splitlines()[2:10]
    assert all("finished" in line for line in listed)
    assert [re.findall(r"seed=(\d)", line)[0] for line in listed] == list("32103210")


@pytest.mark.slow
def test_a_sweep_ends_early_where_asked_to(tmp_path: Path) -> None:
    words = (*TINY, "-m", "epochs=1", "log_every=1", "optim.lr=1e30,2e30,0.1", "sweep=bad", "max_failures=2")
    code, out, err = call(*words, cwd=tmp_path)
    assert code == 1
    assert err.splitlines()[-1] == ("resnet-train: the sweep was ended after 2 failed jobs, as max_failures asks for")
    assert out[out.index("\njob ") :].count("failed") == 2
    jobs = [path for path in (tmp_path / "outputs/sweeps/bad").iterdir() if path.is_dir()]
    assert len(jobs) == 2
    for job in jobs:
        assert "Traceback (most recent call last)" in (job / "train.log").read_text()
        assert checkpoint.read(job / "checkpoints/last.pt")["state"]["step"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-m", "seed=0,1", "sweep=a/b"), "sweep: expected a name of letters, digits and . _ + -, got 'a/b'"),
        (("-m", "seed=0,1", "max_failures=0"), "max_failures: expected a number above 0, got '0'"),
        (("sweep=a",), "sweep: it is for sweeps; put -m in front, or leave it out"),
    ],
)
def test_words_of_sweeps(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert call(*TINY, *words, cwd=tmp_path) == (2, "", f"resnet-train: {message}\n")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------- resnet-verify


@pytest.mark.slow
def test_verify_finds_killed_runs_the_same(tmp_path: Path) -> None:
    words = (*TINY, "ema_decay=0.9", "epochs=9", "--updates", "40", "--runs", "2", "--kills", "2", "--seed", "1")
    code, out, err = call(*words, cwd=tmp_path, program=VERIFY)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "2 of 2 killed runs ended bit for bit like the undisturbed one"
    assert len(re.findall(r"^run \d, killed after \d+\.\d\d s, \d+\.\d\d s: the same$", out, re.MULTILINE)) == 2
    assert re.search(r"^  model      sha256 [0-9a-f]{16}$", out, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_verify_finds_a_difference(tiny: Tiny, tmp_path: Path) -> None:
    from resnet_train.verify import Trial, compare

    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        run(tiny("epochs=null", "steps=6", "log_every=1", f"seed={seed}"), directory=tmp_path / name)
    one, same, other = (Trial(tmp_path / name, [], 6) for name in ("one", "same", "other"))
    assert compare(one, same) == []
    found = compare(one, other)
    assert found[0].startswith("model (")
    assert any(text.startswith("metrics.csv, first at ") for text in found)
    assert found[-1] == "the scalars in the event files"
    shutil.copy(tmp_path / "other/metrics.csv", tmp_path / "same/metrics.csv")
    assert [text.partition(",")[0] for text in compare(one, same)] == ["metrics.csv"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--updates", "0"), 2, "expected --updates, --runs and --kills above 0"),
        (("optim.lr=x",), 2, "optim.lr: expected a number, got 'x'"),
        (("batch_size=32", "epochs=1", "--updates", "10"), 1, None),
    ],
)
@pytest.mark.slow
def test_bad_input_of_verify(words: tuple[str, ...], code: int, message: str | None, tmp_path: Path) -> None:
    found, _, err = call(*TINY, *words, cwd=tmp_path, program=VERIFY)
    assert found == code
    if message is None:
        assert err.startswith("resnet-verify: a run ended before its time, with exit code 0: ")
    else:
        assert err == f"resnet-verify: {message}\n"


def test_the_module_answers_too(tmp_path: Path) -> None:
    code, out, _ = call("--help", cwd=tmp_path, program=(sys.executable, "-m", "resnet_train.verify"))
    assert code == 0
    assert "--kills" in out
