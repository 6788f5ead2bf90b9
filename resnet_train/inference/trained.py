"""A network as a run left it: configuration, classes, weights, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resnet_train.cli.compose import compose_saved
from resnet_train.cli.overrides import parse
from resnet_train.config.dataset import image_size
from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.inference.find import checkpoint_of
from resnet_train.inference.spec import Spec
from resnet_train.kernels import cpu
from resnet_train.models.build import build_model
from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.runs.checkpoint_file import CorruptCheckpoint
from resnet_train.runs.saved import config_of, saved_config
from resnet_train.runs.summary import Summary, read_summary
from resnet_train.runs.weights import Weights, digest_of
from resnet_train.training.plan import Plan, build_device, build_plan
from resnet_train.training.state import load_weights


@dataclass(frozen=True)
class Trained:
    """What a checkpoint says, ready to be used."""

    path: Path  # the checkpoint
    directory: Path | None  # of the run; None for a checkpoint that lies elsewhere
    which: str  # last, best, or the name of the file
    config: Config
    classes: tuple[str, ...]
    weights: Weights  # the moving average where there is one: what the run evaluates
    step: int
    precision: str  # in which the run computed
    data: Any  # identity of its data, as `DataIdentity.plain`; None where the checkpoint has none
    summary: Summary | None

    def spec(self) -> Spec:
        """What the network takes and gives."""
        score = None if self.summary is None else self.summary.last.get("test")
        dataset = self.config.dataset
        return Spec(
            name=self.config.name,
            model=dict(vars(self.config.model)),
            dataset=dataset.name,
            classes=self.classes,
            image_size=image_size(dataset),
            mean=tuple(dataset.mean),
            std=tuple(dataset.std),
            step=self.step,
            accuracy=score.accuracy if score is not None and score.step == self.step else None,
            command="" if self.summary is None else self.summary.command,
            weights_sha256=digest_of(self.weights),
        )


def read_trained(path: Path, *, which: str = "result", overrides: Sequence[str] = ()) -> Trained:
    """Read a run directory, or a checkpoint file of one.

    ``which`` checkpoint of a run: see `find.checkpoint_of`. ``overrides`` are laid over the saved configuration: where
    its data lie now. Raises `ConfigError` for whatever is not a whole checkpoint.
    """
    file = checkpoint_of(path, which) if path.is_dir() else path
    directory = path if path.is_dir() else _run_of(file)
    try:
        content = read_checkpoint(file)
    except CorruptCheckpoint as error:
        raise ConfigError(
            f"{file}: expected a checkpoint of resnet-train, got one that is corrupt: {error}; name another checkpoint"
        ) from error
    saved = config_of(content) or (None if directory is None else saved_config(directory))
    if saved is None:
        raise ConfigError(f"{file}: expected a configuration in the checkpoint or beside it, got none; name the run")
    config = compose_saved(parse(list(overrides)), saved).config
    try:
        state = content["state"]
        weights = state["model"] if state["ema"] is None else state["ema"]
        found = Trained(
            path=file,
            directory=directory,
            which="best" if which == "result" and file.name == "best.pt" else "last" if which == "result" else which,
            config=config,
            classes=tuple(content["classes"]),
            weights=dict(weights),
            step=state["step"],
            precision=content["precision"],
            data=content.get("data"),
            summary=None if directory is None else read_summary(directory),
        )
        named = all(isinstance(name, str) for name in found.classes) and isinstance(found.precision, str)
        tensors = all(isinstance(tensor, torch.Tensor) for tensor in found.weights.values())
        if not named or not tensors or type(found.step) is not int or len(found.classes) < 2:
            raise TypeError("fields of other types")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{file}: expected a checkpoint of resnet-train, got another or a corrupt one; name another checkpoint"
        ) from error
    return found if path.is_dir() else replace(found, which=file.name)


def _run_of(file: Path) -> Path | None:
    """The run that a checkpoint lies in."""
    return file.absolute().parents[1] if file.absolute().parent.name == "checkpoints" else None


def build_network(config: Config, plan: Plan, weights: Weights, *, num_classes: int, source: str) -> nn.Module:
    """The network of ``config`` with ``weights``, for evaluation, on the plan's device.

    Raises `ConfigError` where the weights are of another network; ``source`` begins its line.
    """
    model = build_model(
        config.model,
        num_classes=num_classes,
        seed=config.seed,
        channels=config.dataset.channels,
        channels_last=plan.channels_last,
    )
    plan.backend.convert(model)
    load_weights(model, weights, source=source, classifier_may_differ=False)
    return model.to(plan.device).eval().requires_grad_(False)


def evaluation_plan(config: Config, *, device: str, precision: str) -> Plan:
    """How a network is used on this machine: as the run evaluated it, as far as the machine can.

    ``device``: auto, cpu, cuda, ... as for a run, whatever the run had. ``precision`` is the run's own; half precision
    that the device lacks becomes fp32. Raises `ConfigError` for a device that is not there.
    """
    found = build_device(device)
    if found.type != "cuda" and precision in ("fp16", "tf32"):
        precision = "fp32"
    if found.type == "cpu" and precision == "bf16" and not cpu.has_bf16():
        precision = "fp32"
    asked = "plain" if config.compile == "true" else config.kernels  # a compiled run evaluates plainly
    graph = "false" if config.graph == "false" else "auto"  # on CUDA the kernels go by it
    config = replace(config, device=str(found), precision=precision, compile="false", graph=graph, kernels="auto")
    if asked == "auto":
        return build_plan(config)
    try:
        return build_plan(replace(config, kernels=asked))
    except ConfigError:
        return build_plan(config)
