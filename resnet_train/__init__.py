"""Trains residual networks on small images, and uses them: ``from resnet_train import load, load_config, run``.

The names below are the public interface. They are imported when they are first used, so that importing the package
costs nothing.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # typing's own would have to be imported
if TYPE_CHECKING:
    from typing import Any

    from resnet_train.cli.compose import load_config
    from resnet_train.inference.classifier import Classifier, Prediction
    from resnet_train.inference.load import load
    from resnet_train.runs.summary import Summary
    from resnet_train.train import run

    __version__: str

__all__ = ["Classifier", "Prediction", "Summary", "__version__", "load", "load_config", "run"]

_OWNERS = {
    "Classifier": "resnet_train.inference.classifier",
    "Prediction": "resnet_train.inference.classifier",
    "Summary": "resnet_train.runs.summary",
    "load": "resnet_train.inference.load",
    "load_config": "resnet_train.cli.compose",
    "run": "resnet_train.train",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("resnet-train")
    if name not in _OWNERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_OWNERS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
