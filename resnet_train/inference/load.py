"""``resnet_train.load``: the network of a run, of a checkpoint or of an exported file, ready to be asked."""

from __future__ import annotations

from pathlib import Path

from resnet_train.errors import ConfigError
from resnet_train.inference.classifier import Classifier, torch_classifier
from resnet_train.inference.exported import load_exported
from resnet_train.inference.find import EXPORTED, find
from resnet_train.inference.trained import build_network, evaluation_plan, read_trained


def load(path: str | Path, *, checkpoint: str = "result", device: str = "auto") -> Classifier:
    """Load a trained network.

    Args:
        path: a run directory, ``latest``, a checkpoint, or a file of ``resnet-export``.
        checkpoint: of a run: ``result`` (what the run's result is of), ``last``, ``best``, or a file.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. Exported ONNX files run on the CPU.

    Raises:
        ConfigError: there is no such network, or it is corrupt.
    """
    found = find(path)
    if found.is_file() and checkpoint != "result":
        raise ConfigError(f"--checkpoint: expected a run directory beside it, got {found}, one file; leave it out")
    if found.suffix in EXPORTED:
        return load_exported(found, device=device)
    trained = read_trained(found, which=checkpoint)
    # With the run's own kernels: twice as fast on a CPU, and to the last image what the run itself evaluated.
    plan = evaluation_plan(trained.config, device=device, precision=trained.precision)
    model = build_network(
        trained.config, plan, trained.weights, num_classes=len(trained.classes), source=f"the weights in {trained.path}"
    )
    return torch_classifier(model, trained.spec(), plan, origin=f"{found} ({trained.which}, step {trained.step})")
