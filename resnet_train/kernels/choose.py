"""Which operations a run computes with, and why: asked once, when a run is planned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from resnet_train.data.augment import CropFlipNormalise, crop_flip_normalise
from resnet_train.errors import ConfigError
from resnet_train.kernels import cpu, cuda, cuda_batch, cuda_check, native
from resnet_train.kernels.fuse import fuse

FUSED, AMX = "fused", "experimental_amx"


def leave(_model: nn.Module) -> None:
    """Change nothing."""


@dataclass(frozen=True)
class Backend:
    """Operations that can be computed in more than one way."""

    name: str  # plain: PyTorch's operations; fused, experimental_amx: those of this folder
    reason: str  # why, in a few words
    convert: Callable[[nn.Module], None] = leave  # put them into a network that was built and initialised
    crop_flip_normalise: CropFlipNormalise = crop_flip_normalise


PLAIN = Backend("plain", "PyTorch's own")


def choose_backend(
    name: str,
    *,
    activation: str,
    device: torch.device,
    precision: str,
    compiled: bool,
    channels_last: bool,
    graph: bool = False,
) -> Backend:
    """What ``auto``, ``plain``, ``fused`` or ``experimental_amx`` means here; ``precision`` is the run's own, not auto.

    On CUDA ``auto`` takes the fused kernels if ``graph`` says that steps are to be one CUDA graph, and only where they
    agree with PyTorch's on the GPU at hand: a launch of Triton's costs the host two or three times as much as one of
    PyTorch's, which a graph makes up for.

    Whether there will be a graph turns out after the first steps (`training.cuda_graph`). Where there is none after
    all, the kernels stay: other ones round differently, so that a run would have other bits if its trial failed, and
    other ones again from each resume on. As it is, the kernels follow from the configuration and the machine alone,
    and each session of a run takes the same. It then trains somewhat slower than ``kernels=plain``, and its log says
    that there is no graph. ``graph=false`` asked for at a resume changes the kernels too, which is said.

    Raises `ConfigError` where what was asked for by name cannot be had.
    """
    if name == "plain":
        return Backend("plain", "asked for")
    why_not = obstacle(name, activation=activation, device=device, compiled=compiled, channels_last=channels_last)
    if name == "auto" and device.type == "cuda" and not graph:
        why_not = why_not or "without a graph the fused ones take longer to launch"
    if not why_not:
        try:
            return load_backend(name, device=device, precision=precision)
        except native.Unavailable as error:
            why_not = str(error)
    if name == "auto":
        return Backend("plain", why_not)
    raise ConfigError(f"kernels: expected to find what kernels={name} needs, but {why_not}; try kernels=auto")


def obstacle(name: str, *, activation: str, device: torch.device, compiled: bool, channels_last: bool) -> str:
    """Why fused kernels cannot serve a run, or should not; empty where they can."""
    if compiled:
        return "torch.compile makes its own"
    if name == AMX and device.type != "cpu":
        return f"AMX is of the CPU, this runs on {device.type}"
    if device.type not in ("cpu", "cuda"):
        return f"the fused ones are for the CPU and CUDA, this runs on {device.type}"
    if not channels_last:
        return "the fused ones need channels_last"
    if activation != "relu":
        return f"the fused ones are for ReLU, this network has {activation}"
    return ""


def load_backend(name: str, *, device: torch.device, precision: str) -> Backend:
    """Compile or import what ``device`` needs. Raises `native.Unavailable`."""
    if name == AMX:
        from resnet_train.kernels.experimental import amx

        parts = amx.prepare(precision)
        return Backend(AMX, parts.reason, partial(fuse, leaves=parts.leaves), parts.crop_flip_normalise)
    if device.type == "cuda":
        reason = cuda.prepare()
        if torch.cuda.is_available():
            cuda_check.check(device, precision)
        return Backend(FUSED, reason, partial(fuse, leaves=cuda.LEAVES), cuda_batch.crop_flip_normalise)
    parts = cpu.prepare(precision, by_name=name == FUSED)
    return Backend(FUSED, parts.reason, partial(fuse, leaves=parts.leaves), parts.crop_flip_normalise)
