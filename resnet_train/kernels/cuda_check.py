"""One norm and one batch by the Triton kernels against PyTorch's, on the GPU that is about to compute with them."""

from __future__ import annotations

from itertools import product
from typing import get_args

import torch
from torch import Tensor

from resnet_train.data import augment
from resnet_train.kernels import cuda_batch, native
from resnet_train.kernels.cuda import BatchNorm2d
from resnet_train.kernels.fuse import FusedBatchNorm2d

# Rows enough for several tiles; channels that do not fill one, as those of no usual network.
SHAPE = (16, 24, 12, 12)
# Values are rounded once, by half of eps; their deviation is measured as a whole. float32 sums 2304 values.
ROUNDINGS, SUMS = 2.0, 1e-5


def check(device: torch.device, precision: str) -> None:
    """Raise `native.Unavailable` where a norm, in the type of ``precision``, or a batch is not PyTorch's, or is none.

    It takes as long as compiling the kernels does; Triton keeps what it compiled. A kernel that writes outside its
    tensors can make the device unusable: the run then fails here, before it has begun.
    """
    try:
        _check_norm(device, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32))
        _check_batch(device)
    except native.Unavailable:
        raise
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise native.Unavailable(f"the fused kernels do not run here: {line}") from error


def _check_norm(device: torch.device, dtype: torch.dtype) -> None:
    """Forward, backward and in evaluation, with and without a shortcut, against float64."""
    limit = max(ROUNDINGS * torch.finfo(dtype).eps, SUMS)
    for with_shortcut in (False, True):
        found = _results(BatchNorm2d(SHAPE[1]).to(device), dtype, with_shortcut)
        expected = _results(FusedBatchNorm2d(SHAPE[1]).double(), dtype, with_shortcut)
        for name, value in expected.items():
            off = float((found[name].double().cpu() - value).norm() / value.norm())
            if not off <= limit:
                raise native.Unavailable(f"the {name} of a fused norm is off by {off:.1e} here, expected {limit:.1e}")


def _check_batch(device: torch.device) -> None:
    """Colours and greys, cut and mirrored in many ways, to the bit."""
    random = torch.Generator().manual_seed(0)

    def drawn(limit: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(limit, shape, generator=random).to(device, dtype)

    count, padding = 64, 3
    draws = augment.Draws(
        index=drawn(8, count),
        offset_y=drawn(2 * padding + 1, count),
        offset_x=drawn(2 * padding + 1, count),
        flip=drawn(2, count, dtype=torch.bool),
        cutout_y=drawn(12, count),
        cutout_x=drawn(10, count),
    )
    images = drawn(256, 8, 12, 10, 3, dtype=torch.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6], device=device), torch.tensor([0.2, 0.3, 0.25], device=device)
    for mode, channels in product(get_args(augment.CropMode), (3, 1)):
        some = images[..., :channels].contiguous()
        found, expected = (
            function(some, draws, padding=padding, mode=mode, mean=mean[:channels], std=std[:channels])
            for function in (cuda_batch.crop_flip_normalise, augment.crop_flip_normalise)
        )
        if not torch.equal(found, expected):
            raise native.Unavailable("a batch by the fused kernels is not that of PyTorch's operations here")


@torch.enable_grad()
def _results(norm: FusedBatchNorm2d, dtype: torch.dtype, with_shortcut: bool) -> dict[str, Tensor]:
    """All that ``norm`` computes for the same values, which are rounded to ``dtype``."""
    draws, parameter = torch.Generator().manual_seed(0), norm.weight
    wide = parameter.dtype == torch.float64
    x, shortcut, gradient = (
        torch.randn(SHAPE, generator=draws)
        .add(0.5)  # else means are next to nothing, and off by much of that
        .to(dtype)
        .to(parameter.device, torch.float64 if wide else dtype, memory_format=torch.channels_last)
        .requires_grad_(name != "gradient")
        for name in ("x", "shortcut", "gradient")
    )
    with torch.no_grad():
        parameter.copy_(torch.rand(SHAPE[1], generator=draws) + 0.5)
        norm.bias.copy_(torch.randn(SHAPE[1], generator=draws))
    y = norm.norm_relu(x, shortcut if with_shortcut else None)
    y.backward(gradient)
    results = {"result": y, "gradient": x.grad, "weight's gradient": parameter.grad, "bias's gradient": norm.bias.grad}
    if with_shortcut:
        results["shortcut's gradient"] = shortcut.grad
    with torch.no_grad():
        results["result in evaluation"] = norm.eval().norm_relu(x, shortcut if with_shortcut else None)
    results |= {"running mean": norm.running_mean, "running variance": norm.running_var}
    return {name: value.detach() for name, value in results.items() if value is not None}
