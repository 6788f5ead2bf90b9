"""Weights from a file of whatever origin, under the names of the networks here.

It may be a run directory, one of its checkpoints, a file of ``torch.save`` or of safetensors; a state dict, or a
checkpoint of another project that holds one. The file may come from a stranger: see `runs.checkpoint_file`.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from resnet_train.errors import ConfigError
from resnet_train.runs.checkpoint_file import CorruptCheckpoint, HoldsObjects, read_declared, unseal
from resnet_train.runs.console import printable
from resnet_train.runs.saved import check_there

Weights = dict[str, torch.Tensor]

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # keys under which checkpoints hold their state dict
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # of all names: DataParallel, torch.compile, Lightning
# Names in kuangliu/pytorch-cifar and akamaster/pytorch_resnet_cifar10: as here, which is as in torchvision.
NAMES = ((re.compile(r"^linear\."), "fc."), (re.compile(r"\.shortcut\.(?=[01]\.)"), ".downsample."))
STATE_DICT = "torch.save(model.state_dict(), FILE)"
NO_WEIGHTS = {  # what downloads and checkouts leave in the place of weights: how it begins, in lower case
    b"version https://git-lfs": "it is a pointer of Git LFS, which git lfs pull would replace by the file",
    b"<!doctype html": "it is a web page",
    b"<html": "it is a web page",
}


def read_weights(path: Path, *, key: str = "init_from") -> Weights:
    """The weights in ``path``; of a run the best ones if it has them, else the newest; the moving average if any.

    Raises `ConfigError`, which begins with ``key``, for anything else; never runs code of the file.
    """
    return read_weights_and_classes(path, key=key)[0]


def read_weights_and_classes(path: Path, *, key: str = "init_from") -> tuple[Weights, list[str] | None]:
    """As `read_weights`, with the names of the classes, which a run's checkpoint has; None for other files."""
    check_there(path, key=key)
    if path.is_dir():
        found = [file for name in ("best.pt", "last.pt") if (file := path / "checkpoints" / name).is_file()]
        if not found:
            raise ConfigError(
                f"{key}: expected a run with checkpoints, got {path}, which has none; give a run that has "
                f"checkpoints/last.pt, or a file of weights"
            )
        path = found[0]
    try:
        content = _read(path.read_bytes())
    except Exception as error:  # bytes of a stranger: torch and safetensors meet them with any error there is
        reason = printable((str(error).splitlines() or [""])[0][:300] or type(error).__name__)
        raise ConfigError(f"{key}: cannot read {path}: {reason}; {_advice(error)}") from error
    weights = unwrapped(content)
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    ):
        raise ConfigError(
            f"{key}: expected weights by name in {path}, got {type(content).__name__} of other things; "
            f"give a file that {STATE_DICT} wrote"
        )
    classes = content.get("classes") if isinstance(content, dict) and "format" in content else None
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return with_our_names(weights), classes if named else None


def _advice(error: Exception) -> str:
    """What to do about a file that cannot be read."""
    if isinstance(error, OSError):
        return "make it readable, or give another file"
    if isinstance(error, HoldsObjects):
        return f"load it where it was written, and save its weights with {STATE_DICT}"
    return "copy or download it again, or give another file"


def _read(data: bytes) -> Any:
    """What the file holds, told by its first bytes."""
    if not data:
        raise CorruptCheckpoint("it is empty")
    for beginning, kind in NO_WEIGHTS.items():
        if data[:200].lstrip().lower().startswith(beginning):
            raise CorruptCheckpoint(kind)
    length = int.from_bytes(data[:8], "little")
    if data[8:9] == b"{" and length <= len(data) - 8:
        return safetensors.torch.load(data)
    declared = read_declared(io.BytesIO(data))
    if isinstance(declared, dict) and isinstance(declared.get("state"), dict) and "format" in declared:
        unseal(data)  # one of our own
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's text advises to run what is in the file
        raise HoldsObjects("it holds more than tensors and plain values") from error
    except RuntimeError as error:
        raise CorruptCheckpoint(f"torch cannot read it: {error}") from error


def unwrapped(content: Any) -> Any:
    """The state dict in a checkpoint, whoever wrote it; what holds none is returned as it is."""
    for _ in range(len(WRAPPERS)):
        if not isinstance(content, dict):
            break
        state = content.get("state")
        if isinstance(state, dict) and isinstance(state.get("model"), dict):  # a checkpoint of resnet-train
            return state["model"] if state.get("ema") is None else state["ema"]
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    return content


def with_our_names(weights: Weights) -> Weights:
    """``weights`` without the prefixes of wrappers, and with names that other projects give the same layers changed."""
    while weights and (prefix := next((one for one in PREFIXES if all(n.startswith(one) for n in weights)), None)):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    renamed = {}
    for name, value in weights.items():
        for pattern, ours in NAMES:
            name = pattern.sub(ours, name)
        renamed[name] = value
    return renamed if len(renamed) == len(weights) else weights


def digest_of(weights: Weights) -> str:
    """SHA-256 of names, types, shapes and values, in the order of the names: the same in whatever file they lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
