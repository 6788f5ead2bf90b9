"""Randomness as a pure function of (seed, purpose, step or epoch).

Nothing in a run draws from a shared stream, so there is no generator state to save: whoever knows the seed and the
step can make the batch of that step again, in the middle of an epoch, on another device, in another process.
"""

from __future__ import annotations

import hashlib
import random

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose, e.g. ``derive(0, "shuffle", epoch)``.

    Hashing (SHA-256) instead of adding keeps ``(seed=0, epoch=1)`` and ``(seed=1, epoch=0)`` apart.
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator for one purpose; on the CPU so that every device sees the same draws."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


def seed_everything(seed: int, *purpose: str | int) -> None:
    """Seed the global generators of torch (all devices) and Python, for code that draws from them (init, dropout)."""
    derived = derive(seed, *purpose)
    random.seed(derived)
    torch.manual_seed(derived)


def set_deterministic(enabled: bool) -> None:
    """Choose between reproducible and fastest kernels for the whole process.

    On CUDA bit-equality also needs ``CUBLAS_WORKSPACE_CONFIG``, which is read when the library starts; train.py sets
    it before torch is imported.
    """
    if enabled or torch.are_deterministic_algorithms_enabled():  # the call alone imports torch.compile: seconds
        torch.use_deterministic_algorithms(enabled)
    torch.backends.cudnn.deterministic = enabled
    torch.backends.cudnn.benchmark = not enabled
