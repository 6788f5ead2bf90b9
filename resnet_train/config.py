"""The schema: one dataclass for each option of each group, and the checks that need more than one field.

Types live here, values live in ``conf/``: no field has a default, so every number that a run uses stands in a YAML
file. Hydra merges the YAML into these classes, which makes a wrong key or type fail by name; `Config.__post_init__`
then checks ranges and contradictions. Fields that every option of a group has stand in that group's base class. This
module does not import torch: whatever is wrong with a configuration is said within a second.
"""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from resnet_train.errors import ConfigError
from resnet_train.schedule import parse_duration, to_steps

# ---------------------------------------------------------------------------------------------------------------- model


@dataclass
class ModelConfig:
    """What both families share."""

    name: str  # for the header, the run directory and the tables
    depth: int  # layers with weights
    shortcut: str  # A: zero padding, no parameters; B: 1x1 convolution where the shape changes
    residual: bool  # false: the plain twin, the same layers without shortcuts
    width: float  # multiplies the channels of every stage
    preactivation: bool  # norm and activation before each convolution (He et al. 2016)
    dropout: float  # probability, before the last layer
    activation: str  # relu, sigmoid, tanh
    init: str  # he, glorot, default (PyTorch's own)
    zero_init_residual: bool  # the last norm of each block starts at scale 0
    conv_bias: bool  # convolutions with a bias, which the norm behind them makes superfluous


@dataclass
class CifarResNetConfig(ModelConfig):
    """6n+2 layers in three stages of 16, 32, 64 channels (He et al. 2015, section 4.2)."""


@dataclass
class ResNetConfig(ModelConfig):
    """18 to 152 layers in four stages (He et al. 2015, table 1)."""

    stem: str  # cifar: 3x3; imagenet: 7x7 stride 2 and max-pooling


# -------------------------------------------------------------------------------------------------------------- dataset


@dataclass
class AugmentConfig:
    """Augmentation of the training images; off is 0 or false. Evaluation never augments."""

    crop_padding: int  # pixels on each side before a random crop of the original size
    crop_mode: str  # zeros, reflect
    flip: bool  # left to right, every second image on average
    cutout: int  # side of the square that is blanked, in pixels
    mixup: float  # alpha of Beta(alpha, alpha)
    cutmix: float  # alpha of Beta(alpha, alpha); with mixup too, each batch takes one of the two by chance


@dataclass
class DatasetConfig:
    """What all data sets share."""

    NAME: ClassVar[str]

    name: str
    train_size: int | None  # train on this many images, drawn by seed; null: all that val_size leaves
    val_size: int  # images of the training set held out by seed; the best checkpoint is chosen on them
    mean: list[float]  # per channel, in units of the full range
    std: list[float]
    augment: AugmentConfig


@dataclass
class CifarConfig(DatasetConfig):
    """Files of the official "python version"."""

    root: str  # holds, or will hold, cifar-10-batches-py/ or cifar-100-python/
    download: bool  # get what is not there
    mirrors: list[str]  # tried in order


@dataclass
class Cifar10Config(CifarConfig):
    """CIFAR-10: 50,000 and 10,000 images, 10 classes."""

    NAME: ClassVar[str] = "cifar10"


@dataclass
class Cifar100Config(CifarConfig):
    """CIFAR-100: 50,000 and 10,000 images, 100 classes."""

    NAME: ClassVar[str] = "cifar100"


@dataclass
class ImageFolderConfig(DatasetConfig):
    """Pictures of the user's own, ``root/train/<class>/*`` and ``root/val/<class>/*``."""

    NAME: ClassVar[str] = "imagefolder"

    root: str | None
    image_size: int  # pixels: the shorter side is scaled to it, then the centre is cut out
    cache: str | None  # folder of the decoded images; null: root/.resnet-train-cache


@dataclass
class SyntheticConfig(DatasetConfig):
    """Images made up on the spot, learnable, no file needed."""

    NAME: ClassVar[str] = "synthetic"

    num_classes: int
    image_size: int
    num_train: int
    num_test: int


# ------------------------------------------------------------------------------------------------------ optim, schedule


@dataclass
class OptimConfig:
    """What all optimizers share."""

    NAME: ClassVar[str]

    name: str
    lr: float  # peak rate, for the global batch
    weight_decay: float
    decay_norm_and_bias: bool  # false: weight decay for weights of convolutions and the classifier only


