"""Finding a run again, and which changes make it another one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.runs.checkpoint import write_checkpoint
from resnet_train.runs.checkpoint_file import FORMAT
from resnet_train.runs.directory import Invocation, lasting, write_config
from resnet_train.runs.resume import (
    CHANGEABLE,
    Change,
    changes,
    check_same_run,
    find_directory,
    finished_already,
    flatten,
    latest,
)
from resnet_train.runs.summary import Summary

Compose = Callable[..., Config]


@pytest.fixture(scope="module")
def saved(tiny: Compose) -> dict[str, Any]:
    """The configuration of the run that is to be continued."""
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
    ("overrides", "expected"),
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
def test_each_changed_key_is_named(
    tiny: Compose, saved: dict[str, Any], overrides: list[str], expected: list[str]
) -> None:
    assert [str(change) for change in changes(saved, tiny(*overrides))] == expected


def test_keys_that_only_one_of_the_two_has(tiny: Compose, saved: dict[str, Any]) -> None:
    """Also where the value is null: a key that is not there is not a key without a value."""
    found = {change.key: change for change in changes(saved, tiny("optim=adamw"))}
    assert found["optim.momentum"] == Change("optim.momentum", 0.9, None)
    assert found["optim.beta1"] == Change("optim.beta1", None, 0.9)
    older = {key: value for key, value in saved.items() if key != "clip_grad_norm"}
    assert changes(older, tiny()) == [Change("clip_grad_norm", None, None)]


def test_what_a_recipe_expects_is_no_change(compose: Compose) -> None:
    """Also for runs of earlier versions, which know no such key."""
    config = compose("experiment=he2015_resnet20")
    older = {key: value for key, value in lasting(config).items() if key != "expected"}
    assert config.expected is not None and lasting(config)["expected"] is None
    assert changes(older, config) == changes(lasting(config), config) == []
    assert changes(older | {"expected": {"mean": 1.0}}, config) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "allowed"),
    [
        (["epochs=300"], True),
        (["epochs=null", "steps=500"], True),
        (["eval_every=2", "log_every=7", "checkpoint.every=3", "checkpoint.keep=1"], True),
        (["name=another"], True),
        (["device=auto", "deterministic=true"], True),
        (["max_time=2 h"], True),
        (["early_stop.patience=3", "dataset.val_size=10"], False),  # because of the latter
        (["freeze=[conv1]"], False),
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
def test_what_leaves_a_run_the_same_run(
    tiny: Compose, saved: dict[str, Any], overrides: list[str], allowed: bool
) -> None:
    config = tiny(*overrides)
    if allowed:
        assert [change.key for change in check_same_run(saved, config, Path("run"))] == sorted(
            override.partition("=")[0] for override in overrides
        )
    else:
        with pytest.raises(ConfigError, match="would be another run"):
            check_same_run(saved, config, Path("run"))


def test_the_patience_may_change(tiny: Compose) -> None:
    before = asdict(tiny("dataset.val_size=10"))
    after = tiny("dataset.val_size=10", "early_stop.patience=3", "early_stop.min_delta=0.01")
    found = check_same_run(before, after, Path("run"))
    assert [change.key for change in found] == ["early_stop.min_delta", "early_stop.patience"]


def test_keys_that_are_newer_than_a_run_had_their_value_all_the_same(tiny: Compose, saved: dict[str, Any]) -> None:
    older = {key: value for key, value in saved.items() if key not in ("freeze", "max_time", "early_stop")}
    assert changes(older, tiny()) == []
    assert [str(change) for change in changes(older, tiny("freeze=[conv1]", "max_time=1 h"))] == [
        "freeze: saved [], requested ['conv1']",
        "max_time: saved null, requested 1 h",
    ]


def test_where_the_files_lie_may_change(compose: Compose) -> None:
    before = compose("dataset=cifar10", "dataset.root=here")
    after = compose("dataset=cifar10", "dataset.root=there", "dataset.download=false", "dataset.mirrors=[]")
    assert len(check_same_run(asdict(before), after, Path("run"))) == 3
    assert flatten(asdict(before)).keys() | {"dataset.cache", "dataset.labels"} >= CHANGEABLE, "keys that exist"


def test_the_refusal_names_every_change_that_matters(tiny: Compose, saved: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_same_run(saved, tiny("seed=1", "optim.lr=0.2", "epochs=300"), Path("outputs/run"))
    assert str(caught.value) == (
        "resume: this would be another run than the one in outputs/run: optim.lr: saved 0.1, requested 0.2; "
        "seed: saved 0, requested 1. Leave it as it was, or start a new run"
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
    """A run of one step that began, and saved the checkpoint after it, at seconds since 1970."""
    (directory / "checkpoints").mkdir(parents=True)
    Invocation([], []).write(directory)
    os.utime(directory / "invocation.json", (begun, begun))
    if saved is not None:
        path = directory / "checkpoints" / "step-00000001.pt"
        write_checkpoint(path, {"format": FORMAT, "config": {"steps": 1}})
        os.utime(path, (saved, saved))
    if status is not None:
        summary(status, steps=1).write(directory)
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
    assert latest(tmp_path) == tmp_path / "2026-01-03" / "d", "a corrupt summary does not say that it finished"


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


def test_a_run_from_python_is_found_too(tiny: Compose, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_config(tiny(), tmp_path / "a")
    assert latest(tmp_path) == tmp_path / "a"


# -------------------------------------------------------------------------------------------------------- the directory


def test_the_directory_is_the_named_one_or_the_latest(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "outputs" / "a", begun=1000, saved=2000)
    assert find_directory(str(directory)) == directory
    assert find_directory("latest", tmp_path / "outputs") == directory


def test_what_is_no_run_to_continue(tmp_path: Path) -> None:
    expected = {
        "": "resume: expected a run directory or latest, got nothing; resume=null starts a new run",
        f"{tmp_path}/missing": f"resume: expected a run directory, got '{tmp_path}/missing', which does not exist",
        f"{tmp_path}": (
            f"resume: expected a run directory, got '{tmp_path}', which holds no config.yaml; "
            f"run directories look like outputs/2026-01-31/12-00-00-resnet20"
        ),
        f"{make_run(tmp_path / 'a', begun=1000)}": (
            f"resume: expected a checkpoint in {tmp_path}/a/checkpoints, found none; restore one from a backup, or "
            f"begin again in the same place with hydra.run.dir={tmp_path}/a"
        ),
    }
    for name, message in expected.items():
        with pytest.raises(ConfigError) as caught:
            find_directory(name)
        assert str(caught.value) == message


def test_a_run_is_found_by_its_checkpoints_alone(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "outputs" / "a", begun=1000, saved=2000)
    (directory / "invocation.json").unlink()
    assert find_directory("latest", tmp_path / "outputs") == find_directory(str(directory)) == directory


# ----------------------------------------------------------------------------------------------------- finished already


def test_a_run_is_over_when_it_finished_and_is_not_made_longer(tiny: Compose, tmp_path: Path) -> None:
    config = tiny("epochs=2")  # 13 steps
    assert finished_already(config, tmp_path) is None, "never begun"
    write_config(config, tmp_path)
    assert finished_already(config, tmp_path) is None, "begun"
    summary("interrupted").write(tmp_path)
    assert finished_already(config, tmp_path) is None
    result = summary("finished", steps=13, total_steps=13, images={"train": 200})
    result.write(tmp_path)
    assert finished_already(config, tmp_path) == replace(result, directory=str(tmp_path)), (
        "its checkpoints were removed"
    )
    assert finished_already(replace(config, epochs=None, steps=13), tmp_path) is not None, "13 steps by another name"
    assert finished_already(replace(config, epochs=None, steps=99), tmp_path) is None, "made longer"
    for steps in (7, 13):
        checkpoint = {"format": FORMAT, "config": asdict(config)}
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        write_checkpoint(tmp_path / "checkpoints" / f"step-{steps:08d}.pt", checkpoint)
        assert (finished_already(config, tmp_path) is not None) == (steps == 13), "its checkpoint has as many"
    with pytest.raises(ConfigError, match="would be another run"):
        finished_already(replace(config, seed=1), tmp_path)


# ----------------------------------------------------------------------------------------------------- strangers' files


def test_escape_sequences_are_shown_and_not_sent(tiny: Compose, saved: dict[str, Any]) -> None:
    """In the table of changes and in the line below it."""
    changed = {**saved, "name": "a\x1b]0;title\x07", "seed": "\x9b2J\u202e\r\n", "\x1b[1mkey": 1}
    with pytest.raises(ConfigError) as caught:
        check_same_run(changed, tiny(), Path("run"))
    text = str(caught.value) + caught.value.details.replace("\n", "")
    assert text.isprintable()
    assert r"seed: saved \x9b2J\u202e\r\n, requested 0" in text
    assert r"a\x1b]0;title\x07" in text
