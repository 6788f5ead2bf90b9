"""Finding a run again, and which changes make it another one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.resume import (
    CHANGEABLE,
    Change,
    Invocation,
    changes,
    check_same_run,
    flatten,
    is_run,
    latest,
    read_invocation,
)
from resnet_train.summary import Summary

Compose = Callable[..., Config]


@pytest.fixture(scope="module")
def saved(tiny: Compose) -> dict[str, Any]:
    """The configuration of the run that is to go on."""
    return asdict(tiny())


# -------------------------------------------------------------------------------------------------------------- changes


def test_flatten() -> None:
    nested = {"seed": 0, "optim": {"lr": 0.1, "deep": {"er": None}}, "list": [1, {"a": 2}], "empty": {}}
    assert flatten(nested) == {"seed": 0, "optim.lr": 0.1, "optim.deep.er": None, "list": [1, {"a": 2}]}


def test_nothing_has_changed(tiny: Compose, saved: dict[str, Any]) -> None:
    config = tiny()
    assert changes(saved, config) == []
    assert changes(saved, replace(config, resume="outputs/somewhere")) == []
    assert check_same_run(saved, config, Path("run")) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["optim.lr=0.2"], ["optim.lr: saved 0.1, requested 0.2"]),
        (["model.residual=false"], ["model.residual: saved true, requested false"]),
        (["clip_grad_norm=1.5"], ["clip_grad_norm: saved null, requested 1.5"]),
        (["epochs=null", "steps=40"], ["epochs: saved 200, requested null", "steps: saved null, requested 40"]),
        (["dataset.mean=[0, 0, 0.5]"], ["dataset.mean: saved [0.5, 0.5, 0.5], requested [0.0, 0.0, 0.5]"]),
        (
            ["seed=1", "dataset.augment.flip=false", "checkpoint.keep=5"],  # sorted by key
            [
                "checkpoint.keep: saved 2, requested 5",
                "dataset.augment.flip: saved true, requested false",
                "seed: saved 0, requested 1",
            ],
        ),
    ],
)
def test_each_changed_key_is_named(tiny: Compose, saved: dict[str, Any], words: list[str], expected: list[str]) -> None:
    assert [str(change) for change in changes(saved, tiny(*words))] == expected


def test_keys_that_only_one_of_the_two_has(tiny: Compose, saved: dict[str, Any]) -> None:
    """Also where the value is null: a key that is not there is not a key without a value."""
    found = {change.key: change for change in changes(saved, tiny("optim=adamw"))}
    assert found["optim.momentum"] == Change("optim.momentum", 0.9, None)
    assert found["optim.beta1"] == Change("optim.beta1", None, 0.9)
    older = {key: value for key, value in saved.items() if key != "clip_grad_norm"}
    assert changes(older, tiny()) == [Change("clip_grad_norm", None, None)]


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (["epochs=300"], True),
        (["epochs=null", "steps=500"], True),
        (["eval_every=2", "log_every=7", "checkpoint.every=3", "checkpoint.keep=1"], True),
        (["name=another"], True),
        (["device=auto", "deterministic=true"], True),
        (["seed=1"], False),
        (["precision=bf16"], True),
        (["batch_size=16"], False),
        (["accumulate=2"], False),
        (["ema_decay=0.9"], False),
        (["dataset.val_size=10"], False),
        (["dataset.augment.cutout=2"], False),
        (["schedule=constant"], False),
        (["optim.weight_decay=0"], False),
        (["model.width=0.5"], False),
    ],
)
def test_what_leaves_a_run_the_same_run(tiny: Compose, saved: dict[str, Any], words: list[str], allowed: bool) -> None:
    config = tiny(*words)
    if allowed:
        assert [change.key for change in check_same_run(saved, config, Path("run"))] == sorted(
            word.partition("=")[0] for word in words
        )
    else:
        with pytest.raises(ConfigError, match="would be another run"):
            check_same_run(saved, config, Path("run"))


def test_where_the_files_lie_may_change(compose: Compose) -> None:
    before = compose("dataset=cifar10", "dataset.root=here")
    after = compose("dataset=cifar10", "dataset.root=there", "dataset.download=false", "dataset.mirrors=[]")
    assert len(check_same_run(asdict(before), after, Path("run"))) == 3
    assert flatten(asdict(before)).keys() | {"dataset.cache"} >= CHANGEABLE, "keys that exist"


def test_the_refusal_names_every_change_that_matters(tiny: Compose, saved: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_same_run(saved, tiny("seed=1", "optim.lr=0.2", "epochs=300"), Path("outputs/run"))
    assert str(caught.value) == (
        "resume: this would be another run than the one in outputs/run: optim.lr: saved 0.1, requested 0.2; "
        "seed: saved 0, requested 1. Leave it as it was, or start a new run"
    )


# ----------------------------------------------------------------------------------------------------------- invocation


def test_an_invocation_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert not is_run(tmp_path)
    invocation = Invocation(["--config-dir", "/a b"], ["optim.lr=0.1", "name='ü \"quoted\"'"])
    invocation.write(tmp_path)
    assert is_run(tmp_path)
    assert read_invocation(tmp_path) == invocation
    Invocation([], []).write(tmp_path)
    assert read_invocation(tmp_path) == Invocation([], [])
    assert [path.name for path in tmp_path.iterdir()] == ["invocation.json"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ('{"flags": [], "overri', "Unterminated string starting at: line 1 column 15 (char 14)"),
        ("[]", ".*must be a mapping, not list"),
        ('{"flags": []}', ".*missing 1 required positional argument: 'overrides'"),
        ('{"flags": [], "overrides": [], "more": 1}', ".*got an unexpected keyword argument 'more'"),
        ('{"flags": [], "overrides": [1]}', "expected lists of words"),
        ('{"flags": "--x", "overrides": []}', "expected lists of words"),
        (b"\xff\xfe", ".*can't decode byte 0xff.*"),
    ],
)
def test_a_damaged_invocation(tmp_path: Path, text: str | bytes, reason: str) -> None:
    path = tmp_path / "invocation.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    expected = reason if reason.startswith(".*") else re.escape(reason)
    with pytest.raises(ConfigError, match=rf"^resume: {re.escape(str(path))} is damaged: {expected}$"):
        read_invocation(tmp_path)


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_invocation(tmp_path / "missing")
    assert str(caught.value) == (f"resume: expected a run directory, got '{tmp_path}/missing', which does not exist")
    with pytest.raises(ConfigError) as caught:
        read_invocation(tmp_path)
    assert str(caught.value) == (
        f"resume: expected a run directory, got '{tmp_path}', which holds no invocation.json; "
        f"run directories look like outputs/2026-01-31/12-00-00-resnet20"
    )


# --------------------------------------------------------------------------------------------------------------- latest


def summary(status: str, **more: Any) -> Summary:
    return Summary(
        status=status,
        name="run",
        directory="",
        result_split="test",
        result_rule="",
        result=None,
        objective=None,
        **more,
    )


def make_run(directory: Path, *, begun: int, saved: int | None = None, status: str | None = None) -> Path:
    """A run that began, and saved a checkpoint, at seconds since 1970."""
    (directory / "checkpoints").mkdir(parents=True)
    Invocation([], []).write(directory)
    os.utime(directory / "invocation.json", (begun, begun))
    if saved is not None:
        path = directory / "checkpoints" / "step-00000001.pt"
        path.touch()
        os.utime(path, (saved, saved))
    if status is not None:
        summary(status).write(directory)
    return directory


def test_the_latest_is_the_newest_that_has_not_finished(tmp_path: Path) -> None:
    make_run(tmp_path / "2026-01-01" / "a", begun=1000)
    assert latest(tmp_path) == tmp_path / "2026-01-01" / "a"
    make_run(tmp_path / "2026-01-02" / "b", begun=2000, status="interrupted")
    assert latest(tmp_path) == tmp_path / "2026-01-02" / "b"
    make_run(tmp_path / "2025-01-01" / "c", begun=500, saved=3000, status="failed")
    assert latest(tmp_path) == tmp_path / "2025-01-01" / "c", "by its checkpoint, not by its name or beginning"
    make_run(tmp_path / "2026-01-03" / "d", begun=4000, saved=5000, status="finished")
    assert latest(tmp_path) == tmp_path / "2025-01-01" / "c"
    make_run(tmp_path / "2026-01-04" / "sweep" / "3-e", begun=6000)
    assert latest(tmp_path) == tmp_path / "2026-01-04" / "sweep" / "3-e"
    (tmp_path / "2026-01-03" / "d" / "summary.json").write_text("{")
    os.utime(tmp_path / "2026-01-03" / "d" / "invocation.json", (7000, 7000))
    assert latest(tmp_path) == tmp_path / "2026-01-03" / "d", "a damaged summary does not say that it finished"


@pytest.mark.parametrize("exists", [True, False])
def test_no_unfinished_run(tmp_path: Path, exists: bool) -> None:
    outputs = tmp_path / "outputs"
    if exists:
        make_run(outputs / "a", begun=1000, status="finished")
        (outputs / "b").mkdir()
        (outputs / "b" / "summary.json").write_text(json.dumps({"status": "interrupted"}))
    with pytest.raises(ConfigError) as caught:
        latest(outputs)
    assert str(caught.value) == f"resume=latest: expected an unfinished run under '{outputs}', found none"
