"""CUDA graphs: the real ones where there is a GPU; elsewhere what is asked of PyTorch, and what a failure leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from resnet_train.training.cuda_graph import GraphedStep, LaunchedStep
from resnet_train.training.recorder import CudaRecorder
from resnet_train.training.step import StepOptions, evaluate, grad_norm

Make = Callable[..., Any]

without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@without_gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("distributions", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        StepOptions(),
        StepOptions(precision="bf16"),
        StepOptions(label_smoothing=0.1, clip_grad_norm=0.05, accumulate=4, ema_decay=0.9),
        StepOptions(precision="fp16", clip_grad_norm=0.1),
    ],
    ids=str,
)
def test_a_graph_makes_the_same_steps(
    small_state: Make, small_batch: Make, options: StepOptions, distributions: bool, optimizer: str
) -> None:
    """One by one, recorded from the fifth on, and with a checkpoint copied by another thread meanwhile."""
    ema, loss_scale = options.ema_decay is not None, 1024.0 if options.precision == "fp16" else None
    states = [small_state(optimizer=optimizer, ema=ema, loss_scale=loss_scale, device="cuda") for _ in range(2)]
    device = torch.device("cuda", 0)
    launched = LaunchedStep(states[0], options=options, device=device)
    graphed = GraphedStep(states[1], options=options, recorder=CudaRecorder(device), required=True)
    for step in range(9):
        batch = small_batch(step, distributions=distributions, device="cuda")
        lr = 0.01 * (step + 1)
        expected = launched(*batch, lr=lr)
        norms = [grad_norm(states[0], expected)]
        writer = threading.Thread(target=lambda: [value.cpu() for value in states[1].model.state_dict().values()])
        writer.start()
        output = graphed(*batch, lr=lr)
        writer.join()
        norms.append(grad_norm(states[1], output))
        torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norms[1], norms[0], rtol=1e-3, atol=1e-5)
        assert states[1].step == step + 1
        assert [group["lr"] for group in states[1].optimizer.param_groups] == [lr, lr]
        evaluate(states[1].eval_model, [small_batch(step, device="cuda")], precision=options.precision)
    assert graphed.outcome.graph
    torch.testing.assert_close(states[1].model.state_dict(), states[0].model.state_dict(), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@without_gpu
def test_a_recording_that_fails_on_a_gpu(small_state: Make, small_batch: Make) -> None:
    """To read a value spoils it. Dropout draws afterwards, memory is served, and the stream is the one before."""
    state, device = small_state(dropout=0.3, device="cuda"), torch.device("cuda", 0)
    before = torch.cuda.current_stream()

    def forward(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = state.model(images)
        return logits if logits.max().item() < 1e9 else logits / 2

    graphed = GraphedStep(state, options=StepOptions(), recorder=CudaRecorder(device), forward=forward)
    for step in range(6):
        assert graphed(*small_batch(step, device="cuda"), lr=0.1).loss.isfinite()
    assert graphed.outcome.reason.startswith("it failed: ")
    assert torch.cuda.current_stream() == before
    torch.cuda.empty_cache()


# ------------------------------------------------------------------------------------------- without a GPU


class Driver:
    """What PyTorch says to the CUDA runtime while a graph is recorded on the second of two GPUs."""

    def __init__(self, *, ending_fails: bool) -> None:
        self.ending_fails = ending_fails
        self.streams = ["default"]  # the last one is current
        self.devices = [0]
        self.allocating = False
        self.released: list[tuple[int, Any]] = []
        self.generators = [SimpleNamespace(graphsafe_set_state=None), self.generator()]

    def generator(self) -> SimpleNamespace:
        made = SimpleNamespace(state="as it was", capturing=False)
        made.clone_state = lambda: made.state
        made.graphsafe_set_state = lambda state: vars(made).update(state=state, capturing=False)
        return made

    @contextmanager
    def graph(self, _graph: Any, pool: Any, stream: Any, *, capture_error_mode: str) -> Iterator[None]:
        """As torch.cuda.graph: where a capture cannot be ended, its stream stays current and the rest undone."""
        assert (self.streams[-1], self.devices[-1], capture_error_mode) == (stream, 1, "thread_local")
        self.streams.append(stream)
        self.allocating = self.generators[1].capturing = True
        try:
            yield
        finally:
            if self.ending_fails:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.end(1, pool)
            self.generators[1].capturing = False
            self.streams.pop()

    def end(self, _device: int, _pool: Any) -> None:
        if not self.allocating:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.allocating = False

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before = self.streams[:]
        self.streams.append(stream)
        try:
            yield
        finally:
            self.streams = before

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        assert device.index is not None
        self.devices.append(device.index)
        try:
            yield
        finally:
            self.devices.pop()


@pytest.fixture(params=[True, False], ids=["ending fails", "ending works"])
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """In the place of a GPU's."""
    driver = Driver(ending_fails=request.param)
    for name, value in {
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "graph_pool_handle": lambda: (0, 7),
        "graph": driver.graph,
        "Stream": lambda device: f"stream of {device}",
        "stream": driver.stream,
        "device": driver.device,
        "current_device": lambda: driver.devices[-1],
        "default_generators": driver.generators,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", driver.end, raising=False)
    released = driver.released
    monkeypatch.setattr(
        torch._C, "_cuda_releasePool", lambda device, pool: released.append((device, pool)), raising=False
    )
    return driver


def test_a_recording_that_fails_leaves_nothing_behind(driver: Driver) -> None:
    """The first error counts; the one at the end of the recording says nothing about it."""
    recorder, seen = CudaRecorder(torch.device("cuda", 1)), []

    def step() -> None:
        seen.append(driver.streams[-1])
        raise ValueError("the reason")

    with pytest.raises(ValueError, match=r"^the reason$"):
        recorder.record(step)
    assert seen == ["stream of cuda:1"]
    assert (driver.streams, driver.devices, driver.allocating) == (["default"], [0], False)
    generator = driver.generators[1]
    assert (generator.state, generator.capturing) == ("as it was", False)
    assert driver.released == ([(1, (0, 7))] if driver.ending_fails else []), "a graph releases its memory by itself"


def test_a_recording_that_cannot_be_ended(driver: Driver) -> None:
    recorder = CudaRecorder(torch.device("cuda", 1))
    if driver.ending_fails:
        with pytest.raises(RuntimeError, match="operation failed due to a previous error during capture"):
            recorder.record(lambda: None)
    else:
        recorder.record(lambda: None)()
    assert (driver.streams, driver.devices, driver.allocating) == (["default"], [0], False)
