"""A run that was trained in seconds, and its exported files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_train.config.run import Config
from resnet_train.inference.check import own_images
from resnet_train.inference.export import Exported, export
from resnet_train.inference.trained import Trained, read_trained
from resnet_train.runs.directory import Invocation
from resnet_train.train import run

FORMATS = ("onnx", "pt2", "safetensors")


@pytest.fixture(scope="session")
def small_run(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with a moving average, dropout and shortcuts of both kinds of arithmetic."""
    directory = tmp_path_factory.mktemp("runs") / "small"
    config = tiny("epochs=4", "ema_decay=0.5", "model.dropout=0.2", "dataset.num_test=70", "name=small")
    overrides = ["dataset=synthetic", f"+dataset.root={directory}/my cats", f"hydra.run.dir={directory}"]
    command = " ".join(["resnet-train", *overrides])
    run(config, directory=directory, invocation=Invocation([], overrides), command=command)
    return directory


@pytest.fixture(scope="session")
def small(small_run: Path) -> Trained:
    """What that run left."""
    return read_trained(small_run)


@pytest.fixture(scope="session")
def exported(small: Trained, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """``exported("onnx")``, ``exported("pt2", raw=True)``: files of that run, written once."""
    folder, images, done = tmp_path_factory.mktemp("exported"), own_images(small), {}

    def file(kind: str, *, raw: bool = False) -> Exported:
        if kind == "onnx":
            pytest.importorskip("onnxruntime")
        if (kind, raw) not in done:
            place = folder / f"{kind}{'-raw' * raw}"
            done[kind, raw] = export(small, place / f"model.{kind}", card=place / "README.md", images=images, raw=raw)
        return done[kind, raw]

    return file
