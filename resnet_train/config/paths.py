"""Paths that depend on who runs, and on where: the home folder, the user's cache, the folder of the process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from resnet_train.errors import ConfigError


def expanded(key: str, path: Path | str) -> Path:
    """``/home/me/data`` for ``~/data``; raises `ConfigError` in the name of ``key`` where nobody's home is known."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # a container's numeric user without HOME, or ~name of nobody
        raise ConfigError(
            f"{key}: expected a path, got {str(path)!r}, and no home folder is known here; write the path in full, "
            f"or set HOME"
        ) from None


def user_cache() -> Path | None:
    """``$XDG_CACHE_HOME/resnet-train``, else ``~/.cache/resnet-train``; None for a user without a home folder."""
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(named or Path.home() / ".cache", "resnet-train")
    except RuntimeError:
        return None


def with_absolute_paths(config: dict[str, Any]) -> dict[str, Any]:
    """A plain configuration whose ``dataset.root``, ``cache`` and ``labels`` are found from other folders too.

    Relative ones, and ``~``, are taken from this process. ``config`` is left as it was.
    """
    dataset = config.get("dataset")
    if not isinstance(dataset, dict):
        return config
    found = {key: dataset[key] for key in ("root", "cache", "labels") if isinstance(dataset.get(key), str)}
    absolute = {key: str(expanded(f"dataset.{key}", path).absolute()) for key, path in found.items() if path}
    return config | {"dataset": dataset | absolute}
