"""Files that ``resnet-export`` wrote: ONNX, PyTorch's exported programs, safetensors. See `spec` for their metadata."""

from __future__ import annotations

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


def load_exported(path: Path, *, device: str = "auto") -> Classifier:
    """The network in a file of ``resnet-export``.

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
    reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
    return ConfigError(f"{path}: expected a file that resnet-export wrote, got one that cannot be read: {reason}")


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
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # onnxruntime's own, many
        raise _corrupt(path, error) from error
    spec = from_metadata(metadata, path=path)
    return Classifier(
        OnnxNetwork(session, spec), spec, batch_size=BATCH_SIZE, origin=str(path), runs_on="cpu in fp32, onnxruntime"
    )


def _load_pt2(path: Path, device: torch.device) -> Classifier:
    extra = {METADATA_FILE: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
        module = program.module()
    except Exception as error:  # bytes of a stranger
        raise _corrupt(path, error) from error
    import json

    try:
        metadata = json.loads(extra[METADATA_FILE] or "{}")
    except ValueError as error:
        raise _corrupt(path, error) from error
    spec = from_metadata(metadata, path=path)
    return Classifier(
        Pt2Network(module.to(device), spec, device),
        spec,
        batch_size=BATCH_SIZE,
        origin=str(path),
        runs_on=f"{device} in fp32, torch.export",
    )


def _load_safetensors(path: Path, device: torch.device) -> Classifier:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except Exception as error:
        raise _corrupt(path, error) from error
    spec = from_metadata(metadata, path=path)
    model = build_model(model_config(spec, path), num_classes=len(spec.classes), seed=0, channels=spec.channels)
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ConfigError(f"{path}: its weights do not fit the network that it describes; export it again") from error
    plan = Plan(device, "fp32", PLAIN, channels_last=True, compiled=False, graph=False, reasons={})
    return torch_classifier(model.to(device).eval().requires_grad_(False), spec, plan, origin=str(path))


def model_config(spec: Spec, path: Path) -> ModelConfig:
    """The network that a file describes; raises `ConfigError` where there is none of the kind."""
    schema = ResNetConfig if "stem" in spec.model else CifarResNetConfig
    try:
        config = schema(**spec.model)
        check_model(config)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: its metadata describe no network of this version; export it again") from error
    return config
