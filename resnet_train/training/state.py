"""Everything that training changes, in one object."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from resnet_train.runs.summary import Score
from resnet_train.training.misfit import differences, misfit
from resnet_train.training.optim import load_optimizer


@dataclass
class Progress:
    """Training metrics that were read from the device but do not fill their interval yet."""

    window: list[list[float]] = field(default_factory=list)  # [loss, accuracy] of each step since the last log
    epoch: list[list[float]] = field(default_factory=list)  # the same since the last end of an epoch


@dataclass
class Patience:
    """How long the accuracy on the validation split has not risen, for ``early_stop``; counted in every run."""

    best: float = -1.0  # the accuracy that has to be exceeded
    waited: int = 0  # evaluations since it was reached

    def wait(self, accuracy: float, *, min_delta: float) -> None:
        """Take another evaluation: it counts as a rise where it is more than ``min_delta`` above the best."""
        if accuracy > self.best + min_delta:
            self.best, self.waited = accuracy, 0
        else:
            self.waited += 1


def load_weights(
    model: nn.Module,
    weights: dict[str, torch.Tensor],
    *,
    source: str = "the weights",
    classifier_may_differ: bool = True,
) -> list[str]:
    """Copy ``weights`` into ``model`` by name; returns what was left as it was, with the reason.

    Only the classifier ``fc`` may differ, since it has a row for each class, and not even that where all of it is
    needed. Raises `ConfigError`, with a table of tensors and shapes, for anything else; ``source`` begins its line.
    """
    own = model.state_dict()
    found = differences(own, weights)
    kept = [one for one in found if classifier_may_differ and one.is_shape and one.name.startswith("fc.")]
    if len(kept) < len(found):
        raise misfit(source, own, weights, [one for one in found if one not in kept])
    left = {one.name for one in kept}
    model.load_state_dict({**own, **{name: value for name, value in weights.items() if name not in left}}, strict=True)
    return [f"{one.name} is {one.got} there and {one.expected} here" for one in kept]


@dataclass
class TrainState:
    """Model, optimizer, loss scaler, moving average, scores, and the one counter: completed steps.

    Wrapped models (compiled, distributed) never enter it, so its keys are the network's own.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: nn.Module | None
    step: int = 0
    last: dict[str, Score] = field(default_factory=dict)  # split: its newest evaluation
    best: dict[str, Score] = field(default_factory=dict)  # split: its best evaluation
    progress: Progress = field(default_factory=Progress)
    patience: Patience = field(default_factory=Patience)

    @property
    def eval_model(self) -> nn.Module:
        """The network that is evaluated: the moving average where there is one."""
        return self.model if self.ema is None else self.ema

    def record(self, split: str, score: Score, *, min_delta: float = 0.0) -> bool:
        """Keep ``score`` as the last of its split, and as the best if it is that; the earlier of two equal ones stays.

        Returns whether it is the best. One on the validation split ends or prolongs the wait for a rise of more than
        ``min_delta``.
        """
        self.last[split] = score
        if split == "val":
            self.patience.wait(score.accuracy, min_delta=min_delta)
        best = self.best.get(split)
        if best is None or score.accuracy > best.accuracy:
            self.best[split] = score
            return True
        return False

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types only, so that a checkpoint loads with ``weights_only=True``."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "step": self.step,
            "last": {split: asdict(score) for split, score in self.last.items()},
            "best": {split: asdict(score) for split, score in self.best.items()},
            "progress": copy.deepcopy(vars(self.progress)),
            "patience": dict(vars(self.patience)),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Load what `state_dict` returned; raises ``RuntimeError`` or ``ValueError`` where names or shapes differ."""
        self.model.load_state_dict(saved["model"], strict=True)
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"], strict=True)
        load_optimizer(self.optimizer, saved["optimizer"])
        if saved["scaler"]:  # else the saved run had none, and this one, of another precision by force, has a new one
            self.scaler.load_state_dict(saved["scaler"])
        self.step = saved["step"]
        self.last = {split: Score(**score) for split, score in saved["last"].items()}
        self.best = {split: Score(**score) for split, score in saved["best"].items()}
        self.progress = Progress(**copy.deepcopy(saved["progress"]))
        self.patience = Patience(**saved.get("patience", {}))  # 0.2.0 did not count: it begins now
