"""Paths that depend on who runs, and on where: the home folder, the user's cache, the folder of the process."""

from __future__ import annotations

import os
from pathlib import Path

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
