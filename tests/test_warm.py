"""A fork of a process that has imported the libraries is to a program what a new process is."""

from __future__ import annotations

import os

import pytest

from resnet_train.runs.summary import read_summary
from tests.conftest import TINY, Shell
from tests.warm import WARM

FRESH = ("env", "resnet-train")


def test_a_fork_answers_as_a_new_process_does(shell: Shell) -> None:
    assert WARM.serves(shell.environment())
    for arguments in (["--help"], ["--cfg", "job"], ["optim.lr=quick"], ["--version"]):
        assert shell.call(*arguments) == shell.call(*arguments, program=FRESH)
    code = "import os, sys; print(sys.argv, os.getcwd(), sys.path[0], __name__); sys.exit('the end')"
    words = ("-c", code, "one", "-2")
    assert shell.call(*words, program="python") == shell.call(*words, program=("env", "python"))
    code, _, err = shell.call("--cfg", "job", HYDRA_FULL_ERROR="1", cwd=shell.folder / "..")
    assert (code, err) == (0, "")


@pytest.mark.slow
def test_a_fork_trains_as_a_new_process_does(shell: Shell) -> None:
    summaries = []
    for name, program in {"fork": "resnet-train", "fresh": FRESH}.items():
        code, _, err = shell.call(*TINY, "epochs=1", f"hydra.run.dir={name}", program=program)
        assert (code, err) == (0, "")
        summaries.append(read_summary(shell.folder / name))
    one, other = summaries
    assert one is not None and other is not None
    assert (one.result, one.last, one.best, one.versions) == (other.result, other.last, other.best, other.versions)
    tables = [(shell.folder / name / "metrics.csv").read_bytes() for name in ("fork", "fresh")]
    assert tables[0] == tables[1]


def test_variables_that_are_read_early_make_a_new_process(shell: Shell) -> None:
    assert not WARM.serves(shell.environment(PYTHONIOENCODING="ascii"))
    assert not WARM.serves({name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"})
