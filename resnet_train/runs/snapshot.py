"""What a checkpoint holds, as it is at one moment, while the run goes on: copied on the device, then to the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Snapshot:
    """Contents in memory of their own."""

    content: Any  # tensors, on a CUDA device where they were on one, in dictionaries, lists and tuples
    taken: tuple[torch.cuda.Event, ...]  # one a device: after them the copies are made

    def on_host(self) -> Any:
        """The content on the CPU: by a stream of its own through pinned memory, so that training does not notice."""
        streams: dict[torch.device, torch.cuda.Stream] = {}

        def fetch(tensor: Tensor) -> Tensor:
            if tensor.device.type != "cuda":
                return tensor
            if tensor.device not in streams:
                streams[tensor.device] = torch.cuda.Stream(tensor.device)
                for event in self.taken:
                    streams[tensor.device].wait_event(event)
            with torch.cuda.stream(streams[tensor.device]):
                return _pinned_like(tensor).copy_(tensor, non_blocking=True)

        content = changed(self.content, fetch)
        for stream in streams.values():
            stream.synchronize()
        return content


def take(content: Any) -> Snapshot:
    """Copy the tensors in ``content``; those on a CUDA device there, by one operation a type, and without waiting."""
    pairs: list[tuple[Tensor, Tensor]] = []  # room on a CUDA device, and what is copied into it

    def copy(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        room = _room_for(tensor)
        if room is None:
            return tensor.to("cpu", copy=True)
        pairs.append((room, tensor))
        return room

    copied = changed(content, copy)
    kinds = {(room.device, room.dtype) for room, _ in pairs}
    for kind in kinds:
        chosen = [pair for pair in pairs if (pair[0].device, pair[0].dtype) == kind]
        torch._foreach_copy_([room for room, _ in chosen], [tensor for _, tensor in chosen])
    devices = {device for device, _ in kinds}
    return Snapshot(copied, tuple(torch.cuda.current_stream(device).record_event() for device in devices))


def changed(content: Any, function: Callable[[Tensor], Any]) -> Any:
    """``content`` with what ``function`` makes of each of its tensors."""
    match content:
        case Tensor():
            return function(content)
        case dict():
            return {key: changed(value, function) for key, value in content.items()}
        case list() | tuple():
            return type(content)(changed(value, function) for value in content)
        case _:
            return content


def _room_for(tensor: Tensor) -> Tensor | None:
    try:
        return torch.empty_like(tensor) if tensor.device.type == "cuda" else None
    except torch.OutOfMemoryError:
        return None


def _pinned_like(tensor: Tensor) -> Tensor:
    try:
        return torch.empty_like(tensor, device="cpu", pin_memory=True)
    except RuntimeError:  # there may be little of it, as in Windows' Linux: then the copy waits
        return torch.empty_like(tensor, device="cpu")
