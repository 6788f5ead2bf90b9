"""New configurations from overrides, saved ones as data."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from resnet_train.cli.compose import compose, compose_saved, load_config, offline_config
from resnet_train.cli.overrides import parse
from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.runs.directory import lasting
from resnet_train.runs.resume import changes

Tiny = Callable[..., Config]


def again(saved: dict[str, Any], *overrides: str) -> Config:
    return compose_saved(parse(overrides), saved).config


def test_from_overrides() -> None:
    config = load_config(["model=resnet18", "optim.lr=0.3", "epochs=7"])
    assert (config.model.depth, config.optim.lr, config.epochs) == (18, 0.3, 7)


def test_somebody_elses_hydra_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text("a: 1\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        load_config(["epochs=1"])
        assert GlobalHydra.instance().is_initialized()
        assert hydra.compose("theirs").a == 1


def test_options_and_a_main_file_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule" / "mine.yaml").write_text(
        "defaults:\n  - /schema/schedule/constant@_here_\n  - _self_\nname: constant\nwarmup: 3\nwarmup_start: 0.0\n"
        "warmup_shape: linear\n"
    )
    (tmp_path / "main.yaml").write_text("defaults:\n  - train\n  - _self_\nepochs: 9\n")
    config = compose(parse(["--config-dir", str(tmp_path), "--config-name", "main", "schedule=mine"])).config
    assert (config.epochs, config.schedule.warmup) == (9, 3)


# --------------------------------------------------------------------------------------------------------- saved runs


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        (
            "model=resnet18",
            "model.stem=imagenet",
            "optim=adamw",
            "schedule=multistep",
            "schedule.milestones=[1]",
            "model.depth=18",
        ),
        ("dataset.mean=[0.1,0.2,0.3]", "schedule=linear", "schedule.warmup=3steps", "clip_grad_norm=1", "name=other"),
    ],
)
def test_a_saved_configuration_is_composed_to_itself(tiny: Tiny, overrides: tuple[str, ...]) -> None:
    config = tiny("model=resnet20", "epochs=3", *overrides)
    assert again(asdict(config)) == config


@pytest.mark.slow
def test_overrides_lie_over_it(tiny: Tiny) -> None:
    saved = asdict(tiny("epochs=3", "optim.lr=0.3"))
    config = again(saved, "epochs=5", "checkpoint.keep=7")
    assert (config.epochs, config.checkpoint.keep, config.optim.lr) == (5, 7, 0.3)


@pytest.mark.slow
def test_a_group_that_is_named_comes_from_its_file(tiny: Tiny) -> None:
    saved = asdict(tiny("epochs=9", "schedule.final_lr=0.05", "optim.lr=0.3"))
    config = again(saved, "schedule=linear")
    assert (config.schedule.name, config.schedule.final_lr, config.optim.lr) == ("linear", 0.0, 0.3)
    assert again(saved, "experiment=quick").optim.lr == load_config(["experiment=quick"]).optim.lr


@pytest.mark.slow
def test_a_key_that_is_newer_than_the_saved_run_has_its_default(tiny: Tiny) -> None:
    saved = asdict(tiny("epochs=3", "batch_size=20"))
    for name in ("graph", "profile", "freeze", "early_stop", "max_time", "find_lr"):
        del saved[name]
    del saved["dataset"]["augment"]["cutmix"], saved["optim"]["nesterov"]
    assert again(saved) == tiny("epochs=3", "batch_size=20")


@pytest.mark.slow
def test_a_run_of_0_2_0_keeps_its_three_channels() -> None:
    """Grey images were three equal channels, whatever the default is now."""
    saved = asdict(load_config(["dataset=fashion_mnist", "dataset.channels=3"]))
    for key in ("channels", "download", "mirrors"):
        del saved["dataset"][key]
    config = again(saved)
    assert (config.dataset.channels, len(config.dataset.mean), config.dataset.download) == (3, 3, True)
    assert load_config(["dataset=fashion_mnist"]).dataset.channels == 1
    assert all(change.allowed for change in changes(saved, config))
    now = load_config(["dataset=fashion_mnist"])
    assert "dataset.channels: saved 3, requested 1" in map(str, changes(saved, now)), "the same command is another run"


@pytest.mark.slow
def test_strings_are_data(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "not to be read")
    for text in ("${oc.env:SECRET}", "${seed}", "a\\${seed}", "\\\\${name}", "$", "${", "\\", "a\\b", "{a: ${b}}"):
        saved = asdict(tiny("epochs=3"))
        saved["init_from"] = text
        assert again(saved).init_from == text


@pytest.mark.parametrize(
    "planted",
    [
        {"hydra": {"callbacks": {"x": {"_target_": "os.makedirs", "name": "planted"}}}},
        {"defaults": [{"override hydra/launcher": "joblib"}]},
        {"_target_": "os.getcwd"},
    ],
)
def test_what_does_not_belong_into_a_configuration_is_refused(tiny: Tiny, planted: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="resume: the saved configuration has the key"):
        again(asdict(tiny("epochs=3")) | planted)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"model": None}, "resume: the saved configuration lacks model"),
        ({"optim": {"name": "lion"}}, "resume: the saved configuration has optim=lion, which this version lacks"),
    ],
)
def test_a_group_that_is_missing_or_unknown(tiny: Tiny, damage: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        again(asdict(tiny("epochs=3")) | damage)


@pytest.mark.slow
def test_what_belongs_to_a_session_is_not_taken_over(tiny: Tiny) -> None:
    saved = asdict(tiny("epochs=3")) | {"resume": "elsewhere", "resume_force": True}
    assert (again(saved).resume, again(saved).resume_force) == (None, False)


# ------------------------------------------------------------------------------------------------------------- offline


@pytest.mark.slow
def test_synthetic_images_where_cifar_is_not_at_hand(tmp_path: Path) -> None:
    config, overrides, note = offline_config(["model=resnet18", f"dataset.root={tmp_path}"])
    assert (config.dataset.name, config.dataset.num_classes, config.model.depth) == ("synthetic", 10, 18)
    assert load_config(overrides) == config
    assert note == "synthetic images of the same shape, since CIFAR is not at hand"
    assert os.listdir(tmp_path) == []


def test_cifar_where_it_is_at_hand(cifar10_root: Path) -> None:
    config, _, note = offline_config([f"dataset.root={cifar10_root}"])
    assert (config.dataset.name, note) == ("cifar10", "cifar10")


@pytest.mark.slow
def test_what_a_recipe_expects_is_not_the_runs() -> None:
    """A saved run of an earlier version has no such key, a run that was given more has none either."""
    config = load_config(["experiment=he2015_resnet20"])
    saved = lasting(config)
    assert again(saved).expected is None
    assert again({key: value for key, value in saved.items() if key != "expected"}).expected is None
    assert again(saved, "experiment=he2015_resnet20").expected == config.expected
