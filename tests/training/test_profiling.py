"""A look at where the time of a step goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent

from resnet_train.config.run import Config
from resnet_train.train import run
from resnet_train.training.profiling import device_times

Tiny = Callable[..., Config]


@pytest.mark.slow
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


def event(number: int, name: str, device: DeviceType, start: int, end: int) -> FunctionEvent:
    return FunctionEvent(
        id=number, name=name, thread=1, stack=[], start_us=start, end_us=end, use_device="cuda", device_type=device,
        device_index=0,
    )  # fmt: skip


def averages(*events: FunctionEvent) -> EventList:
    found = EventList(list(events), use_device="cuda")
    found._build_tree()
    return found.key_averages()


def test_each_kernel_counts_once() -> None:
    """PyTorch's averages have it in the time of its operator, and once more by itself."""
    operator = event(1, "aten::relu", DeviceType.CPU, 0, 10)
    operator.append_kernel("relu_kernel", 0, 100.0)
    kernel = event(2, "relu_kernel", DeviceType.CUDA, 20, 120)
    assert sum(one.self_device_time_total for one in averages(operator, kernel)) == 200
    assert device_times(averages(operator, kernel)) == {"aten::relu": (100.0, 1)}


def test_kernels_of_a_graph_have_no_operators() -> None:
    launch, kernel = event(1, "cudaGraphLaunch", DeviceType.CPU, 0, 10), event(2, "relu", DeviceType.CUDA, 20, 120)
    assert device_times(averages(launch, kernel)) == {"relu": (100.0, 1)}
    assert device_times(averages(launch)) == {}
