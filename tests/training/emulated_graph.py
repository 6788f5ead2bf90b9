"""A CUDA graph for the CPU: what is recorded is every operation with its very tensors; a replay runs them again.

As on a GPU, a recording changes no tensor that was there before and draws no random number; Python takes no part in a
replay, so that numbers stay what they were; memory is that of the recording; to read a value on the host is an error;
and what no operation of the recording has written may hold anything, so all that it made is poisoned before each
replay.

It cannot show what streams, the allocator and cuDNN do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")
READS = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal", "is_nonzero"}
WRITES_UNSAID = {"native_batch_norm"}  # into its running statistics; its schema does not say so


class Refused(RuntimeError):
    """What the emulated device cannot record, or was told not to."""


@dataclass
class Operation:
    """One recorded call, and the tensors that it made."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    made: list[Tensor]
    written: list[Tensor]  # what it made, or changed in place

    def replay(self) -> None:
        again = self.call(*self.args, **self.kwargs)
        for old, new in zip(tensors(self.result), tensors(again), strict=True):
            if any(old is tensor for tensor in self.made):
                old.copy_(new)


Replayed = Callable[[int, Operation], None]


class EmulatedRecorder:
    """See `resnet_train.training.recorder.Recorder`.

    ``refuse_at``: number of the operation at which a recording fails; ``replayed``: what a replay does with each
    operation instead of computing it, to plant faults.
    """

    def __init__(self, *, refuse_at: int | None = None, replayed: Replayed | None = None) -> None:
        self._refuse_at, self._replayed = refuse_at, replayed
        self.operations: list[Operation] = []
        self.replays = 0

    def run(self, step: Callable[[], Result]) -> Result:
        return step()

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        random = torch.get_rng_state()
        recording = _Recording(self.operations, self._refuse_at)
        try:
            with recording:
                step()
        finally:
            torch.set_rng_state(random)
            recording.undo()
        return self._replay

    @torch.no_grad()
    def _replay(self) -> None:
        self.replays += 1
        with torch._C._AutoDispatchBelowAutograd():
            for tensor in (tensor for operation in self.operations for tensor in operation.made):
                tensor.fill_(anything(tensor.dtype, self.replays))
            for number, operation in enumerate(self.operations):
                if self._replayed is None:
                    operation.replay()
                else:
                    self._replayed(number, operation)


def anything(dtype: torch.dtype, replays: int) -> float | int | bool:
    """What memory holds that nobody has written: nothing that a step could do with, nor the same twice."""
    if dtype == torch.bool:
        return replays % 2 == 1
    return torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max - replays


class _Recording(TorchDispatchMode):
    def __init__(self, operations: list[Operation], refuse_at: int | None) -> None:
        super().__init__()
        self._operations, self._refuse_at = operations, refuse_at
        self._before: dict[int, tuple[Tensor, Tensor]] = {}  # by memory: all of it, and a copy
        self._own: set[int] = set()  # memory that came to be while recording

    def __torch_dispatch__(
        self, call: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, call.overloadpacket.__name__
        if name in READS:
            raise Refused(f"operation not permitted when stream is capturing: {name}")
        if len(self._operations) == self._refuse_at:
            raise Refused(f"operation {self._refuse_at}, {name}, was not to be recorded")
        given = tensors((args, kwargs))
        changed: list[Tensor] = []
        if call._schema.is_mutable or name in WRITES_UNSAID:
            changed = given if name in WRITES_UNSAID else _mutable(call, args, kwargs)
            for tensor in changed:
                self._save(tensor)
        result = call(*args, **kwargs)
        known = {memory(tensor) for tensor in given}
        made = [tensor for tensor in tensors(result) if memory(tensor) not in known]
        self._own |= {memory(tensor) for tensor in made}
        if made or changed:  # else it is a view
            written = made + ([] if name in WRITES_UNSAID else changed)
            self._operations.append(Operation(call, args, kwargs, result, made, written))
        return result

    def _save(self, tensor: Tensor) -> None:
        key = memory(tensor)
        if key not in self._own and key not in self._before:
            whole = tensor.detach().as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
            self._before[key] = whole, whole.clone()

    @torch.no_grad()
    def undo(self) -> None:
        """Give the tensors that were there before the recording their values."""
        with torch._C._AutoDispatchBelowAutograd():
            for whole, before in self._before.values():
                whole.copy_(before)


def _mutable(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that ``call`` writes into, by its schema."""
    found: list[Tensor] = []
    for number, argument in enumerate(call._schema.arguments):
        if argument.is_write:
            found += tensors(args[number] if number < len(args) else kwargs.get(argument.name))
    return found


def tensors(tree: Any) -> list[Tensor]:
    """Every tensor in a nest of lists and dictionaries."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def memory(tensor: Tensor) -> int:
    """What two views of the same memory have in common."""
    return tensor.untyped_storage()._cdata