@dataclass
class SGDConfig(OptimConfig):
    """Stochastic gradient descent."""

    NAME: ClassVar[str] = "sgd"

    momentum: float
    nesterov: bool


@dataclass
class AdamWConfig(OptimConfig):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017, 1711.05101)."""

    NAME: ClassVar[str] = "adamw"

    beta1: float
    beta2: float
    eps: float


@dataclass
class ScheduleConfig:
    """What all schedules share. Durations: 5 or "5 epochs" or "400 steps"."""

    NAME: ClassVar[str]

    name: str
    warmup: Any  # duration, counted in the run's length
    warmup_start: float  # rate of the first updates, as a share of optim.lr
    warmup_shape: str  # linear: rises to optim.lr; constant: stays until the warm-up ends


@dataclass
class CosineConfig(ScheduleConfig):
    """Half a cosine."""

    NAME: ClassVar[str] = "cosine"

    final_lr: float


@dataclass
class LinearConfig(ScheduleConfig):
    """One cycle: up in the warm-up, then down in a straight line."""

    NAME: ClassVar[str] = "linear"

    final_lr: float


@dataclass
class MultiStepConfig(ScheduleConfig):
    """The rate is multiplied by gamma at each milestone."""

    NAME: ClassVar[str] = "multistep"

    milestones: list[Any]  # durations, ascending
    gamma: float


@dataclass
class ConstantConfig(ScheduleConfig):
    """The same rate throughout."""

    NAME: ClassVar[str] = "constant"


# ------------------------------------------------------------------------------------------------------------ top level


@dataclass
class CheckpointConfig:
    """When checkpoints are written, and how many stay."""

    every: Any  # duration
    keep: int  # newest checkpoints that stay beside last and best


@dataclass
class Config:
    """One run, whole. See the comments in conf/train.yaml for what each value means to a user."""

    name: str
    model: Any  # CifarResNetConfig | ResNetConfig
    dataset: Any  # Cifar10Config | Cifar100Config | ImageFolderConfig | SyntheticConfig
    optim: Any  # SGDConfig | AdamWConfig
    schedule: Any  # CosineConfig | LinearConfig | MultiStepConfig | ConstantConfig
    epochs: int | None
    steps: int | None
    batch_size: int  # images an update, over all devices and micro-batches
    accumulate: int  # micro-batches an update
    label_smoothing: float
    clip_grad_norm: float | None
    ema_decay: float | None
    seed: int
    deterministic: bool
    device: str
    precision: str
    channels_last: str  # auto, true, false
    kernels: str
    compile: str  # auto, true, false
    graph: str  # auto, true, false
    profile: bool
    eval_every: Any  # duration
    log_every: int  # updates
    checkpoint: CheckpointConfig
    resume: str | None
    resume_force: bool
    init_from: str | None

    def __post_init__(self) -> None:
        """Raise `ConfigError` for the first value that is out of range or contradicts another."""
        for name in ("channels_last", "compile", "graph"):
            setattr(self, name, getattr(self, name).lower())  # YAML's true arrives as True
        check_model(self.model)
        check_dataset(self.dataset)
        check_optim(self.optim)
        check_schedule(self.schedule, self.optim.lr)
        check_top_level(self)
        num_train = known_num_train(self.dataset)
        if num_train is not None:
            check_lengths(self, num_train)


# --------------------------------------------------------------------------------------------------------------- checks

CIFAR_NUM_TRAIN = 50_000
SCHEMA: dict[str, type] = {
    "model/cifar_resnet": CifarResNetConfig,
    "model/resnet": ResNetConfig,
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


def register_schema() -> None:
    """Make the dataclasses known to Hydra as ``schema/...``, which the YAML files name first in their defaults."""
    OmegaConf.register_new_resolver("job_id", job_id, replace=True)
    store = ConfigStore.instance()
    store.store(group="schema", name="train", node=Config)
    for path, node in SCHEMA.items():
        group, name = path.split("/")
        store.store(group=f"schema/{group}", name=name, node=node)


def job_id(overrides: str) -> str:
    """Eight hexadecimal digits that tell a sweep's jobs apart by their overrides, whatever their number or order."""
    return hashlib.sha256(overrides.encode()).hexdigest()[:8]


def known_num_train(dataset: DatasetConfig) -> int | None:
    """Number of training images, or None where only a look at the files can tell."""
    match dataset:
        case CifarConfig():
            available = CIFAR_NUM_TRAIN
        case SyntheticConfig():
            available = dataset.num_train
        case _:
            return None
    return num_train_images(dataset, available)


