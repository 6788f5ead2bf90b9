"""Nobody has to listen: runs end well whatever becomes of their output."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest

from resnet_train.cli.streams import BestEffort
from resnet_train.runs.summary import read_summary
from tests.conftest import TINY, Shell


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, _text: str) -> int:
        """Fail."""
        raise OSError(28, "No space left on device")


def test_what_cannot_be_written_is_dropped() -> None:
    stream = BestEffort(Full())
    assert stream.write("text") == 4
    stream.flush()
    assert stream.write("more") == 4
    assert not stream.isatty()
    good = io.StringIO()
    BestEffort(good).write("text")
    assert good.getvalue() == "text"


def test_the_encoding_is_that_of_the_stream() -> None:
    for encoding in ("utf-8", "ascii"):
        assert BestEffort(io.TextIOWrapper(io.BytesIO(), encoding=encoding)).encoding == encoding


@pytest.mark.slow
@pytest.mark.parametrize(
    "redirection",
    [
        *("| head -1", ">/dev/full", ">&- 2>&-", "PYTHONIOENCODING=ascii"),
        *(pytest.param(one, marks=pytest.mark.thorough) for one in ("2>/dev/full", ">&-", "2>&-")),
    ],
)
def test_a_run_finishes_without_a_listener(redirection: str, shell: Shell) -> None:
    program = shell.program("resnet-train")[0]
    name = shell.folder / "\u00e9\u4e2d"
    before, after = (redirection, "") if "=" in redirection else ("", redirection)
    command = f"{before} '{program}' {' '.join(TINY)} epochs=1 hydra.run.dir='{name}' {after}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=shell.folder, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    found = read_summary(name)
    assert found is not None
    assert found.status == "finished"


@pytest.mark.slow
def test_jobs_of_a_sweep_do_not_fail_for_their_output(shell: Shell) -> None:
    program = shell.program("resnet-train")[0]
    command = f"'{program}' {' '.join(TINY)} epochs=1 -m seed=0,1 sweep=quiet | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=shell.folder, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    jobs = [path for path in (shell.folder / "outputs/sweeps/quiet").iterdir() if path.is_dir()]
    assert [found.status for job in jobs if (found := read_summary(Path(job)))] == ["finished", "finished"]
