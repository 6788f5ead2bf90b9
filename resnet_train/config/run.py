"""The top level of a configuration, and the checks that need more than one group.

Types live in this room, values in ``conf/``: no field has a default, so every number that a run uses stands in a YAML
file. Hydra merges the YAML into the dataclasses, which makes a wrong key or type fail by name; `Config.__post_init__`
then checks ranges and contradictions. Nothing here imports torch: a wrong configuration is refused within a second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from resnet_train.config import checks
from resnet_train.config.dataset import ImageFolderConfig, known_num_train
from resnet_train.config.dataset_checks import check_dataset
from resnet_train.config.durations import Duration, parse_duration, to_steps
from resnet_train.config.expected import ExpectedConfig, check_expected
from resnet_train.config.model import check_model
from resnet_train.config.optim import check_optim
from resnet_train.config.schedule import MultiStepConfig, check_schedule
from resnet_train.config.stopping import EarlyStopConfig, check_early_stop, seconds_of
from resnet_train.errors import ConfigError

MAX_STEPS = 10**12  # thirty years at a thousand steps a second


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
    dataset: Any  # a DatasetConfig
    optim: Any  # SGDConfig | AdamWConfig
    schedule: Any  # CosineConfig | LinearConfig | MultiStepConfig | ConstantConfig
    epochs: int | None
    steps: int | None
    batch_size: int  # images per step, over all devices and micro-batches
    accumulate: int  # micro-batches per step
    label_smoothing: float
    class_weights: Any  # none, inverse, sqrt, or a number for each class
    balanced_sampling: bool
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
    diagnostics: bool
    eval_every: Any  # duration
    log_every: int  # steps
    checkpoint: CheckpointConfig
    early_stop: EarlyStopConfig
    max_time: str | None  # of a session
    resume: str | None
    resume_force: bool
    init_from: str | None
    freeze: list[str]  # names of modules
    summary: bool
    find_lr: bool
    expected: ExpectedConfig | None  # of a recipe; not saved with a run

    def __post_init__(self) -> None:
        """Raise `ConfigError` for the first value that is out of range or contradicts another."""
        for name in ("channels_last", "compile", "graph"):
            setattr(self, name, getattr(self, name).lower())  # YAML's true arrives as True
        check_model(self.model)
        check_dataset(self.dataset)
        check_optim(self.optim)
        check_schedule(self.schedule, self.optim.lr)
        check_top_level(self)
        if self.expected is not None:
            check_expected(self.expected)
        num_train = known_num_train(self.dataset)
        if num_train is not None:
            check_lengths(self, num_train)

    @property
    def question(self) -> str | None:
        """The key that asks for a look alone, after which nothing is trained or written; None for a run."""
        return next((key for key in ("summary", "find_lr") if getattr(self, key)), None)


def steps_per_epoch(config: Config, num_train: int) -> Fraction:
    """Steps per epoch, exact: 50,000 images at batch 128 are 390.625."""
    return Fraction(num_train, config.batch_size)


def total_steps(config: Config, num_train: int) -> int:
    """Steps of the whole run."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return to_steps(config.epochs, steps_per_epoch(config, num_train))


