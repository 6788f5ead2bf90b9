"""Arguments that nobody foresaw: each command line either composes to a configuration or is refused in one line.

``RESNET_TRAIN_EXAMPLES=2000`` sets how many are tried of each kind; by default a few.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnet_train.cli.explain import known_keys
from resnet_train.cli.main import main
from resnet_train.cli.overrides import merge_overrides
from resnet_train.config.run import Config
from resnet_train.config.store import options_of, register_schema
from resnet_train.runs.checkpoint import CorruptCheckpoint, read_checkpoint
from resnet_train.train import run
from tests.conftest import TINY

EXAMPLES = int(os.environ.get("RESNET_TRAIN_EXAMPLES", "25"))
some = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

register_schema()
KEYS = sorted(set(known_keys()) | {"hydra.run.dir", "hydra.sweep.dir", "hydra.job.chdir", "sweep", "max_failures"})
GROUPS = {group: options_of(group) for group in ("model", "dataset", "optim", "schedule", "experiment")}
OPTIONS = [option for options in GROUPS.values() for option in options]

letters = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
numbers = st.one_of(
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**400, 1e-320, 1e308, "1e999", "0x10", "1_000", "٣", "½", "-0.0"]),
).map(str)
yaml_values = st.sampled_from(
    [
        "null",
        "true",
        "false",
        "~",
        "",
        "''",
        "[]",
        "{}",
        "[1,2]",
        "{a: 1}",
        "${seed}",
        "${",
        "\\",
        '"',
        "1,2",
        "5 epochs",
    ]
)
values = st.one_of(numbers, yaml_values, letters, st.sampled_from(OPTIONS))
keys = st.one_of(
    st.sampled_from(KEYS), st.sampled_from(sorted(GROUPS)), letters, st.sampled_from(KEYS).map(lambda k: k[:-1])
)
overrides = st.one_of(
    st.builds("{}{}={}".format, st.sampled_from(["", "", "", "", "+", "++", "~"]), keys, values),
    st.builds("{}={}".format, st.sampled_from(sorted(GROUPS)), st.sampled_from(OPTIONS)),
    letters,
    st.sampled_from(["--cfg", "--resolve", "-m", "--config-name", "--info", "-x", "--", "-", "="]),
)


def refused_in_one_line(arguments: list[str]) -> str | None:
    """Compose as a run would, without running; the line that refuses it, or None."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([*arguments, "--cfg", "job"], run)
    if code == 0:
        assert err.getvalue() == ""
        return None
    assert code == 2, (code, err.getvalue())
    lines = err.getvalue().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("resnet-train: ")
    assert "not foreseen" not in lines[0]
    assert len(lines[0]) < 2000
    return lines[0]


