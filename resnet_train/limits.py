"""What the machine can do at most, measured, and what that means for a network: its roofline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Passes over memory that training makes for a layer where norm, addition and ReLU are one operation: its input is read
# forward and for the weights' gradient, and the gradient of it is written; its output is written by the convolution,
# read twice and written once by the norm, and backward the norm reads two tensors twice and writes one, which the
# convolution's two gradients read.
PASSES_INPUT, PASSES_OUTPUT = 3, 11
PASSES_MULTIPLIED = 3  # products: forward, gradient of the input, gradient of the weights
# Sizes of matrix products to measure, the largest that one product takes no longer than so many seconds for.
MATMUL_SIZES = (256, 512, 1024, 2048, 4096, 8192)
MATMUL_SECONDS, MATMUL_SECONDS_CUDA = 0.25, 0.02


@dataclass(frozen=True)
class Layer:
    """A convolution or the classifier, for one image."""

    multiply_adds: int
    values_in: int
    values_out: int


@dataclass(frozen=True)
class Roofline:
    """Seconds that training on one image takes at least."""

    compute: float  # at the speed of large matrix products
    memory: float  # at the speed of a large copy

    @property
    def images_per_second(self) -> float:
        """If nothing of one happens during the other, which is nearly so on a CPU."""
        return 1 / (self.compute + self.memory)


def layers(model: nn.Module, image_size: int) -> list[Layer]:
    """Every convolution and fully connected layer of ``model`` on one image ``(1, 3, image_size, image_size)``."""
    found: list[Layer] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.get_parameter("weight")  # (out, in / groups, kh, kw) or (out, in)
        found.append(Layer(output[0, 0].numel() * weight.numel(), inputs[0].numel(), output.numel()))

    handles = [
        module.register_forward_hook(note) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    was_training = model.training
    parameter = next(model.parameters())
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, image_size, image_size, device=parameter.device))
    model.train(was_training)
    for handle in handles:
        handle.remove()
    return found


def roofline(found: list[Layer], *, flops: float, bandwidth: float, bytes_a_value: int) -> Roofline:
    """At ``flops`` floating-point operations and ``bandwidth`` bytes a second; a multiply-add is two operations."""
    first, *others = found
    products = (PASSES_MULTIPLIED - 1) * first.multiply_adds  # nobody needs the gradient of the images
    products += PASSES_MULTIPLIED * sum(layer.multiply_adds for layer in others)
    values = sum(PASSES_INPUT * layer.values_in + PASSES_OUTPUT * layer.values_out for layer in found)
    return Roofline(2 * products / flops, values * bytes_a_value / bandwidth)


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product; ``inf`` where the type cannot be multiplied.

    As large as `MATMUL_SIZES` allow in reasonable time: a processor without instructions for bf16 makes its products a
    hundred times slower than in float32, and must not take minutes to say so.
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
    """Bytes a second that a large copy reads and writes."""
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