def check_top_level(config: Config) -> None:
    """Raise `ConfigError` for the values that stand outside the groups."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,99}", config.name, re.ASCII):
        raise ConfigError(f"name: expected letters, digits and . _ + - (at most 100), got {config.name!r}")
    _check_epochs_or_steps(config)
    _check_step(config)
    checks.number("seed", config.seed, at_least=0)
    _check_machine(config)
    checks.duration("eval_every", config.eval_every, positive=True)
    checks.number("log_every", config.log_every, at_least=1)
    checks.duration("checkpoint.every", config.checkpoint.every, positive=True)
    checks.number("checkpoint.keep", config.checkpoint.keep, at_least=1)
    _check_end(config)
    _check_freeze(config.freeze)


def _check_end(config: Config) -> None:
    """What ends a run or a session early."""
    dataset = config.dataset
    own = dataset.HAS_VAL or isinstance(dataset, ImageFolderConfig)  # which is known when it is read
    check_early_stop(config.early_stop, has_val=dataset.val_size > 0 or own)
    if config.max_time is not None:
        seconds_of(config.max_time)


def _check_freeze(names: list[str]) -> None:
    """Which modules there are is found when the network is built."""
    for name in names:
        if not re.fullmatch(r"\w+(\.\w+)*", name):
            raise ConfigError(f"freeze: expected names of modules, as in [conv1,bn1,layer1], got {name!r}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"freeze: expected each module once, got {twice[0]} twice; leave one out")


def _check_epochs_or_steps(config: Config) -> None:
    if config.epochs is not None and config.steps is not None:
        raise ConfigError(
            f"epochs={config.epochs} and steps={config.steps} contradict each other: give one; "
            f"for {config.steps} steps add epochs=null"
        )
    if config.epochs is None and config.steps is None:
        raise ConfigError("epochs: expected a length for the run, got neither epochs nor steps; try epochs=10")
    if config.epochs is not None:
        checks.number("epochs", config.epochs, at_least=1)
    if config.steps is not None:
        checks.number("steps", config.steps, at_least=1, at_most=MAX_STEPS)


def _check_step(config: Config) -> None:
    """What a single step is made of."""
    checks.number("batch_size", config.batch_size, at_least=1)
    checks.number("accumulate", config.accumulate, at_least=1)
    if config.batch_size % config.accumulate:
        raise ConfigError(
            f"batch_size ({config.batch_size}) must be divisible by accumulate ({config.accumulate}); "
            f"try batch_size={max(1, config.batch_size // config.accumulate) * config.accumulate}"
        )
    checks.number("label_smoothing", config.label_smoothing, at_least=0, below=1)
    _check_class_weights(config.class_weights)
    if config.clip_grad_norm is not None:
        checks.number("clip_grad_norm", config.clip_grad_norm, above=0)
    if config.ema_decay is not None:
        checks.number("ema_decay", config.ema_decay, above=0, below=1)


def _check_class_weights(asked: Any) -> None:
    """How many classes there are is found when the data are read."""
    if isinstance(asked, list):
        for index, value in enumerate(asked):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"class_weights[{index}]: expected a number, got {value!r}")
            checks.number(f"class_weights[{index}]", value, above=0)
    elif asked not in ("none", "inverse", "sqrt"):
        raise ConfigError(
            f"class_weights: expected none, inverse, sqrt or a list with a number for each class, got {asked!r}"
        )


def _check_machine(config: Config) -> None:
    """What is wrong on every machine; what this one cannot do is found when the run is set up."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config.device):
        raise ConfigError(f"device: expected auto, cpu, cuda, cuda:N or mps, got {config.device!r}")
    checks.choice("precision", config.precision)
    checks.choice("channels_last", config.channels_last)
    checks.choice("kernels", config.kernels)
    checks.choice("compile", config.compile)
    checks.choice("graph", config.graph)
    fused = config.kernels in ("fused", "experimental_amx")
    if fused and config.compile == "true":
        raise ConfigError(
            f"compile=true needs operations that torch.compile can look into, got kernels={config.kernels}; "
            f"try kernels=auto"
        )
    if fused and config.channels_last == "false":
        raise ConfigError(f"kernels={config.kernels} needs channels_last, got channels_last=false; try kernels=auto")
    if config.precision in ("fp16", "tf32") and config.device in ("cpu", "mps"):
        raise ConfigError(
            f"precision={config.precision} needs a CUDA device, got device={config.device}; try precision=bf16 or "
            f"precision=fp32"
        )
    if config.graph == "true" and config.device in ("cpu", "mps"):
        raise ConfigError(f"graph=true needs a CUDA device, got device={config.device}; try graph=auto")


def check_lengths(config: Config, num_train: int) -> None:
    """Raise `ConfigError` where batch, schedule and length of the run do not fit ``num_train`` images."""
    if config.batch_size > num_train:
        sizes = {"train_size": config.dataset.train_size, "val_size": config.dataset.val_size}
        why = ", ".join(f"dataset.{key}={size}" for key, size in sizes.items() if size)
        raise ConfigError(
            f"batch_size: expected at most the {num_train} training images{f' ({why})' if why else ''}, got "
            f"{config.batch_size}; try batch_size={num_train}"
        )
    per_epoch = steps_per_epoch(config, num_train)
    total = total_steps(config, num_train)
    if total > MAX_STEPS:
        raise ConfigError(f"epochs: expected at most {MAX_STEPS:g} steps, got {config.epochs} = {total} steps")
    length = f"the run's {total} steps" + (f" (epochs={config.epochs})" if config.steps is None else "")
    warmup = to_steps(config.schedule.warmup, per_epoch)
    if warmup > total:
        raise ConfigError(
            f"schedule.warmup: expected at most {length}, got {_with_steps(config.schedule.warmup, warmup)}; "
            f"try schedule.warmup=0"
        )
    if isinstance(config.schedule, MultiStepConfig):
        given = config.schedule.milestones
        milestones = [to_steps(milestone, per_epoch) for milestone in given]
        if any(later <= earlier for earlier, later in pairwise(milestones)):
            listed = ", ".join(str(milestone) for milestone in given)
            raise ConfigError(f"schedule.milestones: expected ascending, got [{listed}] = {milestones} steps")
        if milestones and milestones[-1] >= total:
            raise ConfigError(
                f"schedule.milestones: expected all before the end of {length}, got "
                f"{_with_steps(given[-1], milestones[-1])}"
            )


def _with_steps(duration: Duration, steps: int) -> str:
    """A duration as it was given, and what it is in steps, unless it was given in steps."""
    return f"{duration}" if parse_duration(duration)[1] == "steps" else f"{duration} = {steps} steps"
