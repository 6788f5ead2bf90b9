"""``resnet-train`` as processes: runs, signals, resumed runs, directories."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from resnet_train.cli.compose import load_config
from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.runs.summary import read_summary
from resnet_train.train import run
from tests.conftest import TINY, Shell

LONG = ("epochs=null", "steps=4000", "checkpoint.every=50steps", "checkpoint.keep=3", "eval_every=500steps")


@pytest.mark.slow
def test_a_device_that_is_not_there(shell: Shell) -> None:
    code, out, err = shell.call(*TINY, "device=cuda:99")
    assert code == 2
    assert re.fullmatch(
        r"resnet-train: device: expected one of this machine's \d+ CUDA devices, got cuda:99; try device=\S+\n", err
    )
    assert list(shell.folder.iterdir()) == [], out


@pytest.mark.slow
def test_kernels_without_a_compiler(shell: Shell) -> None:
    missing = "no C++ compiler found (looked for $CXX, c++, g++, clang++)"
    code, _, err = shell.call(*TINY, "kernels=fused", PATH=str(shell.folder), CXX="")
    assert code == 2
    assert err == (
        f"resnet-train: kernels: expected to find what kernels=fused needs, but {missing}; try kernels=auto\n"
    )
    assert list(shell.folder.iterdir()) == []
    code, out, _ = shell.call(*TINY, "epochs=null", "steps=1", PATH=str(shell.folder), CXX="")
    assert code == 0
    assert f"kernels    plain: {missing}\n" in out


@pytest.mark.slow
def test_a_directory_that_cannot_be_written_to(shell: Shell) -> None:
    (shell.folder / "file").touch()
    code, _, err = shell.call(*TINY, "hydra.run.dir=file/run")
    assert code == 2
    assert err == (
        f"resnet-train: cannot write to the run directory {shell.folder}/file/run: Not a directory; choose another "
        "with hydra.run.dir=FOLDER, or make it writable\n"
    )


@pytest.mark.slow
def test_yaml_of_the_users_own(shell: Shell) -> None:
    (shell.folder / "mine" / "experiment").mkdir(parents=True)
    (shell.folder / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\noptim:\n  lr: 0.7\n")
    words = ("--config-dir", "mine", "experiment=own")
    code, out, _ = shell.call(*words, "--cfg", "job")
    assert code == 0
    assert "  lr: 0.7\n" in out
    (shell.folder / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\noptim:\n  lr: quick\n")
    code, _, err = shell.call(*words)
    assert (code, err) == (2, "resnet-train: optim.lr: expected a number, got 'quick'\n")


def only_run(folder: Path) -> Path:
    (found,) = (path.parent for path in folder.rglob("invocation.json"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [
        "resnet-train",
        (sys.executable, "-m", "resnet_train"),
        (sys.executable, "-m", "resnet_train.train"),
    ],
    ids=["console script", "python -m", "python -m, the module"],
)
def test_a_run(program: tuple[str, ...] | str, shell: Shell) -> None:
    code, out, err = shell.call(*TINY, "epochs=1", "name=first", program=program)
    assert (code, err) == (0, "")  # no terminal: no progress bar
    directory = only_run(shell.folder / "outputs")
    assert re.fullmatch(r"outputs/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-first", str(directory.relative_to(shell.folder)))
    found = read_summary(directory)
    assert found is not None
    assert "model      resnet8: 5,006 parameters, 0.2 M multiply-adds per image\n" in out
    assert "data       synthetic: 200 train, 50 test images of 16x16, 10 classes\n" in out
    assert re.search(r"^device     cpu \(.+, \d+ threads?\)\nprecision  fp32: asked for$", out, re.M)
    assert "length     7 steps of 32 images, 1 epochs, seed 0\n" in out
    assert f"directory  {directory}\n" in out
    assert re.search(r"^epoch 1/1, step 7, train loss \S+ accuracy \S+ %, test loss \S+ accuracy \S+ %, lr ", out, re.M)
    assert found.sentence() in out
    assert f"tensorboard --logdir {directory}\n" in out
    assert f"resnet-train resume={directory}" in out
    assert found.command == " ".join(["resnet-train", *TINY, "epochs=1", "name=first"])


@pytest.mark.slow
def test_programs_that_are_not_on_the_path_are_printed_with_their_interpreter(shell: Shell) -> None:
    """As of uv tool and pipx, and of an environment that is not active."""
    for arguments in (["hydra.run.dir=run"], ["-m", "hydra.sweep.dir=run-s"]):
        code, out, err = shell.call(*TINY, "epochs=1", *arguments, PATH=str(shell.folder))
        assert code == 0, err
        python = re.escape(str(Path(sys.executable).with_name("python"))) + "[\\d.]*"
        assert re.search(rf"^ *{python} -m tensorboard.main --logdir {shell.folder}/run(-s)?$", out, re.M)
        assert re.search(rf"^  {python} -m resnet_train resume={shell.folder}/run", out, re.M)
    code, out, _ = shell.call("--version", program=(sys.executable, "-m", "tensorboard.main"))
    assert code == 0


SAVES_OFTEN = (*TINY, "epochs=null", "steps=240", "checkpoint.every=20steps", "eval_every=60steps", "log_every=10")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `SAVES_OFTEN` that nothing disturbed."""
    directory = tmp_path_factory.mktemp("straight") / "run"
    run(load_config(SAVES_OFTEN), directory=directory)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGUSR1, 75),
        pytest.param(signal.SIGUSR2, 75, marks=pytest.mark.thorough),
        (signal.SIGHUP, 129),
        (signal.SIGKILL, -9),
    ],
    ids=["Ctrl-C", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL"],
)
def test_a_stopped_run_is_resumed_to_the_same_end(
    signum: signal.Signals, code: int, shell: Shell, straight: Path
) -> None:
    started = shell.start(*SAVES_OFTEN, "hydra.run.dir=cut")
    shell.wait_for("cut/checkpoints/step-00000040.pt", started)
    started.send_signal(signum)
    out, err = started.communicate(timeout=60)
    assert started.returncode == code, err
    if signum != signal.SIGKILL:
        assert err == ""
        assert f"everything is saved. Continue with: resnet-train resume={shell.folder}/cut" in out
        found = read_summary(shell.folder / "cut")
        assert found is not None
        assert found.status == "interrupted"
        assert found.steps < 240

    resume = ("hydra.run.dir=cut", *SAVES_OFTEN) if signum == signal.SIGKILL else ("resume=cut",)
    code, out, err = shell.call(*resume)
    assert (code, err) == (0, "")
    assert "resuming from" in out
    cut = shell.folder / "cut"
    assert (straight / "metrics.csv").read_bytes() == (cut / "metrics.csv").read_bytes()
    last = [read_checkpoint(directory / "checkpoints" / "last.pt") for directory in (straight, cut)]
    for key, weight in last[0]["state"]["model"].items():
        assert weight.equal(last[1]["state"]["model"][key]), key

    code, out, _ = shell.call("resume=cut")
    assert code == 0
    assert out.startswith("finished already: test accuracy ")


