"""As on Windows, as far as that can be had elsewhere: without the modules, signals and functions that it lacks.

``tests/windows/sitecustomize.py`` takes them away from processes, and puts a stand-in for ``msvcrt`` in their place.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_train.runs.summary import read_summary
from tests.conftest import TINY, Shell

ROOT = Path(__file__).parents[1]
LACKING = os.pathsep.join([str(ROOT / "tests" / "windows"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
PROGRAM = (sys.executable, "-m", "resnet_train")
# Tests that need what is not there themselves: signals, limits of a process, terminals; and what no system changes and
# takes long: pages in a browser, networks of other projects.
POSIX_MODULES = (
    *("tests/cli/test_launchers.py", "tests/cli/test_main.py", "tests/runs/test_checkpoint.py"),
    *("tests/runs/test_interrupt.py", "tests/runs/test_lock.py", "tests/training/test_session.py"),
    *("tests/commands/report/test_page.py", "tests/runs/test_other_projects.py", "tests/runs/test_tensorboard.py"),
)
POSIX_TESTS = (
    "tests/runs/test_environment.py::test_the_machine",  # the peak of the memory is not known without resource
    "tests/training/test_loop.py::test_a_run_leaves_everything_behind",  # the same
    "tests/runs/test_checkpoint_file.py::test_a_run_that_holds_one_is_refused_before_memory_is_taken",  # the same
)


def call(shell: Shell, *arguments: str, program: tuple[str, ...] = PROGRAM) -> tuple[int, str, str]:
    return shell.call(*arguments, program=program, PYTHONPATH=LACKING)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "answer"),
    [
        (["--help"], 0, "resnet-train trains a residual network"),
        (["--cfg", "job"], 0, "name: ${model.name}\n"),
        (["optim.lr=quick"], 2, "resnet-train: optim.lr: expected a number, got 'quick'\n"),
    ],
)
def test_questions_are_answered(arguments: list[str], code: int, answer: str, shell: Shell) -> None:
    found, out, err = call(shell, *arguments)
    assert found == code, err
    assert (out or err).startswith(answer)
    assert not err if code == 0 else not out


@pytest.mark.slow
def test_every_module_can_be_imported(shell: Shell) -> None:
    """All but Triton's, which is for Linux."""
    package = ROOT / "resnet_train"
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in package.rglob("*.py")
        if "triton" not in path.name
    ]
    probe = "import importlib, sys\nfor name in sys.argv[1:]:\n  importlib.import_module(name)"
    code, _, err = call(shell, *names, program=(sys.executable, "-c", probe))
    assert code == 0, err


@pytest.mark.slow
def test_runs_and_sweeps(shell: Shell) -> None:
    code, out, err = call(shell, *TINY, "epochs=1", "hydra.run.dir=run")
    assert (code, err) == (0, "")
    assert "has no locks" not in out
    found = read_summary(shell.folder / "run")
    assert found is not None
    assert found.peak_memory_bytes == 0, "unknown"
    code, out, err = call(shell, "resume=run", "epochs=2")
    assert (code, err) == (0, "")
    assert "resuming from" in out
    code, out, err = call(shell, *TINY, "epochs=1", "-m", "seed=0,1", "sweep=two")
    assert (code, err) == (0, "")
    assert out.count("  finished  ") == 2


@pytest.mark.slow
def test_a_killed_run_is_resumed_and_a_running_one_left_alone(shell: Shell) -> None:
    arguments = (*TINY, "epochs=null", "steps=100000", "checkpoint.every=50steps", "hydra.run.dir=run")
    first = shell.start(*arguments, program=PROGRAM, env=shell.environment(PYTHONPATH=LACKING))
    try:
        shell.wait_for("run/checkpoints/step-00000050.pt", first)
        code, _, err = call(shell, "resume=run")
        assert code == 2
        assert f"is in use by process {first.pid} on " in err
    finally:
        first.kill()
        first.communicate()
    done = int(max((shell.folder / "run" / "checkpoints").glob("step-*.pt")).stem.partition("-")[2])
    code, out, err = call(shell, "resume=run", f"steps={done + 20}")
    assert (code, err) == (0, "")
    assert "resuming from" in out


@pytest.mark.thorough
def test_the_fast_tests_of_runs_data_and_the_command_line() -> None:
    rooms = ("tests/cli", "tests/commands", "tests/data", "tests/runs", "tests/training/test_loop.py")
    left_out = [f"--ignore={path}" for path in POSIX_MODULES] + [f"--deselect={test}" for test in POSIX_TESTS]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "not slow and not thorough",
            *rooms,
            *left_out,
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": LACKING},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
