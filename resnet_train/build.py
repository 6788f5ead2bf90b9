"""Config to objects: one short function a group. Nothing here knows the loop or the run directory."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import nn

from resnet_train import fused, fused_cuda, native, optim, schedule
from resnet_train.config.dataset import DatasetConfig
from resnet_train.config.durations import to_steps
from resnet_train.config.model import CifarResNetConfig, ModelConfig, ResNetConfig
from resnet_train.config.optim import AdamWConfig, OptimConfig, SGDConfig
from resnet_train.config.run import Config
from resnet_train.config.schedule import ConstantConfig, CosineConfig, LinearConfig, MultiStepConfig, ScheduleConfig
from resnet_train.data.augment import CropFlipNormalise, crop_flip_normalise
from resnet_train.data.dataset import Dataset, Split
from resnet_train.data.stream import EvalData, TrainData
from resnet_train.engine import Forward, GraphedStep, StepOptions, Update, train_step
from resnet_train.errors import ConfigError
from resnet_train.resnet import CifarResNet, Conv, NormAct, ResNet, norm_act
from resnet_train.schedule import Rate
from resnet_train.seeding import seed_everything
from resnet_train.state import TrainState

EVAL_BATCH_SIZE = 500  # divides 10,000; large enough for a GPU, small enough for any memory


def build_device(name: str) -> torch.device:
    """The device that ``auto`` or a name means; raises `ConfigError` where this machine lacks it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda"):
        available = torch.cuda.device_count()
        index = int(name.partition(":")[2] or 0)
        if index >= available:
            raise ConfigError(
                f"device: expected one of this machine's {available} CUDA devices, got {name}; "
                f"try device={'cuda:' + str(available - 1) if available else 'cpu'}"
            )
        return torch.device("cuda", index)
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: expected a device of this machine, got mps, which it lacks; try device=cpu")
    return torch.device(name)


def build_precision(name: str, device: torch.device) -> tuple[str, str]:
    """fp32, tf32, bf16 or fp16, and why; ``auto`` takes bf16 where the hardware multiplies it faster than fp32.

    Raises `ConfigError` for what ``device`` cannot do.
    """
    if name in ("fp16", "tf32") and device.type != "cuda":
        raise ConfigError(
            f"precision: {name} needs a CUDA device, got {device.type}; try precision=bf16 or precision=fp32"
        )
    if name != "auto":
        emulated = name == "bf16" and device.type == "cpu" and not fused.multiplies_bf16()
        return name, "asked for" + (", though this processor has no bf16 products (AVX512-BF16 or AMX)" * emulated)
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU multiplies it several times faster than fp32"
        return "fp32", "this GPU has no bf16 products"
    if device.type == "cpu":
        if fused.multiplies_bf16():
            return "bf16", "this processor multiplies it faster than fp32 (AVX512-BF16 or AMX)"
        return "fp32", "this processor has no bf16 products (AVX512-BF16 or AMX)"
    return "fp32", f"not measured yet on {device.type}"


@dataclass(frozen=True)
class Kernels:
    """Operations that can be computed in more than one way."""

    name: str  # plain: PyTorch's operations one after another; fused: resnet_train.fused
    reason: str  # why, in a few words
    norm_act: NormAct = norm_act
    conv: Conv = nn.Conv2d
    crop_flip_normalise: CropFlipNormalise = crop_flip_normalise


PLAIN = Kernels("plain", "PyTorch's own")


def build_channels_last(word: str, device: torch.device) -> tuple[bool, str]:
    """Whether the channels of a pixel lie side by side in memory, and why."""
    if word != "auto":
        return word == "true", "asked for"
    if device.type == "mps":
        return True, "not measured yet on mps"
    return True, "what the fastest convolutions and the fused kernels read"


def build_kernels(
    name: str,
    config: ModelConfig,
    device: torch.device,
    *,
    precision: str = "fp32",
    compiled: bool = False,
    channels_last: bool = True,
) -> Kernels:
    """What ``auto``, ``plain`` or ``fused`` means here; raises `ConfigError` where ``fused`` cannot be had."""
    why_not = ""
    if name == "plain":
        why_not = "asked for"
    elif compiled:
        why_not = "torch.compile makes its own"
    elif device.type not in ("cpu", "cuda"):
        why_not = f"the fused ones are for the CPU and CUDA, this runs on {device.type}"
    elif device.type == "cuda" and name == "auto":
        why_not = "the fused ones have not been measured yet on cuda"
    elif not channels_last:
        why_not = "the fused ones need channels_last"
    elif config.activation != "relu":
        why_not = f"the fused ones are for ReLU, this network has {config.activation}"
    if not why_not:
        try:
            if device.type == "cuda":
                words = fused_cuda.prepare()
                return Kernels("fused", words, fused_cuda.norm_act, nn.Conv2d, fused_cuda.crop_flip_normalise)
            return Kernels("fused", fused.prepare(precision), fused.norm_act, fused.Conv2d, fused.crop_flip_normalise)
        except native.Unavailable as error:
            why_not = str(error)
    if name == "fused":
        raise ConfigError(f"kernels: expected to find what kernels=fused needs, but {why_not}; try kernels=auto")
    return Kernels("plain", why_not)


