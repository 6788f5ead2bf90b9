"""Where a trained network lies: a run directory, ``latest``, a checkpoint, or an exported file. Without torch."""

from __future__ import annotations

from pathlib import Path

from resnet_train.errors import ConfigError
from resnet_train.runs.checkpoint_file import numbered
from resnet_train.runs.directory import is_run

EXPORTED = (".onnx", ".pt2", ".safetensors")


def find(name: str | Path, *, outputs: Path = Path("outputs")) -> Path:
    """The run directory or the file that ``name`` means; raises `ConfigError` where there is none of use."""
    if str(name) == "latest":
        return newest(outputs)
    path = Path(name)
    if path.is_file():
        return path
    if not path.is_dir():
        raise ConfigError(
            f"expected a run directory, a checkpoint or an exported file, got {str(path)!r}, which does not exist; "
            f"latest means the newest run under {outputs}/"
        )
    if not numbered(path / "checkpoints") and not (path / "checkpoints" / "last.pt").is_file():
        raise ConfigError(
            f"expected a run directory, got {str(path)!r}, which holds no checkpoints; "
            f"run directories look like outputs/2026-01-31/12-00-00-resnet20"
        )
    return path


def newest(outputs: Path) -> Path:
    """The run under ``outputs`` whose checkpoint was written last; raises `ConfigError` where there is none."""
    found = {path.parents[1] for path in outputs.glob("**/checkpoints/step-*.pt")}
    runs = [(max(file.stat().st_mtime for file in numbered(run / "checkpoints")), run) for run in found if is_run(run)]
    if not runs:
        raise ConfigError(f"latest: expected a run under {str(outputs)!r}, found none; name its directory")
    return max(runs)[1]


def checkpoint_of(run: Path, which: str) -> Path:
    """The file of the checkpoint ``which`` of a run: ``result``, ``last``, ``best`` or a path.

    ``result`` is what the run's result is of: the best on the validation split where there is one, else the last.
    Raises `ConfigError` where it is not there.
    """
    folder = run / "checkpoints"
    if which == "result":
        which = "best" if (folder / "best.pt").is_file() else "last"
    if which not in ("last", "best"):
        path = Path(which)
        if not path.is_file():
            raise ConfigError(f"--checkpoint: expected last, best or a file, got {which!r}, which does not exist")
        return path
    path = folder / f"{which}.pt"
    if path.is_file():
        return path
    if which == "last" and (saved := numbered(folder)):
        return saved[0]
    raise ConfigError(
        f"--checkpoint: expected {path}, got none; "
        + ("a run has one where it holds out validation images (dataset.val_size)" if which == "best" else "")
    )