def num_train_images(dataset: DatasetConfig, available: int) -> int:
    """Images to train on when ``available`` lie in the training set; raises `ConfigError` if they do not suffice."""
    left = available - dataset.val_size
    if left < 1:
        raise ConfigError(
            f"dataset.val_size: expected fewer than the {available} training images, got {dataset.val_size}"
        )
    if dataset.train_size is not None and dataset.train_size > left:
        raise ConfigError(
            f"dataset.train_size: expected at most {left} ({available} images less val_size={dataset.val_size}), "
            f"got {dataset.train_size}; try dataset.train_size={left}"
        )
    return dataset.train_size if dataset.train_size is not None else left


def steps_per_epoch(config: Config, num_train: int) -> Fraction:
    """Updates an epoch, exact: 50,000 images at batch 128 are 390.625."""
    return Fraction(num_train, config.batch_size)


def total_steps(config: Config, num_train: int) -> int:
    """Updates of the whole run."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return to_steps(config.epochs, steps_per_epoch(config, num_train))


def check_model(model: ModelConfig) -> None:
    """Raise `ConfigError` for a network that does not exist."""
    if isinstance(model, ResNetConfig):
        _choice("model.stem", model.stem, ("cifar", "imagenet"))
        if model.depth not in (18, 34, 50, 101, 152):
            raise ConfigError(f"model.depth: expected 18, 34, 50, 101 or 152 in this family, got {model.depth}")
    elif model.depth < 8 or (model.depth - 2) % 6:
        raise ConfigError(f"model.depth: expected 6n + 2 (8, 14, 20, 32, ...) in this family, got {model.depth}")
    _choice("model.shortcut", model.shortcut, ("A", "B"))
    _choice("model.activation", model.activation, ("relu", "sigmoid", "tanh"))
    _choice("model.init", model.init, ("he", "glorot", "default"))
    _number("model.width", model.width, above=0, at_most=64)
    _number("model.dropout", model.dropout, at_least=0, below=1)
    if model.zero_init_residual and not model.residual:
        raise ConfigError(
            "model.zero_init_residual=true contradicts model.residual=false: without shortcuts the network would put "
            "out zeros; set one of the two"
        )


def check_dataset(dataset: DatasetConfig) -> None:
    """Raise `ConfigError` for values that no data set can serve."""
    _name("dataset", dataset)
    _number("dataset.val_size", dataset.val_size, at_least=0)
    if dataset.train_size is not None:
        _number("dataset.train_size", dataset.train_size, at_least=1)
    for key in ("mean", "std"):
        values = getattr(dataset, key)
        if len(values) != 3:
            raise ConfigError(f"dataset.{key}: expected three numbers, one a channel, got {len(values)}")
        for index, value in enumerate(values):
            if key == "std":
                _number(f"dataset.std[{index}]", value, above=0)
            else:
                _number(f"dataset.mean[{index}]", value)
    augment = dataset.augment
    _choice("dataset.augment.crop_mode", augment.crop_mode, ("zeros", "reflect"))
    _number("dataset.augment.cutout", augment.cutout, at_least=0)
    _number("dataset.augment.mixup", augment.mixup, at_least=0)
    _number("dataset.augment.cutmix", augment.cutmix, at_least=0)
    image_size = 32
    if isinstance(dataset, ImageFolderConfig | SyntheticConfig):
        _number("dataset.image_size", dataset.image_size, at_least=4, at_most=4096)
        image_size = dataset.image_size
    if isinstance(dataset, ImageFolderConfig) and not dataset.root:
        raise ConfigError(
            "dataset.root: expected the folder that holds train/ and val/ with one folder a class, got nothing; "
            "add dataset.root=FOLDER"
        )
    if isinstance(dataset, SyntheticConfig):
        _number("dataset.num_classes", dataset.num_classes, at_least=2)
        _number("dataset.num_train", dataset.num_train, at_least=1)
        _number("dataset.num_test", dataset.num_test, at_least=1)
    _number("dataset.augment.crop_padding", augment.crop_padding, at_least=0, below=image_size)


def check_optim(optim: OptimConfig) -> None:
    """Raise `ConfigError` for rates and coefficients out of range."""
    _name("optim", optim)
    _number("optim.lr", optim.lr, above=0)
    _number("optim.weight_decay", optim.weight_decay, at_least=0)
    match optim:
        case SGDConfig():
            _number("optim.momentum", optim.momentum, at_least=0, below=1)
            if optim.nesterov and optim.momentum == 0:
                raise ConfigError("optim.nesterov=true needs optim.momentum above 0, got 0; set optim.nesterov=false")
        case AdamWConfig():
            _number("optim.beta1", optim.beta1, at_least=0, below=1)
            _number("optim.beta2", optim.beta2, at_least=0, below=1)
            _number("optim.eps", optim.eps, above=0)


def check_schedule(schedule: ScheduleConfig, lr: float) -> None:
    """Raise `ConfigError` for a schedule that no length of training can make right."""
    _name("schedule", schedule)
    _duration("schedule.warmup", schedule.warmup)
    _number("schedule.warmup_start", schedule.warmup_start, at_least=0, at_most=1)
    _choice("schedule.warmup_shape", schedule.warmup_shape, ("linear", "constant"))
    if schedule.warmup_shape == "constant" and schedule.warmup_start == 0 and parse_duration(schedule.warmup)[0] > 0:
        raise ConfigError(
            "schedule.warmup_start: expected more than 0 with warmup_shape=constant, got 0, at which nothing is "
            "learnt; try schedule.warmup_start=0.1"
        )
    match schedule:
        case CosineConfig() | LinearConfig():
            _number("schedule.final_lr", schedule.final_lr, at_least=0)
            if schedule.final_lr > lr:
                raise ConfigError(f"schedule.final_lr: expected at most optim.lr={lr:g}, got {schedule.final_lr:g}")
        case MultiStepConfig():
            _number("schedule.gamma", schedule.gamma, above=0)
            for index, milestone in enumerate(schedule.milestones):
                _duration(f"schedule.milestones[{index}]", milestone, positive=True)


def check_top_level(config: Config) -> None:
    """Raise `ConfigError` for the values that stand outside the groups."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,99}", config.name, re.ASCII):
        raise ConfigError(f"name: expected letters, digits and . _ + - (at most 100), got {config.name!r}")
    if config.epochs is not None and config.steps is not None:
        raise ConfigError(
            f"epochs={config.epochs} and steps={config.steps} contradict each other: give one; "
            f"for {config.steps} updates add epochs=null"
        )
    if config.epochs is None and config.steps is None:
        raise ConfigError("epochs: expected a length for the run, got neither epochs nor steps; try epochs=10")
    if config.epochs is not None:
        _number("epochs", config.epochs, at_least=1)
    if config.steps is not None:
        _number("steps", config.steps, at_least=1)
    _number("batch_size", config.batch_size, at_least=1)
    _number("accumulate", config.accumulate, at_least=1)
    if config.batch_size % config.accumulate:
        raise ConfigError(
            f"batch_size ({config.batch_size}) must be divisible by accumulate ({config.accumulate}); "
            f"try batch_size={max(1, config.batch_size // config.accumulate) * config.accumulate}"
        )
    _number("label_smoothing", config.label_smoothing, at_least=0, below=1)
    if config.clip_grad_norm is not None:
        _number("clip_grad_norm", config.clip_grad_norm, above=0)
    if config.ema_decay is not None:
        _number("ema_decay", config.ema_decay, above=0, below=1)
    _number("seed", config.seed, at_least=0)
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config.device):
        raise ConfigError(f"device: expected auto, cpu, cuda, cuda:N or mps, got {config.device!r}")
    _choice("precision", config.precision, ("auto", "fp32", "tf32", "bf16", "fp16"))
    _choice("channels_last", config.channels_last, ("auto", "true", "false"))
    _choice("kernels", config.kernels, ("auto", "plain", "fused"))
    _choice("compile", config.compile, ("auto", "true", "false"))
    _choice("graph", config.graph, ("auto", "true", "false"))
    if config.kernels == "fused" and config.compile == "true":
        raise ConfigError(
            "compile=true needs operations that torch.compile can look into, got kernels=fused; try kernels=auto"
        )
    if config.kernels == "fused" and config.channels_last == "false":
        raise ConfigError("kernels=fused needs channels_last, got channels_last=false; try kernels=auto")
    if config.precision in ("fp16", "tf32") and config.device in ("cpu", "mps"):
        raise ConfigError(
            f"precision={config.precision} needs a CUDA device, got device={config.device}; try precision=bf16 or "
            f"precision=fp32"
        )
    if config.graph == "true" and config.device in ("cpu", "mps"):
        raise ConfigError(f"graph=true needs a CUDA device, got device={config.device}; try graph=auto")
    _duration("eval_every", config.eval_every, positive=True)
    _number("log_every", config.log_every, at_least=1)
    _duration("checkpoint.every", config.checkpoint.every, positive=True)
    _number("checkpoint.keep", config.checkpoint.keep, at_least=1)


