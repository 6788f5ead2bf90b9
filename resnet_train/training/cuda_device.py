"""Whether a GPU can be used, in which precision, and if not why: asked once, before anything is built on it."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path

import torch

from resnet_train.errors import ConfigError


def cuda_is_available() -> bool:
    """Whether PyTorch can use a GPU, without the half page that it warns with where the driver is too old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def why_no_cuda() -> str:
    """Why PyTorch finds no GPU although there may be one, with the remedy; empty where nothing hints at a GPU."""
    if cuda_is_available():
        return ""
    if torch.version.cuda is None:
        return _built_without()
    try:
        torch.cuda.init()
    except Exception as error:  # CUDA's own, by a text that does not change
        return _explained(str(error), built_for=torch.version.cuda)
    return ""  # a driver without a GPU, or one that CUDA_VISIBLE_DEVICES hides


def _built_without() -> str:
    """For a PyTorch without CUDA: pip's default on Windows."""
    if torch.version.hip or not (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()):
        return ""
    return (
        "there is an NVIDIA driver, but this PyTorch is built without CUDA: install one with it, "
        "see https://pytorch.org/get-started/locally"
    )


def _explained(text: str, *, built_for: str) -> str:
    if "no NVIDIA driver" in text:
        return ""
    found = re.search(r"found version (\d+)", text)
    if "driver" in text and found:
        major, minor = divmod(int(found[1]) // 10, 100)
        return (
            f"the NVIDIA driver serves CUDA {major}.{minor} and older, this PyTorch is built for CUDA {built_for}: "
            f"update the driver, or install a PyTorch for CUDA {major}.{minor}"
        )
    return f"CUDA does not start: {' '.join(text.split())[:200]}"


def check_card(device: torch.device) -> None:
    """Compute one sum on ``device``; raises `ConfigError` for a GPU that this PyTorch has no kernels for."""
    try:
        (torch.ones(1, device=device) + 1).item()
    except RuntimeError as error:
        if "no kernel image" not in str(error):
            raise
        raise ConfigError(
            f"device: this PyTorch has no kernels for {torch.cuda.get_device_name(device)} (capability "
            f"{_dotted(torch.cuda.get_device_capability(device))}), only for {', '.join(torch.cuda.get_arch_list())}; "
            f"install another PyTorch, or try device=cpu"
        ) from error


def precision_of(capability: tuple[int, int]) -> tuple[str, str]:
    """What ``precision=auto`` means on a GPU of this capability, and why.

    Tensor cores multiply fp16 from 7.0 on (Volta, Turing) and bf16 from 8.0 on (Ampere): CUDA C++ programming guide,
    "Compute capabilities".
    """
    if capability >= (8, 0):
        return "bf16", "this GPU multiplies it several times faster than fp32"
    if capability >= (7, 0):
        return "fp16", "this GPU multiplies it several times faster than fp32, and has no bf16"
    return "fp32", "this GPU has no half precision matrix multiplications"


def check_bf16(capability: tuple[int, int]) -> None:
    """Raise `ConfigError` where a GPU of this capability can only emulate bf16, or not even that."""
    if capability < (8, 0):
        raise ConfigError(
            f"precision: bf16 needs a GPU of capability 8.0 or more, got one of {_dotted(capability)}; "
            f"try precision={'fp16' if capability >= (7, 0) else 'fp32'}"
        )


def _dotted(capability: tuple[int, int]) -> str:
    return "{}.{}".format(*capability)
