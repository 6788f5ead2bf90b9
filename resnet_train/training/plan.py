"""What a run computes with on the machine at hand, and why: device, precision, layout, kernels, compilation, graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.kernels import cpu, native
from resnet_train.kernels.choose import Backend, choose_backend
from resnet_train.training.cuda_device import check_bf16, check_card, cuda_is_available, precision_of, why_no_cuda

NO_GAIN = "this processor multiplies bf16 no faster than fp32 (no AMX, no AVX512-BF16 of AMD)"


def build_device(name: str) -> torch.device:
    """The device that ``auto`` or a name means; raises `ConfigError` where this machine lacks it."""
    if name == "auto":
        name = "cuda" if cuda_is_available() else "cpu"  # mps was never measured: only by its name
    if name.startswith("cuda"):
        if why := why_no_cuda():
            raise ConfigError(f"device: expected a GPU for {name}, got none that can be used: {why}; or try device=cpu")
        available = torch.cuda.device_count()
        index = int(name.partition(":")[2] or 0)
        if index >= available:
            raise ConfigError(
                f"device: expected one of this machine's {available} CUDA devices, got {name}; "
                f"try device={'cuda:' + str(available - 1) if available else 'cpu'}"
            )
        return torch.device("cuda", index)
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: expected a device of this machine, got mps, which it lacks; try device=cpu")
    return torch.device(name)


def build_precision(name: str, device: torch.device) -> tuple[str, str]:
    """fp32, tf32, bf16 or fp16, and why; ``auto`` takes bf16 where the hardware multiplies it faster than fp32.

    Raises `ConfigError` for what ``device`` cannot do.
    """
    if name in ("fp16", "tf32") and device.type != "cuda":
        raise ConfigError(
            f"precision: {name} needs a CUDA device, got {device.type}; try precision=bf16 or precision=fp32"
        )
    if name == "bf16" and device.type == "cuda":
        check_bf16(torch.cuda.get_device_capability(device))
    if name != "auto":
        slower = name == "bf16" and device.type == "cpu" and not cpu.multiplies_bf16()
        return name, "asked for" + f", though {NO_GAIN}" * slower
    if device.type == "cuda":
        return precision_of(torch.cuda.get_device_capability(device))
    if device.type == "cpu":
        if cpu.multiplies_bf16():
            by = "AMX" if cpu.has_amx() else "AVX512-BF16"
            return "bf16", f"this processor multiplies it faster than fp32 ({by})"
        return "fp32", NO_GAIN
    return "fp32", f"not measured yet on {device.type}"


def build_channels_last(choice: str, device: torch.device) -> tuple[bool, str]:
    """Whether the channels of a pixel lie side by side in memory, and why."""
    if choice != "auto":
        return choice == "true", "asked for"
    if device.type == "mps":
        return True, "not measured yet on mps"
    return True, "what the fastest convolutions and the fused kernels read"


def build_compile(choice: str, device: torch.device, *, kernels: str) -> tuple[bool, str]:
    """Whether the network is compiled by `torch.compile` for training, and why; raises `ConfigError` if it cannot be.

    What pays where: docs/performance.md.
    """
    if choice == "false":
        return False, "asked for"
    if choice == "true":
        if device.type == "cpu":
            try:
                native.compiler()
            except native.Unavailable as error:
                raise ConfigError(f"compile: expected to find what compile=true needs, but {error}") from error
        return True, "asked for"
    if kernels != "plain":
        return False, "slower than the fused kernels"
    if device.type == "cpu":
        return False, "no faster on the processors it was measured on"
    if device.type == "cuda":
        return False, "only where asked for, though faster than plain kernels"
    return False, f"not measured yet on {device.type}"


def build_graph(choice: str, device: torch.device) -> tuple[bool, str]:
    """Whether steps are recorded as a CUDA graph, and why; raises `ConfigError` where there is no CUDA."""
    if device.type != "cuda":
        if choice == "true":
            raise ConfigError(f"graph: graph=true needs a CUDA device, got {device.type}; try graph=auto")
        return False, f"there are none on {device.type}"
    if choice == "auto":
        return True, "tried against the steps that it stands for"
    return choice == "true", "asked for"


@dataclass(frozen=True)
class Plan:
    """How a run computes on the machine at hand: every choice, with its reason."""

    device: torch.device
    precision: str
    backend: Backend
    channels_last: bool
    compiled: bool
    graph: bool
    reasons: dict[str, str]  # option of the configuration: why it is what it is

    @property
    def unmeasured_steps(self) -> int:
        """First steps of a session whose time says nothing of the others: they compile, search, warm up, record."""
        return 10 if self.graph else 3 if self.device.type == "cuda" else int(self.compiled)

    def lines(self) -> list[tuple[str, str]]:
        """The choices as rows of a run's header."""
        rows = [
            ("precision", self.precision, "precision"),
            ("layout", "channels_last" if self.channels_last else "channels first", "channels_last"),
            ("kernels", self.backend.name, "kernels"),
            ("compile", str(self.compiled).lower(), "compile"),
        ]
        if self.device.type == "cuda":
            rows.append(("graph", str(self.graph).lower(), "graph"))
        return [(name, f"{choice}: {self.reasons[option]}") for name, choice, option in rows]


def build_plan(config: Config) -> Plan:
    """Choose device, arithmetic and kernels; raises `ConfigError` for what this machine cannot do."""
    device = build_device(config.device)
    if device.type == "cuda":
        check_card(device)
    precision, why_precision = build_precision(config.precision, device)
    channels_last, why_channels_last = build_channels_last(config.channels_last, device)
    graph, why_graph = build_graph(config.graph, device)
    backend = choose_backend(
        config.kernels,
        activation=config.model.activation,
        device=device,
        precision=precision,
        compiled=config.compile == "true",
        channels_last=channels_last,
        graph=graph,
    )
    compiled, why_compiled = build_compile(config.compile, device, kernels=backend.name)
    reasons = {
        "device": why_no_cuda() if config.device == "auto" and device.type == "cpu" else "",
        "precision": why_precision,
        "channels_last": why_channels_last,
        "kernels": backend.reason,
        "compile": why_compiled,
        "graph": why_graph,
    }
    return Plan(device, precision, backend, channels_last, compiled, graph, reasons)
