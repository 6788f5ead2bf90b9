"""The command line: words in, one line out; and the real thing, as processes."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from importlib import metadata
from pathlib import Path

import pytest

from resnet_train import checkpoint, cli, summary
from resnet_train.config.store import options_of
from tests.conftest import TINY

PROGRAM = str(Path(sys.executable).with_name("resnet-train"))
LONG = ("epochs=null", "steps=4000", "checkpoint.every=50steps", "checkpoint.keep=3", "eval_every=500steps")


def call(*words: str, cwd: Path, program: tuple[str, ...] = (PROGRAM,), **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        (*program, *words),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout, done.stderr


# ------------------------------------------------------------------------------------------------------------ bad input

MODELS = (
    "plain18, plain20, plain32, plain34, plain44, plain56, plain110, resnet18, resnet20, resnet32, resnet34, resnet44, "
    "resnet50, resnet56, resnet101, resnet110, resnet152, resnet1202"
)
MESSAGES = [
    ("model=resnet21", f"model: expected one of {MODELS}, got 'resnet21'; did you mean model=resnet32?"),
    (
        "dataset=cifar1O",
        "dataset: expected one of cifar10, cifar100, imagefolder, synthetic, got 'cifar1O'; did you mean "
        "dataset=cifar10?",
    ),
    ("optm.lr=0.1", "optm: no such key; did you mean optim?"),
    ("optim.lt=0.1", "optim.lt: no such key; did you mean optim.lr?"),
    ("+batchsize=3", "batchsize: no such key; did you mean batch_size?"),
    ("++dataset.augment.flp=true", "dataset.augment.flp: no such key; did you mean dataset.augment.flip?"),
    (
        "optim=adamw optim.momentum=0.9",
        "optim.momentum: optim=adamw has no such key, optim=sgd has; remove it or change optim",
    ),
    (
        "schedule.milestones=[1]",
        "schedule.milestones: schedule=cosine has no such key, schedule=multistep has; remove it or change schedule",
    ),
    (
        "model.stem=imagenet",
        "model.stem: only resnet18 to resnet152 and their plain twins have it; remove it or change model",
    ),
    ("optim.lr=abc", "optim.lr: expected a number, got 'abc'"),
    ("optim.lr=null", "optim.lr: expected a value, got null"),
    ("batch_size=1.5", "batch_size: expected a whole number, got '1.5'"),
    ("deterministic=maybe", "deterministic: expected true or false, got 'maybe'"),
    ("checkpoint=3", "checkpoint: expected a group of keys, got '3'; set checkpoint.KEY=VALUE"),
    ("~optim.lr", "optim.lr: every run needs a value here, it cannot be removed; set optim.lr=VALUE"),
    ("~optim", "optim: expected a value, got none; give it as optim=VALUE"),
    ("optim.lr=${nowhere}", "optim.lr: Interpolation key 'nowhere' not found; quote a $ that is meant as such"),
    ("optim.lr=-1", "optim.lr: expected a number > 0, got -1.0"),
    ("seed=1,2", "seed: expected one value, got 1,2; to sweep over them put -m in front"),
    (
        "seed=[1",
        "cannot read the word 'seed=[1': expected KEY=VALUE; values that hold any of {}[](),:=$ or spaces need "
        "quotes of their own, as in 'name=\"a b\"'",
    ),
    ("model=null", "cannot make sense of model=null: Config group override must be a string or a list. Got NoneType"),
    ("hydra.foo=1", "hydra.foo: no such key of Hydra's; resnet-train --cfg hydra shows all of them"),
    ("hydra/launcher=nowhere", "hydra/launcher: expected one of basic, got 'nowhere'"),
    ("steps=10", "epochs=200 and steps=10 contradict each other: give one; for 10 steps add epochs=null"),
    (
        "schedule=multistep epochs=50",
        "schedule.milestones: expected all before the end of the run's 19532 steps (epochs=50), got 150 = 58594 steps",
    ),
    (
        "schedule.warmup=300",
        "schedule.warmup: expected at most the run's 78125 steps (epochs=200), got 300 = 117188 "
        "steps; try schedule.warmup=0",
    ),
    ("batch_size=60000", "batch_size: expected at most the 50000 training images, got 60000; try batch_size=50000"),
    (
        "precision=fp16 device=cpu",
        "precision=fp16 needs a CUDA device, got device=cpu; try precision=bf16 or precision=fp32",
    ),
    ("device=gpu", "device: expected auto, cpu, cuda, cuda:N or mps, got 'gpu'"),
    (
        "dataset.root=nowhere dataset.download=false",
        "dataset.root: expected cifar-10-batches-py/ or "
        "cifar-10-python.tar.gz in {here}/nowhere, got neither; add dataset.download=true, or name the folder that "
        "holds "
        "cifar-10-batches-py/ or cifar-10-python.tar.gz with dataset.root=FOLDER or the environment variable "
        "RESNET_TRAIN_DATA, or take dataset=synthetic, which needs no file",
    ),
    ("resume=nowhere", "resume: expected a run directory, got 'nowhere', which does not exist"),
    ("resume=", "resume: expected a run directory or latest, got nothing; resume=null starts a new run"),
    (
        "resume=.",
        "resume: expected a run directory, got '.', which holds no invocation.json; run directories look like "
        "outputs/2026-01-31/12-00-00-resnet20",
    ),
    ("resume=latest", "resume=latest: expected an unfinished run under 'outputs', found none"),
    ("-m resume=latest", "resume: expected one run, got a sweep (-m); resume its jobs one by one, without -m"),
    (f"seed=1{'0' * 400}", f"seed: expected a number >= 0 and <= 1.79769e+308, got 1{'0' * 400}"),
    ("-m seed=1,2 epochs=0", "epochs: expected a number >= 1, got 0"),
    ("-m model=resnet20,resnet21", f"model: expected one of {MODELS}, got 'resnet21'; did you mean model=resnet32?"),
    ("--foo", "unrecognized arguments: --foo; resnet-train --help lists what there is"),
    ("--config-dir nowhere", "--config-dir: expected a folder of YAML files, got 'nowhere', which is none"),
    (
        "--config-name nowhere",
        "no config named 'nowhere': expected nowhere.yaml in conf/ or in the folder given with --config-dir",
    ),
]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--config-name", "\r"], r"no config named '\r': expected \r.yaml in conf/"),
        (["--config-name", "a\u2028b/\x1b[31m"], r"a\u2028b: expected one of "),
        (["seed=\x1b[31m"], r"cannot read the word 'seed=\x1b[31m': "),
    ],
    ids=["return", "separator", "escape"],
)
def test_characters_that_move_the_cursor_are_written_out(
    words: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"resnet-train: {shown}")
    assert len(printed.splitlines()) == 1 and printed[:-1].isprintable()


@pytest.mark.parametrize(("words", "message"), MESSAGES, ids=[words for words, _ in MESSAGES])
def test_bad_input_is_answered_in_one_line(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    assert cli.main(words.split(" ")) == 2
    printed = capsys.readouterr()
    assert printed.err == f"resnet-train: {message.replace('{here}', str(tmp_path))}\n"
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []  # nothing was written


@pytest.mark.slow
def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    code, out, err = call(*TINY, "device=cuda:99", cwd=tmp_path)
    assert code == 2
    assert re.fullmatch(
        r"resnet-train: device: expected one of this machine's \d+ CUDA devices, got cuda:99; try device=\S+\n", err
    )
    assert list(tmp_path.iterdir()) == [], out


@pytest.mark.slow
def test_kernels_without_a_compiler(tmp_path: Path) -> None:
    missing = "no C++ compiler found (looked for $CXX, c++, g++, clang++)"
    code, _, err = call(*TINY, "kernels=fused", cwd=tmp_path, PATH=str(tmp_path), CXX="")
    assert code == 2
    assert err == (
        f"resnet-train: kernels: expected to find what kernels=fused needs, but {missing}; try kernels=auto\n"
    )
    assert list(tmp_path.iterdir()) == []
    code, out, _ = call(*TINY, "epochs=null", "steps=1", cwd=tmp_path, PATH=str(tmp_path), CXX="")
    assert code == 0
    assert f"kernels    plain: {missing}\n" in out


def test_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = call(*TINY, "hydra.run.dir=file/run", cwd=tmp_path)
    assert code == 2
    assert err == (
        f"resnet-train: cannot write to the run directory {tmp_path}/file/run: Not a directory; choose another with "
        "hydra.run.dir=FOLDER, or make it writable\n"
    )


def test_full_errors_show_the_traceback(tmp_path: Path) -> None:
    code, _, err = call("optim.lr=abc", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert code == 2
    assert "Traceback (most recent call last)" in err
    assert err.endswith("resnet-train: optim.lr: expected a number, got 'abc'\n")


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"], ["optim.lr=abc"], ["dataset.root=x", "epochs=0"]])
def test_torch_is_not_imported_for_an_answer(words: list[str], tmp_path: Path) -> None:
    probe = "import sys; from resnet_train import train, cli; cli.main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    code, _, _ = call(*words, cwd=tmp_path, program=(sys.executable, "-c", probe))
    assert code == 0


def test_help_and_configuration(tmp_path: Path) -> None:
    code, out, err = call("--help", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "experiment=quick" in out
    assert "batch_size: 128  # images an update" in out
    assert MODELS in out
    code, out, err = call("--cfg", "job", "optim.lr=0.3", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "  lr: 0.3\n" in out
    assert list(tmp_path.iterdir()) == []


def test_version(tmp_path: Path) -> None:
    assert call("--version", cwd=tmp_path) == (0, f"resnet-train {metadata.version('resnet-train')}\n", "")


@pytest.mark.slow
def test_a_configuration_that_would_be_refused_is_not_shown(tmp_path: Path) -> None:
    code, out, err = call("--cfg", "job", "epochs=0", cwd=tmp_path)
    assert (code, out) == (2, "")
    assert err == call("epochs=0", cwd=tmp_path)[2]
    code, out, err = call("--cfg", "job", "-m", "seed=0,1", cwd=tmp_path)
    assert (code, out) == (2, "")
    assert err == (
        "resnet-train: --cfg shows the configuration of one run; expected no -m and no lists of values beside it\n"
    )


@pytest.mark.slow
def test_the_home_folder_can_be_written_as_a_tilde(tmp_path: Path) -> None:
    home = tmp_path / "somebody's home"
    home.mkdir()
    code, out, _ = call("--cfg", "job", "dataset.root=~/pictures", cwd=tmp_path, HOME=str(home))
    assert code == 0
    assert f" root: {home}/pictures " in " ".join(out.split())  # a long one is folded
    code, _, err = call("dataset.root=~/pictures", "dataset.download=false", cwd=tmp_path, HOME=str(home))
    assert code == 2
    assert f"{home}/pictures" in err


@pytest.mark.slow
def test_yaml_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\noptim:\n  lr: 0.7\n")
    words = ("--config-dir", "mine", "experiment=own")
    code, out, _ = call(*words, "--cfg", "job", cwd=tmp_path)
    assert code == 0
    assert "  lr: 0.7\n" in out
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\noptim:\n  lr: quick\n")
    code, _, err = call(*words, cwd=tmp_path)
    assert (code, err) == (2, "resnet-train: optim.lr: expected a number, got 'quick'\n")


@pytest.mark.parametrize("group", ["model", "dataset", "optim", "schedule"])
def test_a_group_that_is_null(group: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(f"# @package _global_\n{group}: null\n")
    assert cli.main(["--config-dir", str(tmp_path), "experiment=own"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"resnet-train: {group}: expected one of ")
    assert err.endswith(", got null\n")
    assert set(options_of(group)) <= set(re.findall(r"\w+", err))
    (tmp_path / "experiment" / "own.yaml").write_text(f"# @package _global_\n{group}: ${{seed}}\n")
    assert cli.main(["--config-dir", str(tmp_path), "experiment=own"]) == 2
    err = capsys.readouterr().err
    assert err in (
        "resnet-train: expected a group of keys, got '${seed}' in its place; name an option, as in optim=sgd\n",
        f"resnet-train: {group}: expected a group of keys, got '${{seed}}'; set {group}.KEY=VALUE\n",
    )


# ------------------------------------------------------------------------------------------------------------ processes


def only_run(folder: Path) -> Path:
    (found,) = (path.parent for path in folder.rglob("invocation.json"))
    return found


@pytest.mark.parametrize(
    "program",
    [(PROGRAM,), pytest.param((sys.executable, "-m", "resnet_train.train"), marks=pytest.mark.slow)],
    ids=["console script", "python -m"],
)
def test_a_run(program: tuple[str, ...], tmp_path: Path) -> None:
    code, out, err = call(*TINY, "epochs=1", "name=first", cwd=tmp_path, program=program)
    assert (code, err) == (0, "")  # no terminal: no progress bar
    directory = only_run(tmp_path / "outputs")
    assert re.fullmatch(r"outputs/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-first", str(directory.relative_to(tmp_path)))
    found = summary.read(directory)
    assert found is not None
    assert "model      resnet8: 5,006 parameters, 0.2 M multiply-adds an image\n" in out
    assert "data       synthetic: 200 train, 50 test images of 16x16, 10 classes\n" in out
    assert re.search(r"^device     cpu \(.+, \d+ threads?\)\nprecision  fp32: asked for$", out, re.M)
    assert "length     7 updates of 32 images, 1 epochs, seed 0\n" in out
    assert f"directory  {directory}\n" in out
    assert re.search(
        r"^epoch 1/1, update 7, train loss \S+ accuracy \S+ %, test loss \S+ accuracy \S+ %, lr ", out, re.M
    )
    assert found.sentence() in out
    assert f"tensorboard --logdir {directory}\n" in out
    assert f"resnet-train resume={directory}" in out
    assert found.command == " ".join(["resnet-train", *TINY, "epochs=1", "name=first"])


def wait_for(condition: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("signum", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR2, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
    ids=["Ctrl-C", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGKILL"],
)
def test_a_stopped_run_is_resumed_to_the_same_end(signum: signal.Signals, code: int, tmp_path: Path) -> None:
    words = (*TINY, "epochs=null", "steps=400", "checkpoint.every=20steps", "eval_every=100steps", "log_every=10")
    assert call(*words, "hydra.run.dir=straight", cwd=tmp_path)[0] == 0

    started = subprocess.Popen(
        (PROGRAM, *words, "hydra.run.dir=cut"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "cut" / "checkpoints" / "step-00000040.pt", started)
    started.send_signal(signum)
    out, err = started.communicate(timeout=60)
    assert started.returncode == code, err
    if signum != signal.SIGKILL:
        assert err == ""
        assert f"everything is saved. Go on with: resnet-train resume={tmp_path}/cut" in out
        found = summary.read(tmp_path / "cut")
        assert found is not None
        assert found.status == "interrupted"
        assert found.steps < 400

    resume = ("hydra.run.dir=cut", *words) if signum == signal.SIGKILL else ("resume=cut",)
    code, out, err = call(*resume, cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "resuming from" in out
    assert (tmp_path / "straight/metrics.csv").read_bytes() == (tmp_path / "cut/metrics.csv").read_bytes()
    last = [checkpoint.read(tmp_path / name / "checkpoints" / "last.pt") for name in ("straight", "cut")]
    for key, weight in last[0]["state"]["model"].items():
        assert weight.equal(last[1]["state"]["model"][key]), key

    code, out, _ = call("resume=cut", cwd=tmp_path)
    assert code == 0
    assert out.startswith("finished already: test accuracy ")


@pytest.mark.slow
def test_resume_takes_up_the_overrides_then_those_given(tmp_path: Path) -> None:
    assert call(*TINY, "epochs=1", "hydra.run.dir=run", cwd=tmp_path)[0] == 0
    code, out, err = call("resume=run", "epochs=2", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "changed for the rest of this run: epochs: saved 1, requested 2\n" in out
    assert "resnet8" in out
    code, _, err = call("resume=run", "batch_size=16", "optim.lr=0.2", cwd=tmp_path)
    assert (code, err) == (
        2,
        "key         saved  requested  allowed\n"
        "batch_size  32     16         no\n"
        "optim.lr    0.1    0.2        no\n"
        f"resnet-train: resume: this would be another run than the one in {tmp_path}/run: batch_size: saved 32, "
        "requested 16; optim.lr: saved 0.1, requested 0.2. Leave it as it was, or start a new run\n",
    )
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    code, _, err = call("resume=run", "epochs=3", cwd=tmp_path)
    assert code == 2
    assert "no whole checkpoint in" in err.splitlines()[-1]
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert call("resume=run", "epochs=3", cwd=tmp_path) == (
        2,
        "",
        "resnet-train: resume: expected a checkpoint in run/checkpoints, found none; restore one from a backup, or "
        "begin again in the same place with hydra.run.dir=run\n",
    )


@pytest.mark.slow
def test_latest_is_the_newest_unfinished_run(tmp_path: Path) -> None:
    assert call(*TINY, "epochs=1", cwd=tmp_path)[0] == 0
    started = subprocess.Popen(
        (PROGRAM, *TINY, *LONG, "hydra.run.dir=outputs/a/b"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(tmp_path / "outputs/a/b/checkpoints/step-00000050.pt", started)
    started.send_signal(signal.SIGINT)
    started.communicate(timeout=60)
    code, out, err = call("resume=latest", "steps=1500", "log_every=500", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert f"directory  {tmp_path}/outputs/a/b\n" in out
    assert call("resume=latest", cwd=tmp_path)[0] == 2


@pytest.mark.slow
def test_a_failed_run_exits_with_one_line(tmp_path: Path) -> None:
    code, _, err = call(*TINY, "epochs=3", "optim.lr=1e30", "hydra.run.dir=run", cwd=tmp_path)
    assert code == 1
    assert re.fullmatch(r"resnet-train: the (loss|gradient's norm) is (nan|inf) at update \d+: training has .+\n", err)


@pytest.mark.slow
def test_a_sweep(tmp_path: Path) -> None:
    words = (*TINY, "epochs=1", "-m", "optim.lr=0.1,1e30", "seed=0,1", "hydra.sweep.dir=sweep", "log_every=1")
    code, out, err = call(*words, cwd=tmp_path)
    assert code == 1
    table = out[out.index("job ") :].splitlines()
    jobs = [line.split()[0] for line in table[1:5]]
    assert sorted(jobs) == sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert all(re.fullmatch(r"resnet8-[0-9a-f]{8}", job) for job in jobs)
    found = [summary.read(tmp_path / "sweep" / job) for job in jobs]
    assert [job.status for job in found if job] == ["finished", "finished", "failed", "failed"]
    assert found[0].result != found[1].result or found[0].last != found[1].last  # type: ignore[union-attr]
    for job in jobs[2:]:
        assert "Traceback (most recent call last)" in (tmp_path / "sweep" / job / "train.log").read_text()
    assert [("finished" in line, "failed" in line) for line in table[1:5]] == [(True, False)] * 2 + [(False, True)] * 2
    assert f"{100 * found[0].result:.2f} %" in table[1]  # type: ignore[union-attr, operator]
    assert "training has diverged" in err.splitlines()[-1]
    # one of its jobs is a run like any other
    code, out, _ = call(f"resume=sweep/{jobs[0]}", "epochs=2", cwd=tmp_path)
    assert code == 0
    assert "epoch 2/2" in out


@pytest.mark.slow
def test_two_runs_in_one_second_get_two_directories(tmp_path: Path) -> None:
    started = [
        subprocess.Popen(
            (PROGRAM, *TINY, "epochs=1", f"seed={seed}"),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for seed in range(3)
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0]
    for process in started:
        process.communicate()
    assert len({path.parent for path in (tmp_path / "outputs").rglob("summary.json")}) == 3


@pytest.mark.slow
def test_progress_bar_on_a_terminal(tmp_path: Path) -> None:
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    started = subprocess.Popen(
        (PROGRAM, *TINY, "epochs=null", "steps=300"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=child
    )
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
    assert re.search(
        rb"\d+% .+ \d+/300 updates, \d\d:\d\d left, loss \d\.\d+, accuracy \d+\.\d %, lr 0\.\S+, [\d,]+ images/s", shown
    )
