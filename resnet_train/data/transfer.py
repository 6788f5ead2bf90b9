"""The way from host memory to the device, on which nothing waits: through pinned memory, and one batch ahead."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``; on CUDA the copy is made later, in its turn, and the host goes on.

    A copy out of pageable memory first waits for all that the device was given before.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Ahead:
    """Batches of images that the device has no room for, gathered by a thread while the one before is trained on."""

    def __init__(self, images: Tensor, device: torch.device, *, order: Callable[[int], Tensor]) -> None:
        """``images`` ``(N, H, W, 3)`` in host memory; ``order``: which of them batch ``step`` has, int64 ``(B,)``."""
        self._images, self._device, self._order = images, device, order
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="images")
        # A step, where its images go, and when they are there.
        self._ready: tuple[int, Tensor, Future[Tensor]] | None = None

    def fetch(self, step: int) -> Tensor:
        """Batch ``step``, ``(B, H, W, 3)`` on the device; the next one is begun."""
        ready = self._ready if self._ready is not None and self._ready[0] == step else self._gather(step)
        _, images, gathered = ready
        gathered.result()
        self._ready = self._gather(step + 1)
        # The pinned memory is given to nobody else before the copy is made: PyTorch sees to that.
        return images.to(self._device, non_blocking=self._device.type == "cuda")

    def _gather(self, step: int) -> tuple[int, Tensor, Future[Tensor]]:
        index = self._order(step)
        shape = len(index), *self._images.shape[1:]
        images = torch.empty(shape, dtype=self._images.dtype, pin_memory=self._device.type == "cuda")
        return step, images, self._thread.submit(torch.index_select, self._images, 0, index, out=images)
