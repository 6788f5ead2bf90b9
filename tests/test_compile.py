"""compile, graph, channels_last and profile: the same training by another way, and a look at it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from resnet_train import checkpoint, fused
from resnet_train.build import (
    build_compile,
    build_graph,
    build_kernels,
    build_plan,
    build_precision,
)
from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.train import run
from tests.test_cli import call
from tests.test_train import Tiny, cut_back, rows

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("words", "device", "expected"),
    [
        ((), "cpu", (False, "slower than the fused kernels")),
        (("kernels=plain",), "cpu", (False, "no faster on the processors it was measured on")),
        ((), "cuda", (False, "not measured yet on cuda")),
        (("compile=false",), "cuda", (False, "asked for")),
        (("compile=true",), "cuda", (True, "asked for")),
        (("compile=True",), "cpu", (True, "asked for")),
    ],
)
@pytest.mark.usefixtures("compiler")
def test_choice(
    compose: Callable[..., Config], words: tuple[str, ...], device: str, expected: tuple[bool, str]
) -> None:
    config, where = compose(*words), torch.device(device)
    kernels = build_kernels(config.kernels, config.model, where, compiled=config.compile == "true")
    assert build_compile(config.compile, kernels, where) == expected
    if config.compile == "true" and device == "cpu":
        assert (kernels.name, kernels.reason) == ("plain", "torch.compile makes its own")


@pytest.mark.parametrize(
    ("word", "device", "expected"),
    [
        ("auto", "cpu", (False, "there are none on cpu")),
        ("false", "cpu", (False, "there are none on cpu")),
        ("auto", "cuda", (False, "not measured yet on cuda")),
        ("false", "cuda", (False, "asked for")),
        ("true", "cuda", (True, "asked for")),
    ],
)
def test_choice_of_a_graph(word: str, device: str, expected: tuple[bool, str]) -> None:
    assert build_graph(word, torch.device(device)) == expected


def test_a_graph_without_cuda() -> None:
    with pytest.raises(ConfigError, match=r"^graph: graph=true needs a CUDA device, got cpu; try graph=auto$"):
        build_graph("true", CPU)


@pytest.mark.parametrize(
    ("words", "kernels"),
    [
        ((), "fused"),
        (("kernels=plain",), "plain: asked for"),
        (("channels_last=false",), "plain: the fused ones need channels_last"),
        (("compile=true",), "plain: torch.compile makes its own"),
    ],
)
@pytest.mark.usefixtures("compiler")
def test_every_choice_stands_in_the_header_with_its_reason(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture, words: tuple[str, ...], kernels: str
) -> None:
    config = tiny("epochs=null", "steps=1", *words)
    rows = dict(build_plan(config).lines())
    assert rows["precision"] == "fp32: asked for"
    assert rows["layout"].startswith("channels first: " if "channels_last=false" in words else "channels_last: ")
    assert rows["kernels"].startswith(kernels)
    assert "graph" not in rows, "of no interest on a CPU"
    if "compile=true" not in words:
        with caplog.at_level("INFO"):
            run(config, directory=tmp_path)
        logged = [record.getMessage() for record in caplog.records]
        assert all(any(line.split(maxsplit=1) == [name, row] for line in logged) for name, row in rows.items())


@pytest.mark.usefixtures("compiler")
def test_the_layout_changes_nothing_but_rounding(tiny: Tiny, tmp_path: Path) -> None:
    losses = []
    for word in ("true", "false"):
        run(
            tiny("epochs=null", "steps=8", "log_every=1", "kernels=plain", f"channels_last={word}"),
            directory=tmp_path / word,
        )
        losses.append([float(row["loss/train"]) for row in rows(tmp_path / word)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][:2] == pytest.approx(losses[1][:2], rel=1e-5)


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
    has_bf16 = fused.multiplies_bf16()
    assert build_precision("auto", CPU) == (
        ("bf16", "this processor multiplies it faster than fp32 (AVX512-BF16 or AMX)")
        if has_bf16
        else ("fp32", "this processor has no bf16 products (AVX512-BF16 or AMX)")
    )
    though = "" if has_bf16 else ", though this processor has no bf16 products (AVX512-BF16 or AMX)"
    assert build_precision("bf16", CPU) == ("bf16", f"asked for{though}")
    assert build_precision("fp32", CPU) == ("fp32", "asked for")


@pytest.mark.slow
def test_without_a_compiler(tmp_path: Path) -> None:
    code, _, err = call("dataset=synthetic", "device=cpu", "compile=true", cwd=tmp_path, PATH=str(tmp_path), CXX="")
    assert code == 2
    assert err == (
        "resnet-train: compile: expected to find what compile=true needs, but no C++ compiler found (looked for $CXX, "
        "c++, g++, clang++)\n"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_compiled_run_is_the_same_training_and_resumes_bit_for_bit(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    length = ("epochs=null", "steps=8", "checkpoint.every=1steps", "checkpoint.keep=100", "log_every=1")
    plain = run(tiny(*length, "kernels=plain"), directory=tmp_path / "plain")
    with caplog.at_level("INFO"):
        straight = run(tiny(*length, "compile=true"), directory=tmp_path / "straight")
    assert (plain.compiled, straight.compiled, straight.kernels) == (False, True, "plain")
    assert "first update, with compilation, in " in caplog.text
    losses = [[float(row["loss/train"]) for row in rows(tmp_path / name)] for name in ("plain", "straight")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][:2] == pytest.approx(losses[1][:2], rel=1e-5)
    run(tiny(*length, "compile=true"), directory=cut_back(tmp_path / "straight", tmp_path / "resumed", step=3))
    finals = [
        checkpoint.read(tmp_path / name / "checkpoints" / "step-00000008.pt")["state"]["model"]
        for name in ("straight", "resumed")
    ]
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])
    assert list(finals[0]) == list(finals[1])
    assert not any("_orig_mod" in name for name in finals[0]), "names are the network's own"


def test_a_profile(tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run(tiny("epochs=null", "steps=16", "profile=true"), directory=tmp_path)
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name == "updates-6-to-15.pt.trace.json"
    assert f"trace of updates 6 to 15, for https://ui.perfetto.dev: {trace}" in caplog.text
    names = [event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]]
    assert names.count("Optimizer.step#SGD.step") == 10
    lines = caplog.text.partition("dearest operations")[2].partition("trace of updates")[0].splitlines()[1:-1]
    assert len(lines) == 10
    milliseconds = [float(line.split()[-3]) for line in lines]
    assert milliseconds == sorted(milliseconds, reverse=True)
    assert milliseconds[0] > 0
    assert any("aten::convolution_backward" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "name"), [(1, "updates-1-to-1"), (7, "updates-1-to-7"), (15, "updates-6-to-15")])
def test_a_profile_of_a_short_run(tiny: Tiny, tmp_path: Path, steps: int, name: str) -> None:
    run(tiny("epochs=null", f"steps={steps}", "profile=true"), directory=tmp_path)
    assert [path.name for path in (tmp_path / "profile").iterdir()] == [f"{name}.pt.trace.json"]


@pytest.mark.slow
def test_a_profile_changes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    for word in ("true", "false"):
        run(tiny("epochs=null", "steps=12", f"profile={word}"), directory=tmp_path / word)
    assert (tmp_path / "true/metrics.csv").read_bytes() == (tmp_path / "false/metrics.csv").read_bytes()
    assert not (tmp_path / "false/profile").exists()
