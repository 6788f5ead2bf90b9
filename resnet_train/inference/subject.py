"""What is evaluated: a run, a checkpoint, an exported file, or weights from elsewhere; and on which data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_train.cli.compose import load_config
from resnet_train.cli.overrides import key_of, values_of
from resnet_train.config.dataset import image_size
from resnet_train.config.run import Config
from resnet_train.config.store import SCHEMA
from resnet_train.errors import ConfigError
from resnet_train.inference.classifier import Classifier, torch_classifier
from resnet_train.inference.evaluation import Asked, own_score
from resnet_train.inference.exported import load_exported
from resnet_train.inference.find import EXPORTED, find
from resnet_train.inference.spec import Spec
from resnet_train.inference.trained import Trained, build_network, evaluation_plan, read_trained
from resnet_train.runs.weights import Weights, digest_of, read_weights
from resnet_train.training.plan import Plan


@dataclass(frozen=True)
class Subject:
    """A network that is about to be evaluated, and the configuration that says on which data."""

    config: Config
    name: str
    which: str  # checkpoint or file
    step: int
    classes: tuple[str, ...]  # empty where the file does not say
    trained: Trained | None = None
    exported: Classifier | None = None
    weights: Weights | None = None
    path: Path | None = None
    plan: Plan | None = None

    @property
    def data(self) -> Any:
        """The identity of the data that the run was trained on; None where it is not known."""
        return None if self.trained is None else self.trained.data

    def classifier(self, classes: Sequence[str]) -> Classifier:
        """The network, which answers with ``classes`` where it knows no names of its own."""
        if self.exported is not None:
            return self.exported
        assert self.plan is not None
        if self.trained is not None:
            weights, path, spec = self.trained.weights, self.trained.path, self.trained.spec()
            source = f"the weights in {path}"
        else:
            assert self.weights is not None and self.path is not None
            weights, path, spec = self.weights, self.path, spec_of(self.config, classes, self.weights)
            source = f"--weights: the weights in {path}"
        model = build_network(self.config, self.plan, weights, num_classes=len(spec.classes), source=source)
        return torch_classifier(model, spec, self.plan, origin=str(path))

    def folder(self, asked: Asked) -> Path | None:
        """Where the files go by default: into the run's directory, if there is one."""
        if self.trained is None or self.trained.directory is None:
            return None
        stem = Path(self.which).stem
        views = "" if asked.tta == "none" else f"-{asked.tta}"
        below = f"-below-{asked.tta_below:g}" if views and asked.tta_below < 1 else ""
        return self.trained.directory / "eval" / f"{asked.split}-{stem}{views}{below}"

    def facts(self, asked: Asked) -> dict[str, Any]:
        """What a reader of the figures has to know, in plain types."""
        runs_on = self.exported.runs_on if self.exported is not None else ""
        if self.plan is not None:
            runs_on = f"{self.plan.device} in {self.plan.precision}, {self.plan.backend.name} kernels"
        found: dict[str, Any] = {
            "name": self.name,
            "checkpoint": self.which,
            "step": self.step,
            "dataset": self.config.dataset.name,
            "split": asked.split,
            "tta_below": asked.tta_below,
            "runs_on": runs_on,
        }
        summary = None if self.trained is None else self.trained.summary
        own = own_score(summary, asked, self.step)
        if own is not None and summary is not None:
            computed = f"{summary.precision} with {summary.kernels} kernels on {summary.hardware}"
            found["summary"] = {"correct": own[0], "count": own[1], "computed": computed}
        return found


def spec_of(config: Config, classes: Sequence[str], weights: Weights) -> Spec:
    """What the network of a configuration takes and gives, whose weights come from elsewhere."""
    dataset = config.dataset
    return Spec(
        name=config.name,
        model=dict(vars(config.model)),
        dataset=dataset.name,
        classes=tuple(classes),
        image_size=image_size(dataset),
        mean=tuple(dataset.mean),
        std=tuple(dataset.std),
        weights_sha256=digest_of(weights),
    )


def open_subject(
    words: Sequence[str], *, weights: str | None, checkpoint: str, device: str, precision: str | None
) -> Subject:
    """What a command line asks to be evaluated: ``RUN [OVERRIDES]``, or overrides alone with ``weights``.

    Raises `ConfigError` where there is no such network.
    """
    if weights is not None:
        return _foreign(Path(weights), words, device=device, precision=precision)
    name, *overrides = words
    path = find(name)
    if path.suffix in EXPORTED:
        return _exported(path, overrides, device=device)
    trained = read_trained(path, which=checkpoint, overrides=overrides)
    plan = evaluation_plan(trained.config, device=device, precision=precision or trained.precision)
    return Subject(
        trained.config, trained.config.name, trained.which, trained.step, trained.classes, trained=trained, plan=plan
    )


def _foreign(path: Path, overrides: Sequence[str], *, device: str, precision: str | None) -> Subject:
    """Weights of another project, in the network that the overrides describe."""
    config = load_config(overrides)
    weights = read_weights(path, key="--weights")
    plan = evaluation_plan(config, device=device, precision=precision or "fp32")
    return Subject(config, config.name, path.name, 0, (), weights=weights, path=path, plan=plan)


def _exported(path: Path, overrides: Sequence[str], *, device: str) -> Subject:
    """A file of ``resnet-export``, on the data set that its metadata name."""
    classifier = load_exported(path, device=device)
    spec = classifier.spec
    given = {key_of(override) for override in overrides}
    option = (values_of(overrides, "dataset") or [spec.dataset])[-1]
    wanted = {"dataset": spec.dataset, "dataset.channels": spec.channels}
    # The file normalises by itself, but a configuration has as many numbers as channels:
    wanted |= {"dataset.mean": list(spec.mean), "dataset.std": list(spec.std)}
    if getattr(SCHEMA.get(f"dataset/{option}"), "IMAGE_SIZE", 0) is None:
        wanted["dataset.image_size"] = spec.image_size
    own = [f"{key}={value}" for key, value in wanted.items() if key not in given]
    config = load_config([*own, *overrides])
    if image_size(config.dataset) != spec.image_size:
        raise ConfigError(
            f"{path}: expected images of {spec.image_size} pixels, got those of {config.dataset.name}, which have "
            f"{image_size(config.dataset)}; name the data set with dataset=NAME"
        )
    return Subject(config, spec.name, path.name, spec.step, classifier.classes, exported=classifier)
