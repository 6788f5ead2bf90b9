"""Files that ``resnet-export`` wrote: ONNX, PyTorch's exported programs, safetensors. See `spec` for their metadata.

Nothing of a stranger's ONNX or safetensors file is run but arithmetic. A ``.pt2`` is different: PyTorch's own reader
unpickles what is in it, so that such a file can run any program. Only those of people one trusts should be opened.
"""

from __future__ import annotations

import json
import logging
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnet_train.config.model import CifarResNetConfig, ModelConfig, ResNetConfig, check_model
from resnet_train.data.augment import normalise
from resnet_train.errors import ConfigError
from resnet_train.inference.classifier import Classifier, torch_classifier
from resnet_train.inference.spec import Spec, from_metadata
from resnet_train.kernels.choose import PLAIN
from resnet_train.models.build import build_model
from resnet_train.training.plan import Plan, build_device

BATCH_SIZE = 100  # images at once through a graph whose layers are not known
METADATA_FILE = "resnet-train.json"  # inside a .pt2
MOST_METADATA_BYTES = 1 << 24
IN_FP32 = Plan(torch.device("cpu"), "fp32", PLAIN, channels_last=True, compiled=False, graph=False, reasons={})


def load_exported(path: Path, *, device: str = "auto") -> Classifier:
    """The network in a file of ``resnet-export``, told by its ending.

    Raises `ConfigError` for files of others and corrupt ones, and where onnxruntime is missing for an ONNX file.
    """
    match path.suffix:
        case ".onnx":
            return _load_onnx(path)
        case ".pt2":
            return _load_pt2(path, build_device(device))
        case _:
            return _load_safetensors(path, build_device(device))


def _corrupt(path: Path, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return ConfigError(f"{path}: expected a file that resnet-export wrote, got one that cannot be read: {reason}")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what PyTorch and its exporters say to each other from the user, who reads one line where it matters."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.export", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _tried(network: OnnxNetwork | Pt2Network, path: Path) -> OnnxNetwork | Pt2Network:
    """``network``, if it gives for a black image what its metadata say; raises `ConfigError`."""
    spec = network.spec
    size, num_classes = spec.image_size, len(spec.classes)
    try:
        with quiet():
            shape = tuple(network(torch.zeros(1, size, size, spec.channels, dtype=torch.uint8)).shape)
    except Exception as error:  # a runtime's own, many
        raise _corrupt(path, error) from error
    if shape != (1, num_classes):
        raise ConfigError(
            f"{path}: expected an output (1, {num_classes}) for one image, got {shape}; the metadata are of another "
            f"network: export it again"
        )
    return network


class OnnxNetwork:
    """A network in onnxruntime, on the CPU."""

    def __init__(self, session: Any, spec: Spec) -> None:
        self.session, self.spec = session, spec
        self.name = session.get_inputs()[0].name

    def __call__(self, images: Tensor) -> Tensor:
        """See `classifier.Network`."""
        given = _normalised(images, self.spec) if self.spec.raw else images
        (out,) = self.session.run(None, {self.name: given.contiguous().numpy()})
        return _as_logits(torch.from_numpy(out), self.spec)


class Pt2Network:
    """An exported program of PyTorch."""

    def __init__(self, module: torch.nn.Module, spec: Spec, device: torch.device) -> None:
        self.module, self.spec, self.device = module, spec, device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """See `classifier.Network`."""
        given = _normalised(images, self.spec) if self.spec.raw else images
        return _as_logits(self.module(given.to(self.device)).float().cpu(), self.spec)


def _normalised(images: Tensor, spec: Spec) -> Tensor:
    return normalise(images, torch.tensor(spec.mean), torch.tensor(spec.std)).contiguous()


def _as_logits(out: Tensor, spec: Spec) -> Tensor:
    """Logits as they are; probabilities as their logarithms, of which softmax makes the same probabilities."""
    return out if spec.raw else out.clamp(min=torch.finfo(out.dtype).tiny).log()


def _load_onnx(path: Path) -> Classifier:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f'{path}: needs onnxruntime, got none; pip install "resnet-train[export]"') from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,  # to the same provider again, with lines on standard output
        )
        metadata = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # onnxruntime's own, many
        raise _corrupt(path, error) from error
    spec = from_metadata(metadata, path=path)
    network = _tried(OnnxNetwork(session, spec), path)
    return Classifier(network, spec, batch_size=BATCH_SIZE, origin=str(path), runs_on="cpu in fp32, onnxruntime")


def _load_pt2(path: Path, device: torch.device) -> Classifier:
    try:
        metadata = _pt2_metadata(path)
    except Exception as error:  # bytes of a stranger
        raise _corrupt(path, error) from error
    spec = from_metadata(metadata, path=path)
    try:
        with quiet():
            module = torch.export.load(path).module()
        network = Pt2Network(module.to(device), spec, device)
    except Exception as error:
        raise _corrupt(path, error) from error
    return Classifier(
        _tried(network, path),
        spec,
        batch_size=BATCH_SIZE,
        origin=str(path),
        runs_on=f"{device} in fp32, torch.export",
    )


def _pt2_metadata(path: Path) -> dict[str, str]:
    """Read before PyTorch reads anything: a file of somebody else is told at once."""
    with zipfile.ZipFile(path) as archive:
        found = [one for one in archive.infolist() if one.filename.endswith(f"/extra/{METADATA_FILE}")]
        if not found or found[0].file_size > MOST_METADATA_BYTES:
            return {}
        metadata = json.loads(archive.read(found[0]))
    if not isinstance(metadata, dict):
        raise ValueError("its metadata are no dictionary")
    return metadata


def _load_safetensors(path: Path, device: torch.device) -> Classifier:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except Exception as error:
        raise _corrupt(path, error) from error
    spec = from_metadata(metadata, path=path)
    config = model_config(spec, path)
    try:
        if config.depth > len(weights):
            raise RuntimeError(f"{len(weights)} tensors for {config.depth} layers")
        with torch.device("meta"):  # shapes first: what they describe may be larger than any memory
            model = build_model(config, num_classes=len(spec.classes), seed=0, channels=spec.channels)
        expected = model.state_dict()
        floats = {name: one.to(expected[name].dtype) if name in expected else one for name, one in weights.items()}
        model.load_state_dict(floats, strict=True, assign=True)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{path}: its weights do not fit the network that it describes; export it again") from error
    model = model.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    return torch_classifier(model, spec, replace(IN_FP32, device=device), origin=str(path))


def model_config(spec: Spec, path: Path) -> ModelConfig:
    """The network that a file describes; raises `ConfigError` where there is none of the kind."""
    schema = ResNetConfig if "stem" in spec.model else CifarResNetConfig
    try:
        config = schema(**spec.model)
        check_model(config)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: its metadata describe no network of this version; export it again") from error
    return config