@pytest.mark.slow
@some
@given(st.lists(overrides, min_size=1, max_size=4))
def test_any_arguments(tmp_path: Path, arguments: list[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        refused_in_one_line(arguments)
    finally:
        os.chdir(here)
    assert sorted(tmp_path.rglob("*")) == before


@some
@given(st.sampled_from(KEYS), values)
@pytest.mark.slow
def test_a_value_that_is_refused_names_its_key(key: str, value: str) -> None:
    line = refused_in_one_line([f"{key}={value}"])
    if line is not None:
        last = key.rpartition(".")[2]
        assert last in line or repr(f"{key}={value}") in line, line


@some
@given(st.data())
@pytest.mark.slow
def test_contradictions(data: st.DataObject) -> None:
    """Values that are each in their range: together they compose, or the line says which do not fit."""
    draw = data.draw
    arguments = [
        f"model={draw(st.sampled_from(GROUPS['model']))}",
        f"optim={draw(st.sampled_from(GROUPS['optim']))}",
        f"schedule={draw(st.sampled_from(GROUPS['schedule']))}",
        f"schedule.warmup={draw(st.sampled_from(['0', '3', '500', '10steps', '7 epochs', '1e9steps']))}",
        f"batch_size={draw(st.integers(1, 10**6))}",
        f"accumulate={draw(st.integers(1, 64))}",
        f"dataset.val_size={draw(st.integers(0, 60_000))}",
        f"dataset.train_size={draw(st.sampled_from(['null', '1', '100', '50000', '60000']))}",
        *draw(st.sampled_from([["epochs=10"], ["epochs=null", "steps=100"], ["steps=5"], ["epochs=null"]])),
        f"precision={draw(st.sampled_from(['auto', 'fp32', 'bf16', 'fp16']))}",
        f"device={draw(st.sampled_from(['auto', 'cpu', 'cuda', 'cuda:3', 'mps']))}",
    ]
    refused_in_one_line(arguments)


# -------------------------------------------------------------------------------------------------- damaged directories


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "run"
    main([*TINY, "epochs=null", "steps=8", "checkpoint.every=4steps", f"hydra.run.dir={directory}"], run)
    assert (directory / "summary.json").exists()
    return directory


def damaged(path: Path, data: st.DataObject) -> None:
    whole = path.read_bytes()
    match data.draw(st.sampled_from(["flip", "cut", "empty", "insert", "text", "zeros"]), label=path.name):
        case "flip":
            at = data.draw(st.integers(0, len(whole) * 8 - 1))
            changed = bytearray(whole)
            changed[at // 8] ^= 1 << at % 8
            path.write_bytes(changed)
        case "cut":
            path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        case "empty":
            path.write_bytes(b"")
        case "insert":
            at = data.draw(st.integers(0, len(whole)))
            path.write_bytes(whole[:at] + data.draw(st.binary(min_size=1, max_size=8)) + whole[at:])
        case "text":
            path.write_text("this is not what was written")
        case _:
            path.write_bytes(bytes(len(whole)))


@some
@given(data=st.data())
def test_a_damaged_checkpoint_is_never_read(tmp_path: Path, finished_run: Path, data: st.DataObject) -> None:
    path = tmp_path / "last.pt"
    shutil.copyfile(finished_run / "checkpoints/last.pt", path)
    whole = path.read_bytes()
    damaged(path, data)
    if path.read_bytes() != whole:
        with pytest.raises(CorruptCheckpoint):
            read_checkpoint(path)


@settings(some, max_examples=max(10, EXAMPLES // 10))
@given(data=st.data())
@pytest.mark.slow
def test_a_damaged_run_is_resumed_or_refused_in_one_line(
    tmp_path: Path, finished_run: Path, data: st.DataObject
) -> None:
    directory = tmp_path / "run"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(finished_run, directory)
    files = sorted(path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("."))
    for path in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=3, unique=True)):
        if data.draw(st.booleans(), label=f"remove {path.name}"):
            path.unlink()
        else:
            damaged(path, data)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([f"resume={directory}"], run)
    if code == 0:
        assert err.getvalue() == ""
    else:
        assert code == 2, (code, err.getvalue())
        lines = [line for line in err.getvalue().splitlines() if line.startswith("resnet-train: ")]
        assert len(lines) == 1, err.getvalue()
        assert "Traceback" not in err.getvalue()
        assert "not foreseen" not in lines[0]


@some
@given(
    text=st.one_of(
        letters,
        st.binary(max_size=40).map(lambda raw: raw.decode("latin-1")),
        st.builds("# @package _global_\n{}: {}\n".format, keys, values),
    )
)
@pytest.mark.slow
def test_any_yaml_of_the_users_own(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused_in_one_line(["--config-dir", str(tmp_path / "mine"), "experiment=own"])


def test_the_run_that_is_damaged_above_is_a_whole_one(finished_run: Path, compose: Callable[..., Config]) -> None:
    config = compose(*merge_overrides(TINY, ["epochs=null", "steps=8", "checkpoint.every=4steps"]))
    assert run(config, directory=finished_run).status == "finished"