@pytest.mark.slow
@pytest.mark.parametrize("program", ["resnet-train", "python -m resnet_train.train"])
def test_ctrl_c_leaves_no_traceback_from_the_start(shell: Shell, program: str) -> None:
    """From the moment that Python runs our code, which is not before it has started itself."""
    command = (sys.executable, *program.split()[1:]) if program.startswith("python") else shell.program(program)
    for tenths in range(1, 16, 4):
        words = (*command, *TINY, *LONG, f"hydra.run.dir=run-{tenths}")
        started = subprocess.Popen(words, cwd=shell.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(tenths / 10)
        started.send_signal(signal.SIGINT)
        _, err = started.communicate(timeout=60)
        assert started.returncode in (-signal.SIGINT, 130), "a shell reports both as 130"
        assert err in ("", "interrupted\n"), tenths


@pytest.mark.slow
def test_a_terminal_that_is_closed(shell: Shell) -> None:
    """It hangs up, and nothing can be written to it any more."""
    command = (*shell.program("resnet-train"), *TINY, *LONG, "hydra.run.dir=run")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(shell.folder)
        os.execv(command[0], command)
    while not (shell.folder / "run/checkpoints/step-00000050.pt").exists():
        if select.select([terminal], [], [], 0.01)[0]:
            os.read(terminal, 65536)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129
    found = read_summary(shell.folder / "run")
    assert found is not None
    assert found.status == "interrupted"
    assert read_checkpoint(shell.folder / "run/checkpoints/last.pt")["state"]["step"] == found.steps


@pytest.mark.slow
def test_nohup_keeps_a_run_from_hanging_up(shell: Shell) -> None:
    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    overrides = (*TINY, "epochs=null", "steps=400", "checkpoint.every=20steps", "hydra.run.dir=run")
    started = shell.start(*overrides, preexec_fn=nohup)
    shell.wait_for("run/checkpoints/step-00000040.pt", started)
    started.send_signal(signal.SIGHUP)
    assert (started.communicate(timeout=60)[1], started.returncode) == ("", 0)


@pytest.mark.slow
def test_a_limit_of_cpu_time(shell: Shell) -> None:
    """The system sends SIGXCPU, and again each second."""
    started = shell.start(*TINY, *LONG, "steps=1000000", "log_every=500", "hydra.run.dir=run")
    shell.wait_for("run/checkpoints/step-00000050.pt", started)
    resource.prlimit(started.pid, resource.RLIMIT_CPU, (1, 120))
    out, err = started.communicate(timeout=120)
    assert (started.returncode, err) == (152, "")
    assert "everything is saved. Continue with: " in out


@pytest.mark.slow
def test_resume_takes_up_the_overrides_then_those_given(shell: Shell) -> None:
    assert shell.call(*TINY, "epochs=1", "hydra.run.dir=run")[0] == 0
    code, out, err = shell.call("resume=run", "epochs=2")
    assert (code, err) == (0, "")
    assert "changed for the rest of this run: epochs: saved 1, requested 2\n" in out
    assert "resnet8" in out
    code, _, err = shell.call("resume=run", "batch_size=16", "optim.lr=0.2")
    assert (code, err) == (
        2,
        "key         saved  requested  allowed\n"
        "batch_size  32     16         no\n"
        "optim.lr    0.1    0.2        no\n"
        f"resnet-train: resume: this would be another run than the one in {shell.folder}/run: batch_size: saved 32, "
        "requested 16; optim.lr: saved 0.1, requested 0.2. Leave it as it was, or start a new run\n",
    )
    for path in (shell.folder / "run" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    code, _, err = shell.call("resume=run", "epochs=3")
    assert code == 2
    assert "no whole checkpoint in" in err.splitlines()[-1]
    shutil.rmtree(shell.folder / "run" / "checkpoints")
    assert shell.call("resume=run", "epochs=3") == (
        2,
        "",
        "resnet-train: resume: expected a checkpoint in run/checkpoints, found none; restore one from a backup, or "
        "begin again in the same place with hydra.run.dir=run\n",
    )


@pytest.mark.slow
def test_latest_is_the_newest_unfinished_run(shell: Shell) -> None:
    assert shell.call(*TINY, "epochs=1")[0] == 0
    started = shell.start(*TINY, *LONG, "hydra.run.dir=outputs/a/b")
    shell.wait_for("outputs/a/b/checkpoints/step-00000050.pt", started)
    assert shell.call("resume=latest")[0] == 2, "one that runs is passed over"
    started.send_signal(signal.SIGINT)
    started.communicate(timeout=60)
    found = read_summary(shell.folder / "outputs/a/b")
    assert found is not None
    code, out, err = shell.call("resume=latest", f"steps={found.steps + 20}", "log_every=500")
    assert (code, err) == (0, "")
    assert f"directory  {shell.folder}/outputs/a/b\n" in out
    assert shell.call("resume=latest")[0] == 2


@pytest.mark.slow
def test_a_failed_run_exits_with_one_line(shell: Shell) -> None:
    code, _, err = shell.call(*TINY, "epochs=3", "optim.lr=1e30", "hydra.run.dir=run")
    assert code == 1
    assert re.fullmatch(r"resnet-train: the (loss|gradient's norm) is (nan|inf) at step \d+: training has .+\n", err)


@pytest.mark.slow
def test_two_runs_in_one_second_get_two_directories(shell: Shell) -> None:
    started = [shell.start(*TINY, "epochs=1", f"seed={seed}") for seed in range(3)]
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0]
    for process in started:
        process.communicate()
    assert len({path.parent for path in (shell.folder / "outputs").rglob("summary.json")}) == 3


@pytest.mark.slow
def test_progress_bar_on_a_terminal(shell: Shell) -> None:
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    started = shell.start(*TINY, "epochs=null", "steps=300", stderr=child)
    os.close(child)
    shown = b""
    while True:
        try:
            piece = os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    started.communicate(timeout=60)
    os.close(parent)
    assert started.returncode == 0
    assert re.search(rb"\d+% .+ \d+/300, \d\d:\d\d left, loss \d\.\d+, \d+\.\d %, lr 0\.\S+, [\d,]+ images/s", shown)


@pytest.mark.slow
def test_a_second_process_is_refused_by_name(shell: Shell) -> None:
    words = (*TINY, "epochs=null", "steps=4000", "checkpoint.every=50steps", "hydra.run.dir=run")
    first = shell.start(*words, stdout=subprocess.DEVNULL, stderr=None)
    try:
        shell.wait_for("run/checkpoints/step-00000050.pt", first)
        for again in (words, ("resume=run",)):
            code, _, err = shell.call(*again)
            assert code == 2
            assert err == (
                f"resnet-train: the run directory {shell.folder}/run is in use by process {first.pid} on "
                f"{os.uname().nodename}; wait for it, stop it, or choose another directory with hydra.run.dir=FOLDER\n"
            )
    finally:
        first.kill()
        first.wait()
    # It is gone, without having given its lock back: that is taken over.
    done = int(sorted((shell.folder / "run" / "checkpoints").glob("step-*.pt"))[-1].stem.partition("-")[2])
    code, out, err = shell.call("resume=run", f"steps={done + 20}")
    assert (code, err) == (0, "")
    assert "resuming from" in out


@pytest.mark.slow
def test_a_change_that_is_refused_is_shown_as_a_table(shell: Shell) -> None:
    assert shell.call(*TINY, "epochs=1", "hydra.run.dir=run")[0] == 0
    code, _, err = shell.call("resume=run", "optim.lr=0.2", "epochs=2", "seed=3")
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
def test_forced_changes_are_recorded_and_forced_once(shell: Shell) -> None:
    assert shell.call(*TINY, "epochs=1", "hydra.run.dir=run")[0] == 0
    code, out, err = shell.call("resume=run", "optim.lr=0.2", "epochs=2", "resume_force=true")
    assert (code, err) == (0, "")
    assert "another run from here on, by resume_force: optim.lr: saved 0.1, requested 0.2" in out
    assert "the learning rate continues at " in out
    assert "resume_force" not in (shell.folder / "run/invocation.json").read_text()
    code, _, err = shell.call("resume=run", "optim.lr=0.3")
    assert code == 2
    assert "optim.lr: saved 0.2, requested 0.3" in err
    assert shell.call("resume=run", "epochs=3")[0] == 0
    found = read_summary(shell.folder / "run")
    assert found is not None
    assert found.forced == ["after 7 steps: optim.lr: saved 0.1, requested 0.2"]


@pytest.mark.slow
def test_a_run_outlives_the_run_that_it_began_with(shell: Shell) -> None:
    assert shell.call(*TINY, "epochs=1", "hydra.run.dir=first")[0] == 0
    assert shell.call(*TINY, "epochs=1", "init_from=first", "hydra.run.dir=second")[0] == 0
    shutil.rmtree(shell.folder / "first")
    code, out, err = shell.call("resume=second", "epochs=2")
    assert (code, err) == (0, "")
    assert "epoch 2/2" in out


@pytest.mark.slow
def test_a_run_that_was_killed_before_it_began_begins(shell: Shell) -> None:
    (shell.folder / "run").mkdir()
    (shell.folder / "run" / ".lock").touch()
    (shell.folder / "run" / "train.log").write_text("2026-11-26 01:02:03,004 INFO loading PyTorch\n")
    code, _, err = shell.call(*TINY, "epochs=1", "hydra.run.dir=run")
    assert (code, err) == (0, "")


@pytest.mark.slow
def test_two_that_start_at_once_share_nothing(shell: Shell) -> None:
    started = [shell.start(*TINY, "epochs=2", "hydra.run.dir=run") for _ in range(2)]
    ended = [process.communicate(timeout=120) and process.returncode for process in started]
    assert sorted(ended) in ([0, 2], [0, 0])  # the second came while the first ran, or when it had finished
    found = read_summary(shell.folder / "run")
    assert found is not None
    assert found.status == "finished"
