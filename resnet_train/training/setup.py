"""What a run is made of: everything is built here from the configuration, without side effects.

Nothing is written, logged or switched here, and nothing knows the run's directory. Three things reach outside:
`load_dataset` may unpack or cache the data set, kernels may have to be compiled, and initialisation seeds the global
random generators.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from resnet_train.config.dataset import DatasetConfig
from resnet_train.config.run import Config
from resnet_train.config.stopping import no_val
from resnet_train.data.dataset import Dataset, Split, load_dataset
from resnet_train.data.stream import EvalData, TrainData
from resnet_train.errors import ConfigError
from resnet_train.models.build import build_model
from resnet_train.models.count import Layer, layers, multiply_adds, num_parameters
from resnet_train.runs import environment
from resnet_train.runs.data_identity import DataIdentity
from resnet_train.runs.memory import check_memory
from resnet_train.runs.summary import Facts
from resnet_train.seeding import seed_everything
from resnet_train.training.class_balance import class_weights, in_words
from resnet_train.training.cuda_graph import GraphedStep, LaunchedStep, Outcome
from resnet_train.training.freeze import freeze, frozen_in_words
from resnet_train.training.launches import FewLaunches
from resnet_train.training.lr_schedule import LRSchedule, build_lr_schedule
from resnet_train.training.memory import eval_batch_size, out_of_memory_while_reading
from resnet_train.training.optim import build_optimizer
from resnet_train.training.plan import Plan, build_plan
from resnet_train.training.recorder import CudaRecorder
from resnet_train.training.self_check import check_against_cpu
from resnet_train.training.state import TrainState
from resnet_train.training.step import Forward, Step, StepOptions, train_step
from resnet_train.training.timetable import Timetable, build_timetable


@dataclass(frozen=True)
class Run:
    """What a run is made of. Only ``state`` changes while it trains."""

    plan: Plan
    state: TrainState
    forward: Forward  # through the network in training
    train_step: Step
    lr_schedule: LRSchedule
    train_data: TrainData
    eval_data: dict[str, EvalData]  # split: its images
    timetable: Timetable
    seed: int
    has_dropout: bool
    classes: tuple[str, ...]
    data: DataIdentity
    left_out: str  # files beside the images, in words
    frozen: str  # modules that do not train, in words
    balance: str  # images and weights of the classes, in words, where they are not treated as they come
    taken: str  # which images serve as what, in words
    image_size: int
    facts: Facts

    @property
    def watched(self) -> str:
        """The split that is evaluated while the run trains; test only where nothing is chosen by it."""
        return "val" if "val" in self.eval_data else "test"

    @property
    def graph(self) -> Outcome:
        """Whether steps are launched as one CUDA graph by now, and why."""
        if isinstance(self.train_step, GraphedStep):
            return self.train_step.outcome
        return Outcome(self.plan.graph, self.plan.reasons["graph"])

    @property
    def out_of_patience(self) -> bool:
        """Whether the validation accuracy has not risen for as long as the run is to wait."""
        return self.timetable.patience is not None and self.state.patience.waited >= self.timetable.patience

    @property
    def last_step(self) -> int:
        """Completed steps after which none is made: all of them, or as many as there are when the patience ends."""
        return self.state.step if self.out_of_patience else self.timetable.total_steps

    def seed_dropout(self, step: int) -> None:
        """Let dropout, if there is any, draw what the seed and the step say; it draws from the global generators."""
        if self.has_dropout:
            seed_everything(self.seed, "dropout", step)


def build(config: Config) -> Run:
    """Everything that ``config`` describes, before its first step.

    Raises `ConfigError` for what does not fit the machine or the data.
    """
    plan = build_plan(config)
    check_memory(config, on_cpu=plan.device.type == "cpu")
    dataset = read_dataset(config)
    if config.early_stop.patience is not None and dataset.val is None:
        raise no_val(config.early_stop.patience)
    timetable = build_timetable(config, len(dataset.train))
    state = build_state(config, plan, num_classes=len(dataset.classes))
    found = layers(state.model, dataset.image_size)
    check_batch_norm(config, found, image_size=dataset.image_size)
    if plan.device.type == "mps":
        size, classes = dataset.image_size, len(dataset.classes)
        check_against_cpu(state.model, plan.device, image_size=size, num_classes=classes)
    forward = build_forward(plan, state)
    labels, names = dataset.train.labels, dataset.classes
    weights = class_weights(config.class_weights, labels, names)
    balance = in_words(weights, labels, names, balanced=config.balanced_sampling)
    weights = None if weights is None else weights.to(plan.device)
    splits = {"test": dataset.test} if dataset.val is None else {"val": dataset.val, "test": dataset.test}
    return Run(
        plan=plan,
        state=state,
        forward=forward,
        train_step=build_train_step(config, plan, state, forward, weights),
        lr_schedule=build_lr_schedule(
            config.schedule,
            lr=config.optim.lr,
            total_steps=timetable.total_steps,
            steps_per_epoch=timetable.steps_per_epoch,
        ),
        train_data=build_train_data(config, plan, dataset),
        eval_data={
            name: build_eval_data(config.dataset, plan, split, batch_size=eval_batch_size(found, plan.device))
            for name, split in splits.items()
        },
        timetable=timetable,
        seed=config.seed,
        has_dropout=bool(config.model.dropout),
        classes=dataset.classes,
        data=dataset.identity,
        left_out=dataset.left_out,
        frozen=frozen_in_words(state.model, config.freeze),
        balance=balance,
        taken=dataset.taken,
        image_size=dataset.image_size,
        facts=build_facts(config, plan, dataset, state.model),
    )


def build_facts(config: Config, plan: Plan, dataset: Dataset, model: nn.Module) -> Facts:
    """What the summary says of the run before it has trained."""
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    return Facts(
        name=config.name,
        model=config.model.name,
        parameters=num_parameters(model),
        multiply_adds=multiply_adds(model, dataset.image_size),
        dataset=config.dataset.name,
        images={name: len(split) for name, split in splits.items() if split is not None},
        classes=list(dataset.classes),
        device=str(plan.device),
        hardware=environment.hardware(plan.device),
        precision=plan.precision,
        kernels=plan.backend.name,
        compiled=plan.compiled,
        graph=plan.graph,
        seed=config.seed,
        versions=environment.versions(),
        git_commit=environment.git_commit(),
    )


def read_dataset(config: Config) -> Dataset:
    """The data set in host memory; raises `ConfigError` where files are missing or corrupt, or too few."""
    with out_of_memory_while_reading():
        return load_dataset(config.dataset, seed=config.seed)


def build_state(config: Config, plan: Plan, *, num_classes: int) -> TrainState:
    """Model, optimizer and the rest, on the device, before the first step; raises `ConfigError` for ``freeze``."""
    model = build_model(
        config.model,
        num_classes=num_classes,
        seed=config.seed,
        channels=config.dataset.channels,
        channels_last=plan.channels_last,
    )
    plan.backend.convert(model)
    model.to(plan.device)
    freeze(model, config.freeze)
    ema = copy.deepcopy(model).requires_grad_(False).eval() if config.ema_decay is not None else None
    scaler = torch.amp.GradScaler("cuda" if plan.device.type == "cuda" else "cpu", enabled=plan.precision == "fp16")
    return TrainState(model, build_optimizer(config.optim, model), scaler, ema)


def check_batch_norm(config: Config, found: list[Layer], *, image_size: int) -> None:
    """Raise `ConfigError` where a batch norm would see one value per channel, whose variance is nothing."""
    size, accumulate = config.batch_size, config.accumulate
    pixels = min(layer.pixels_out for layer in found if layer.pixels_out)
    if size // accumulate * pixels == 1:
        fewer = [number for number in range(1, accumulate) if size % number == 0]
        raise ConfigError(
            f"batch_size: expected more than one value per channel in each batch norm, got one image of one pixel "
            f"(batch_size={size}, accumulate={accumulate}, {image_size}x{image_size} images); "
            f"try {f'accumulate={fewer[-1]}' if fewer else 'batch_size=2'}"
        )


def build_step_options(config: Config, plan: Plan, weights: Tensor | None = None) -> StepOptions:
    """What one step does."""
    return StepOptions(
        precision=plan.precision,
        accumulate=config.accumulate,
        label_smoothing=config.label_smoothing,
        class_weights=weights,
        clip_grad_norm=config.clip_grad_norm,
        ema_decay=config.ema_decay,
    )


def build_train_step(
    config: Config, plan: Plan, state: TrainState, forward: Forward, weights: Tensor | None = None
) -> Step:
    """The function that makes one step of ``state``."""
    options = build_step_options(config, plan, weights)
    if plan.graph:
        required = config.graph == "true"
        recorder = CudaRecorder(plan.device)
        return GraphedStep(state, options=options, recorder=recorder, forward=forward, required=required)
    if plan.device.type == "cuda":
        return LaunchedStep(state, options=options, device=plan.device, forward=forward)
    return partial(train_step, state, options=options, forward=forward)


def build_forward(plan: Plan, state: TrainState) -> Forward:
    """The way through the network in training: the network itself, or the same to the bit in fewer kernels.

    On a CPU, where nothing is launched, there is nothing to gain; `torch.compile` joins casts by itself.
    """
    if plan.compiled:
        return torch.compile(state.model, dynamic=False)
    return FewLaunches(state.model, precision=plan.precision) if plan.device.type == "cuda" else state.model


def build_train_data(config: Config, plan: Plan, dataset: Dataset) -> TrainData:
    """The endless stream of training batches."""
    return TrainData(
        dataset.train,
        batch_size=config.batch_size,
        seed=config.seed,
        balanced=config.balanced_sampling,
        augment=config.dataset.augment,
        mean=config.dataset.mean,
        std=config.dataset.std,
        num_classes=len(dataset.classes),
        device=plan.device,
        channels_last=plan.channels_last,
        crop_flip_normalise=plan.backend.crop_flip_normalise,
    )


def build_eval_data(config: DatasetConfig, plan: Plan, split: Split, *, batch_size: int) -> EvalData:
    """Every image of a split, once."""
    return EvalData(
        split,
        batch_size=batch_size,
        mean=config.mean,
        std=config.std,
        device=plan.device,
        channels_last=plan.channels_last,
    )
