"""Copies of everything that a step changes, and whether two of them agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resnet_train.training.state import TrainState

GRADIENTS = "gradients"
FAINT = 0.1


@dataclass(frozen=True)
class StateCopy:
    """What a step has left, or is about to change; on the device."""

    tensors: dict[str, list[Tensor]]  # by kind
    loss_scale: dict[str, Any]
    step: int

    @classmethod
    def of(cls, state: TrainState) -> StateCopy:
        """Copy what ``state`` holds."""
        copies = {kind: [tensor.clone() for tensor in tensors] for kind, tensors in changing(state).items()}
        return cls(copies, state.scaler.state_dict(), state.step)

    @torch.no_grad()
    def restore(self, state: TrainState) -> None:
        """Write the copies into the tensors that ``state`` holds, which stay where they are; make missing gradients."""
        trained = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
        for parameter, copy in zip(trained, self.tensors[GRADIENTS], strict=True):
            if parameter.grad is None:
                parameter.grad = torch.empty_like(copy)
        for kind, tensors in changing(state).items():
            for tensor, copy in zip(tensors, self.tensors[kind], strict=True):
                tensor.copy_(copy)
        if self.loss_scale:
            state.scaler.load_state_dict(self.loss_scale)
        state.step = self.step


def changing(state: TrainState) -> dict[str, list[Tensor]]:
    """The tensors that a step changes, by kind; after a step, since its optimizer has made none before."""
    kinds: dict[str, list[Tensor]] = {}
    for owner, model in (("", state.model), ("averaged ", state.ema)):
        if model is not None:
            kinds[f"{owner}parameters"] = [parameter.detach() for parameter in model.parameters()]
            for name, buffer in model.named_buffers():
                kinds.setdefault(owner + name.rpartition(".")[2], []).append(buffer)
    for values in state.optimizer.state.values():
        for key, value in values.items():
            kinds.setdefault(f"optimizer's {key}", []).append(value)
    kinds[GRADIENTS] = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    return kinds


def disagreement(found: StateCopy, expected: StateCopy, before: StateCopy, *, bound: float) -> str:
    """The first kind of tensor in which ``found`` is not ``expected``; empty where there is none.

    A tensor agrees if it is off by at most ``bound`` of what the step has moved it (a gradient: of itself), by the
    Euclidean norm. To each movement is added `FAINT` of what is usual in its kind, root mean square per value: the
    gradient of a bias before a norm, for one, is nothing but rounding.
    What is no floating-point number, or a single one, has to be equal, and so has everything with a ``bound`` of 0.
    """
    if (found.loss_scale, found.step) != (expected.loss_scale, expected.step):
        return "loss scale"
    for kind, tensors in expected.tensors.items():
        far: list[tuple[float, float, int]] = []
        for one, other, old in zip(found.tensors[kind], tensors, before.tensors[kind], strict=True):
            if not bound or other.numel() == 1 or not other.is_floating_point():
                if not torch.equal(one, other):
                    return kind
                continue
            moved = other if kind == GRADIENTS else other - old
            off, moved_by = torch.stack([(one - other).double().norm(), moved.double().norm()]).tolist()
            far.append((off, moved_by, other.numel()))
        values = sum(size for *_, size in far)
        usual = math.sqrt(sum(moved_by**2 for _, moved_by, _ in far) / values) if values else 0.0
        # NaN is not near: hence "not all near" and not "any far".
        if not all(off <= bound * (moved_by + FAINT * usual * math.sqrt(size)) for off, moved_by, size in far):
            return kind
    return ""
