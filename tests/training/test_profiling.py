"""A look at where the time of a step goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_train.config.run import Config
from resnet_train.train import run

Tiny = Callable[..., Config]


def test_a_profile(tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run(tiny("epochs=null", "steps=16", "profile=true"), directory=tmp_path)
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name == "steps-6-to-15.pt.trace.json"
    assert f"trace of steps 6 to 15, for https://ui.perfetto.dev: {trace}" in caplog.text
    names = [event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]]
    assert names.count("Optimizer.step#SGD.step") == 10
    lines = caplog.text.partition("most expensive operators")[2].partition("trace of steps")[0].splitlines()[1:-1]
    assert len(lines) == 10
    milliseconds = [float(line.split()[-3]) for line in lines]
    assert milliseconds == sorted(milliseconds, reverse=True)
    assert milliseconds[0] > 0
    assert any("aten::convolution_backward" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "name"), [(1, "steps-1-to-1"), (7, "steps-1-to-7"), (15, "steps-6-to-15")])
def test_a_profile_of_a_short_run(tiny: Tiny, tmp_path: Path, steps: int, name: str) -> None:
    run(tiny("epochs=null", f"steps={steps}", "profile=true"), directory=tmp_path)
    assert [path.name for path in (tmp_path / "profile").iterdir()] == [f"{name}.pt.trace.json"]


@pytest.mark.slow
def test_a_profile_changes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    for choice in ("true", "false"):
        run(tiny("epochs=null", "steps=12", f"profile={choice}"), directory=tmp_path / choice)
    assert (tmp_path / "true/metrics.csv").read_bytes() == (tmp_path / "false/metrics.csv").read_bytes()
    assert not (tmp_path / "false/profile").exists()
