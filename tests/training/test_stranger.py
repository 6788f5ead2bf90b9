"""A run directory that somebody sent: it is continued or refused, and nothing outside it is touched."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_train.cli.main import main
from resnet_train.config.run import Config
from resnet_train.runs.checkpoint import read_checkpoint, write_checkpoint
from resnet_train.runs.summary import read_summary
from resnet_train.train import run
from tests.conftest import TINY

CutBack = Callable[..., Path]


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of eight steps."""
    directory = tmp_path_factory.mktemp("sent") / "run"
    arguments = [*TINY, "epochs=null", "steps=8", "checkpoint.every=4steps", "kernels=plain"]
    assert main([*arguments, f"hydra.run.dir={directory}"], run) == 0
    return directory


def resume(directory: Path, *overrides: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([f"resume={directory}", *overrides], run)
    return code, out.getvalue(), err.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize(
    "name",
    ["config.yaml", "invocation.json", "summary.json", "metrics.csv", ".lock", "train.log", "checkpoints/last.pt"],
)
def test_links_lead_nowhere(sent: Path, cut_back: CutBack, tmp_path: Path, name: str, absolute: bool) -> None:
    directory = cut_back(sent, tmp_path / "run", step=4)
    precious = tmp_path / "precious"
    precious.write_text("mine\n" * 100)
    path = directory / name
    path.unlink(missing_ok=True)
    path.symlink_to(precious if absolute else Path(*[".."] * (name.count("/") + 1), "precious"))
    code, _, err = resume(directory)
    assert precious.read_text() == "mine\n" * 100
    if name in (".lock", "train.log"):
        assert (code, err) == (
            2,
            f"resnet-train: cannot write to the run directory {directory}: it is a link, which is not followed; remove "
            f"it; choose another with hydra.run.dir=FOLDER, or make it writable\n",
        )
    else:
        assert (code, err) == (0, "")
        assert not path.is_symlink()
        assert (directory / "metrics.csv").read_bytes() == (sent / "metrics.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoints", "profile"])
def test_folders_that_are_links_are_not_written_to(sent: Path, cut_back: CutBack, tmp_path: Path, name: str) -> None:
    directory = cut_back(sent, tmp_path / "run", step=4)
    elsewhere = tmp_path / "elsewhere"
    if name == "checkpoints":
        (directory / name).rename(elsewhere)
    else:
        elsewhere.mkdir()
    (directory / name).symlink_to(elsewhere)
    before = {path: path.read_bytes() for path in elsewhere.iterdir()}
    code, out, err = resume(directory, "steps=30", "profile=true")
    assert before == {path: path.read_bytes() for path in elsewhere.iterdir()}
    if name == "checkpoints":
        assert code == 2
        assert err.startswith(
            f"resnet-train: expected a folder, got the link {directory}/checkpoints: a run writes and "
        )
    else:
        assert code == 0
        assert f"no trace is written: {directory}/profile is a link, which is not followed; remove it" in out


@pytest.mark.slow
def test_what_would_control_a_terminal_is_escaped(sent: Path, cut_back: CutBack, tmp_path: Path) -> None:
    directory = cut_back(sent, tmp_path / "run", step=4)
    path = directory / "checkpoints/step-00000004.pt"
    content = read_checkpoint(path)
    content |= {
        "kernels": "\x1b[2J",
        "forced": ["\x1b]0;title\x07"],
        "invocation": {"flags": [], "overrides": ["\x9b1m"]},
    }
    write_checkpoint(path, content)
    code, out, err = resume(directory)
    assert (code, err) == (0, "")
    assert out.replace("\n", "").isprintable()
    assert r"kernels (\x1b[2J before, " in out
    content["precision"] = "\x1b[1m"
    for newest in (directory / "checkpoints").glob("*.pt"):
        newest.unlink()
    write_checkpoint(path, content)
    code, _, err = resume(directory)
    assert code == 2
    assert "trained in \\x1b[1m, this" in err
    assert err.rstrip("\n").isprintable()


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"result_rule": "\x1b[2J"},
        {"status": "finished\x1b"},
        {"steps": "8"},
        {"result": 10**400},
        {"last": {}},
        {"last": {"test": {"loss": "a", "accuracy": 1, "error": 0, "correct": 1, "count": 1, "step": 8}}},
        {"images": {"train": "200"}},
        {"directory": "/\x1b[2J"},
        {"forced": [1]},
    ],
    ids=str,
)
def test_a_summary_is_not_believed(sent: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    directory = shutil.copytree(sent, tmp_path / "run")
    path = directory / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    code, out, err = resume(directory)
    assert (code, err) == (0, "")
    assert out.replace("\n", "").isprintable()
    found = read_summary(directory)
    assert found is not None
    assert found.steps == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"config": None},
        {"config": {}},
        {"config": {1: 2}},
        {"state": None},
        {"state": {}},
        {"state": {"step": "4"}},
        {"clock": None},
        {"clock": {"train_seconds": "x"}},
        {"history": {"tags": 1}},
        {"history": {"tags": ["lr"], "steps": torch.zeros(2), "times": [], "measured": [], "values": []}},
        {"forced": 7},
        {"precision": None},
        {"invocation": [1]},
    ],
    ids=str,
)
def test_a_whole_checkpoint_with_other_things_in_it(
    sent: Path, cut_back: CutBack, tmp_path: Path, change: dict[str, Any]
) -> None:
    directory = cut_back(sent, tmp_path / "run", step=0)
    path = directory / "checkpoints/step-00000000.pt"
    path.parent.mkdir(exist_ok=True)
    content = read_checkpoint(sent / "checkpoints/step-00000004.pt")
    write_checkpoint(directory / "checkpoints/step-00000004.pt", content | change)
    code, _, err = resume(directory)
    assert code in (0, 2)
    if code:
        assert len([line for line in err.splitlines() if line.startswith("resnet-train: ")]) == 1, err
        assert "not foreseen" not in err and "Traceback" not in err
    else:
        assert err == ""
        assert set(change) & {"forced", "invocation", "config"}


@pytest.mark.slow
@pytest.mark.parametrize("group", [None, "model", "dataset"])
@pytest.mark.parametrize("value", ["\x1b[2J\n", {"\x1b": 1}, ["\x9b"]], ids=str)
def test_what_a_saved_configuration_holds_is_quoted_escaped(
    sent: Path, cut_back: CutBack, tmp_path: Path, group: str | None, value: Any
) -> None:
    directory = cut_back(sent, tmp_path / "run", step=4)
    path = directory / "checkpoints/step-00000004.pt"
    content = read_checkpoint(path)
    config = content["config"] if group is None else content["config"][group]
    key = {None: "name", "model": "shortcut", "dataset": "std"}[group]
    for changed in ({key: value}, {"new\x1b[2J": value}):
        before = dict(config)
        config |= changed
        write_checkpoint(path, content)
        code, _, err = resume(directory)
        assert code == 2
        assert err.count("\n") == 1
        assert err.rstrip("\n").isprintable()
        config.clear()
        config |= before


@pytest.mark.slow
def test_a_checkpoint_of_the_same_shape_is_taken(sent: Path, tmp_path: Path, tiny: Callable[..., Config]) -> None:
    """The test above changes what matters: unchanged, the run continues."""
    directory = shutil.copytree(sent, tmp_path / "run")
    assert (
        run(tiny("epochs=null", "steps=9", "checkpoint.every=4steps", "kernels=plain"), directory=directory).steps == 9
    )