def check_lengths(config: Config, num_train: int) -> None:
    """Raise `ConfigError` where batch, schedule and length of the run do not fit ``num_train`` images."""
    if config.batch_size > num_train:
        raise ConfigError(
            f"batch_size: expected at most the {num_train} training images, got {config.batch_size}; "
            f"try batch_size={num_train}"
        )
    per_epoch = steps_per_epoch(config, num_train)
    total = total_steps(config, num_train)
    length = f"the run's {total} updates" + (f" (epochs={config.epochs})" if config.steps is None else "")
    warmup = to_steps(config.schedule.warmup, per_epoch)
    if warmup > total:
        raise ConfigError(
            f"schedule.warmup: expected at most {length}, got {config.schedule.warmup} = {warmup} updates; "
            f"try schedule.warmup=0"
        )
    if isinstance(config.schedule, MultiStepConfig):
        milestones = [to_steps(milestone, per_epoch) for milestone in config.schedule.milestones]
        if any(later <= earlier for earlier, later in pairwise(milestones)):
            raise ConfigError(
                f"schedule.milestones: expected ascending, got {_plain(config.schedule.milestones)} = "
                f"{milestones} updates"
            )
        if milestones and milestones[-1] >= total:
            raise ConfigError(
                f"schedule.milestones: expected all before the end of {length}, got "
                f"{config.schedule.milestones[-1]} = {milestones[-1]} updates"
            )


