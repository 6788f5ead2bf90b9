"""What a run computes with, and the reasons that its header gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.kernels import native
from resnet_train.kernels.choose import choose_backend
from resnet_train.train import run
from resnet_train.training.plan import build_compile, build_device, build_graph, build_plan, build_precision

Tiny = Callable[..., Config]
CPU = torch.device("cpu")


def test_a_device_that_is_not_there() -> None:
    assert build_device("cpu") == CPU
    assert build_device("auto").type in ("cpu", "cuda")
    with pytest.raises(
        ConfigError, match=r"^device: expected one of this machine's \d+ CUDA devices, got cuda:99; try "
    ):
        build_device("cuda:99")


def test_what_was_never_measured_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert build_device("auto").type in ("cpu", "cuda")
    assert build_device("mps").type == "mps"


@pytest.mark.parametrize(
    ("overrides", "device", "expected"),
    [
        ((), "cpu", (False, "slower than the fused kernels")),
        (("kernels=plain",), "cpu", (False, "no faster on the processors it was measured on")),
        (("compile=false",), "cuda", (False, "asked for")),
        (("compile=true",), "cuda", (True, "asked for")),
        (("compile=True",), "cpu", (True, "asked for")),
    ],
)
@pytest.mark.usefixtures("compiler")
def test_the_choice_of_compilation(
    compose: Callable[..., Config], overrides: tuple[str, ...], device: str, expected: tuple[bool, str]
) -> None:
    config, where = compose(*overrides), torch.device(device)
    backend = choose_backend(
        config.kernels,
        activation="relu",
        device=where,
        precision="fp32",
        compiled=config.compile == "true",
        channels_last=True,
    )
    assert build_compile(config.compile, where, kernels=backend.name) == expected
    if config.compile == "true" and device == "cpu":
        assert (backend.name, backend.reason) == ("plain", "torch.compile makes its own")


@pytest.mark.parametrize(
    ("device", "kernels", "reason"),
    [
        ("cuda", "fused", "slower than the fused kernels"),
        ("cuda", "plain", "only where asked for, though faster than plain kernels"),
        ("mps", "plain", "not measured yet on mps"),
    ],
)
def test_no_compilation_is_chosen_on_a_gpu(device: str, kernels: str, reason: str) -> None:
    assert build_compile("auto", torch.device(device), kernels=kernels) == (False, reason)


@pytest.mark.parametrize(
    ("choice", "device", "expected"),
    [
        ("auto", "cpu", (False, "there are none on cpu")),
        ("false", "cpu", (False, "there are none on cpu")),
        ("auto", "cuda", (True, "tried against the steps that it stands for")),
        ("false", "cuda", (False, "asked for")),
        ("true", "cuda", (True, "asked for")),
    ],
)
def test_choice_of_a_graph(choice: str, device: str, expected: tuple[bool, str]) -> None:
    assert build_graph(choice, torch.device(device)) == expected


def test_a_graph_without_cuda() -> None:
    with pytest.raises(ConfigError, match=r"^graph: graph=true needs a CUDA device, got cpu; try graph=auto$"):
        build_graph("true", CPU)


def test_compilation_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "")
    native.compiler.cache_clear()
    try:
        with pytest.raises(ConfigError) as raised:
            build_compile("true", CPU, kernels="plain")
    finally:
        native.compiler.cache_clear()
    assert str(raised.value) == (
        "compile: expected to find what compile=true needs, but no C++ compiler found (looked for $CXX, c++, g++, "
        "clang++)"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "kernels"),
    [
        ((), "fused"),
        (("kernels=plain",), "plain: asked for"),
        (("channels_last=false",), "plain: the fused ones need channels_last"),
        (("compile=true",), "plain: torch.compile makes its own"),
    ],
)
@pytest.mark.usefixtures("compiler")
def test_every_choice_stands_in_the_header_with_its_reason(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture, overrides: tuple[str, ...], kernels: str
) -> None:
    config = tiny("epochs=null", "steps=1", *overrides)
    rows = dict(build_plan(config).lines())
    assert rows["precision"] == "fp32: asked for"
    assert rows["layout"].startswith("channels first: " if "channels_last=false" in overrides else "channels_last: ")
    assert rows["kernels"].startswith(kernels)
    assert "graph" not in rows, "of no interest on a CPU"
    if "compile=true" not in overrides:
        with caplog.at_level("INFO"):
            run(config, directory=tmp_path)
        logged = [record.getMessage() for record in caplog.records]
        assert all(any(line.split(maxsplit=1) == [name, row] for line in logged) for name, row in rows.items())


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", "precision: tf32 needs a CUDA device, got cpu; try precision=bf16 or precision=fp32"),
        ("mps", "precision: tf32 needs a CUDA device, got mps; try precision=bf16 or precision=fp32"),
    ],
)
def test_tf32_without_cuda(device: str, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build_precision("tf32", torch.device(device))
    assert str(raised.value) == expected


def test_the_choice_of_a_precision() -> None:
    """By what Linux says of the processor. Intel's AVX512-BF16 without AMX makes bf16 half as fast as fp32."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        pytest.skip("no /proc/cpuinfo")
    said = path.read_text()
    by = "AMX" if "amx_tile" in said else "AVX512-BF16" if "avx512_bf16" in said and "GenuineIntel" not in said else ""
    no_gain = "this processor multiplies bf16 no faster than fp32 (no AMX, no AVX512-BF16 of AMD)"
    assert build_precision("auto", CPU) == (
        ("bf16", f"this processor multiplies it faster than fp32 ({by})") if by else ("fp32", no_gain)
    )
    assert build_precision("bf16", CPU) == ("bf16", "asked for" if by else f"asked for, though {no_gain}")
    assert build_precision("fp32", CPU) == ("fp32", "asked for")