def build_compile(word: str, kernels: Kernels, device: torch.device) -> tuple[bool, str]:
    """Whether the network is compiled by `torch.compile` for training, and why; raises `ConfigError` if it cannot be.

    What pays where: docs/performance.md.
    """
    if word == "false":
        return False, "asked for"
    if word == "true":
        if device.type == "cpu":
            try:
                native.compiler()
            except native.Unavailable as error:
                raise ConfigError(f"compile: expected to find what compile=true needs, but {error}") from error
        return True, "asked for"
    if device.type == "cpu":
        if kernels.name == "fused":
            return False, "slower than the fused kernels"
        return False, "no faster on the processors it was measured on"
    return False, f"not measured yet on {device.type}"


def build_graph(word: str, device: torch.device) -> tuple[bool, str]:
    """Whether updates are recorded as a CUDA graph, and why; raises `ConfigError` where there is no CUDA."""
    if device.type != "cuda":
        if word == "true":
            raise ConfigError(f"graph: graph=true needs a CUDA device, got {device.type}; try graph=auto")
        return False, f"there are none on {device.type}"
    if word == "auto":
        return False, "not measured yet on cuda"
    return word == "true", "asked for"


@dataclass(frozen=True)
class Plan:
    """How a run computes on the machine at hand: every choice, with its reason."""

    device: torch.device
    precision: str
    kernels: Kernels
    channels_last: bool
    compiled: bool
    graph: bool
    reasons: dict[str, str]  # option of the configuration: why it is what it is

    def lines(self) -> list[tuple[str, str]]:
        """The choices as rows of a run's header."""
        rows = [
            ("precision", self.precision, "precision"),
            ("layout", "channels_last" if self.channels_last else "channels first", "channels_last"),
            ("kernels", self.kernels.name, "kernels"),
            ("compile", str(self.compiled).lower(), "compile"),
        ]
        if self.device.type == "cuda":
            rows.append(("graph", str(self.graph).lower(), "graph"))
        return [(name, f"{choice}: {self.reasons[option]}") for name, choice, option in rows]


def build_plan(config: Config) -> Plan:
    """Choose device, arithmetic and kernels; raises `ConfigError` for what this machine cannot do."""
    device = build_device(config.device)
    precision, why_precision = build_precision(config.precision, device)
    channels_last, why_channels_last = build_channels_last(config.channels_last, device)
    kernels = build_kernels(
        config.kernels,
        config.model,
        device,
        precision=precision,
        compiled=config.compile == "true",
        channels_last=channels_last,
    )
    compiled, why_compiled = build_compile(config.compile, kernels, device)
    graph, why_graph = build_graph(config.graph, device)
    reasons = {
        "precision": why_precision,
        "channels_last": why_channels_last,
        "kernels": kernels.reason,
        "compile": why_compiled,
        "graph": why_graph,
    }
    return Plan(device, precision, kernels, channels_last, compiled, graph, reasons)


def build_model(
    config: ModelConfig, *, num_classes: int, seed: int, kernels: Kernels = PLAIN, channels_last: bool = True
) -> CifarResNet | ResNet:
    """The network on the CPU, its weights drawn from the seed alone."""
    shared: dict[str, Any] = {
        "depth": config.depth,
        "num_classes": num_classes,
        "shortcut": config.shortcut,
        "residual": config.residual,
        "width": config.width,
        "preactivation": config.preactivation,
        "dropout": config.dropout,
        "activation": config.activation,
        "conv_bias": config.conv_bias,
        "init": config.init,
        "zero_init_residual": config.zero_init_residual,
        "norm_act": kernels.norm_act,
        "conv": kernels.conv,
    }
    seed_everything(seed, "init")
    model: CifarResNet | ResNet
    match config:
        case CifarResNetConfig():
            model = CifarResNet(**shared)
        case ResNetConfig():
            model = ResNet(**shared, stem=config.stem)  # type: ignore[arg-type]  # checked in config.py
        case _:
            raise TypeError(f"no network for {type(config).__name__}")
    return model.to(memory_format=torch.channels_last) if channels_last else model


