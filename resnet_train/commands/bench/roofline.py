"""What the machine can do at most, measured, and what that means for a network: its roofline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from resnet_train.models.count import Layer

# Passes over memory that training makes for a layer where norm, addition and ReLU are one operation: its input is read
# forward and for the weights' gradient, and the gradient of it is written; its output is written by the convolution,
# read twice and written once by the norm, and backward the norm reads two tensors twice and writes one, which the
# convolution's two gradients read.
PASSES_INPUT, PASSES_OUTPUT = 3, 11
PASSES_MULTIPLIED = 3  # multiplications: forward, gradient of the input, gradient of the weights
# Sizes of matrix multiplications to measure, the largest that one takes no longer than so many seconds for.
MATMUL_SIZES = (256, 512, 1024, 2048, 4096, 8192)
MATMUL_SECONDS, MATMUL_SECONDS_CUDA = 0.25, 0.02


@dataclass(frozen=True)
class Roofline:
    """Seconds that training on one image takes at least."""

    compute: float  # at the speed of large matrix multiplications
    memory: float  # at the speed of a large copy

    @property
    def images_per_second(self) -> float:
        """If nothing of one happens during the other, which is nearly so on a CPU."""
        return 1 / (self.compute + self.memory)


def roofline(found: list[Layer], *, flops: float, bandwidth: float, bytes_per_value: int) -> Roofline:
    """At ``flops`` operations and ``bandwidth`` bytes per second; a multiply-add is two operations."""
    first, *others = found
    multiplied = (PASSES_MULTIPLIED - 1) * first.multiply_adds  # nobody needs the gradient of the images
    multiplied += PASSES_MULTIPLIED * sum(layer.multiply_adds for layer in others)
    values = sum(PASSES_INPUT * layer.values_in + PASSES_OUTPUT * layer.values_out for layer in found)
    return Roofline(2 * multiplied / flops, values * bytes_per_value / bandwidth)


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix multiplication; ``inf`` where the type has none.

    As large as `MATMUL_SIZES` allow in reasonable time: a processor without instructions for bf16 multiplies it a
    hundred times slower than float32, and must not take minutes to say so.
    """
    found = float("inf")
    for size in MATMUL_SIZES:
        try:
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            seconds = fastest(lambda a=a, b=b: torch.mm(a, b), device)  # type: ignore[misc]
        except RuntimeError:
            return found
        found = 2 * size**3 / seconds
        if 8 * seconds > (MATMUL_SECONDS_CUDA if device.type == "cuda" else MATMUL_SECONDS):  # of the next size
            break
    return found


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a large copy reads and writes."""
    source = torch.ones((1 << 30) // 4 if device.type == "cuda" else (1 << 27) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / fastest(lambda: target.copy_(source), device)


def fastest(call: Callable[[], object], device: torch.device, *, calls: int = 5) -> float:
    """Seconds of the fastest of some calls, after one that does not count."""
    seconds = []
    for _ in range(calls + 1):
        begun = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])