def _number(
    key: str,
    value: float,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> None:
    bounds = {">=": at_least, ">": above, "<=": at_most, "<": below}
    fits = (
        abs(value) <= sys.float_info.max  # neither infinite nor NaN, nor a whole number beyond what a float holds
        and (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    )
    if not fits:
        if isinstance(value, int) and value > sys.float_info.max:
            bounds["<="] = sys.float_info.max
        wanted = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None)
        raise ConfigError(f"{key}: expected a number {wanted or 'that is finite'}, got {value}")


def _choice(key: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        nearest = nearest_name(value, options)
        hint = f"; did you mean {key}={nearest}?" if nearest else ""
        raise ConfigError(f"{key}: expected one of {', '.join(options)}, got {value!r}{hint}")


def _duration(key: str, value: Any, *, positive: bool = False) -> None:
    try:
        number, _ = parse_duration(value)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None
    if positive and number == 0:
        raise ConfigError(f"{key}: expected more than 0, got {value}")


def _name(group: str, option: Any) -> None:
    if option.name != option.NAME:
        raise ConfigError(
            f"{group}.name: expected {option.NAME!r}, which names the option itself, got {option.name!r}; "
            f"to change the option write {group}={option.name}"
        )


def _plain(values: list[Any]) -> str:
    return "[" + ", ".join(str(value) for value in values) + "]"


def nearest_name(name: str, names: Any) -> str | None:
    """The one of ``names`` that looks most like ``name``, if any does."""
    matches = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_keys(node: Any, schema: Any, prefix: str = "") -> list[str]:
    """Dotted keys of a composed config that its schema does not have: what ``+key=value`` smuggles in."""
    unknown = []
    known = {field.name for field in fields(schema)} if is_dataclass(schema) else set()
    for key in node:
        if key not in known:
            unknown.append(f"{prefix}{key}")
            continue
        child = node._get_node(key)
        object_type = child._metadata.object_type if child is not None else None
        if is_dataclass(object_type):
            unknown += unknown_keys(child, object_type, f"{prefix}{key}.")
    return unknown


def config_folder() -> Path:
    """``conf/`` beside the package in a checkout, inside the package where it was installed from a wheel."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"expected conf/train.yaml in or beside {package}, found neither; install resnet-train again")


def options_of(group: str) -> list[str]:
    """Options of a config group, from the YAML files."""
    folder = config_folder() / group
    return sorted(path.stem for path in folder.glob("*.yaml")) if folder.is_dir() else []