def build_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over all parameters of ``model``, on the device where they are."""
    shared = {"lr": config.lr, "weight_decay": config.weight_decay, "decay_norm_and_bias": config.decay_norm_and_bias}
    match config:
        case SGDConfig():
            return optim.sgd(model, momentum=config.momentum, nesterov=config.nesterov, **shared)  # type: ignore[arg-type]
        case AdamWConfig():
            return optim.adamw(model, beta1=config.beta1, beta2=config.beta2, eps=config.eps, **shared)  # type: ignore[arg-type]
        case _:
            raise TypeError(f"no optimizer for {type(config).__name__}")


def build_schedule(config: ScheduleConfig, *, lr: float, total_steps: int, steps_per_epoch: Fraction) -> Rate:
    """The learning rate as a function of the step."""
    warmup_steps = to_steps(config.warmup, steps_per_epoch)
    rate: Rate
    match config:
        case CosineConfig():
            rate = schedule.cosine(lr, total_steps=total_steps, warmup_steps=warmup_steps, final_lr=config.final_lr)
        case LinearConfig():
            rate = schedule.linear(lr, total_steps=total_steps, warmup_steps=warmup_steps, final_lr=config.final_lr)
        case MultiStepConfig():
            milestones = [to_steps(milestone, steps_per_epoch) for milestone in config.milestones]
            rate = schedule.multistep(lr, milestones=milestones, gamma=config.gamma)
        case ConstantConfig():
            rate = schedule.constant(lr)
        case _:
            raise TypeError(f"no schedule for {type(config).__name__}")
    return schedule.with_warmup(
        rate,
        lr,
        warmup_steps=warmup_steps,
        start=config.warmup_start,
        shape=config.warmup_shape,  # type: ignore[arg-type]  # checked in config.py
    )


def build_state(
    config: Config,
    *,
    num_classes: int,
    device: torch.device,
    precision: str,
    kernels: Kernels = PLAIN,
    channels_last: bool = True,
) -> TrainState:
    """Model, optimizer and the rest, on the device, before the first update."""
    model = build_model(
        config.model, num_classes=num_classes, seed=config.seed, kernels=kernels, channels_last=channels_last
    ).to(device)
    average = copy.deepcopy(model).requires_grad_(False).eval() if config.ema_decay is not None else None
    scaler = torch.amp.GradScaler("cuda" if device.type == "cuda" else "cpu", enabled=precision == "fp16")
    return TrainState(model, build_optimizer(config.optim, model), scaler, average)


def build_step_options(config: Config, precision: str) -> StepOptions:
    """What one update does."""
    return StepOptions(
        precision=precision,
        accumulate=config.accumulate,
        label_smoothing=config.label_smoothing,
        clip_grad_norm=config.clip_grad_norm,
        ema_decay=config.ema_decay,
    )


def build_forward(state: TrainState, plan: Plan) -> Forward:
    """The way through the network in training: the network itself, or what `torch.compile` makes of it."""
    return torch.compile(state.model, dynamic=False) if plan.compiled else state.model


def build_update(state: TrainState, plan: Plan, options: StepOptions, forward: Forward) -> Update:
    """The function that makes one update of ``state``."""
    if plan.graph:
        return GraphedStep(state, options=options, forward=forward)
    return partial(train_step, state, options=options, forward=forward)


def build_train_data(
    config: Config,
    dataset: Dataset,
    device: torch.device,
    kernels: Kernels = PLAIN,
    *,
    channels_last: bool = True,
) -> TrainData:
    """The endless stream of training batches."""
    return TrainData(
        dataset.train,
        batch_size=config.batch_size,
        seed=config.seed,
        augment=config.dataset.augment,
        mean=config.dataset.mean,
        std=config.dataset.std,
        num_classes=len(dataset.classes),
        device=device,
        channels_last=channels_last,
        crop_flip_normalise=kernels.crop_flip_normalise,
    )


def build_eval_data(
    config: DatasetConfig, split: Split, device: torch.device, *, channels_last: bool = True
) -> EvalData:
    """Every image of a split, once."""
    return EvalData(
        split,
        batch_size=EVAL_BATCH_SIZE,
        mean=config.mean,
        std=config.std,
        device=device,
        channels_last=channels_last,
    )
