"""Copies of a moment: independent of what follows, on the device by one operation a type, then to the host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_train.runs.snapshot import take

OLD = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11)
WITHOUT_GPU = pytest.mark.skipif(
    OLD or torch.cuda.is_available(), reason="a real GPU is asked instead, or fake tensors of this torch want a driver"
)


def content(device: str = "cpu") -> dict[str, Any]:
    weight = torch.zeros(2, 3, 4, 4, device=device).contiguous(memory_format=torch.channels_last)
    return {
        "model": {"weight": weight, "alias": weight, "count": torch.zeros((), dtype=torch.int64, device=device)},
        "state": [{"momentum": torch.zeros(3, device=device)}, (torch.zeros(2, device=device), None, 1.5, "word")],
        "draws": torch.zeros(5, dtype=torch.uint8),
    }


def test_what_follows_does_not_change_it() -> None:
    original = content()
    snapshot = take(original)
    for tensor in (original["model"]["weight"], original["model"]["count"], original["state"][0]["momentum"]):
        tensor.add_(1)
    found, expected = snapshot.on_host(), content()
    torch.testing.assert_close(found["model"], expected["model"], rtol=0, atol=0)
    assert found["model"]["weight"].stride() == expected["model"]["weight"].stride()
    assert torch.equal(found["state"][0]["momentum"], torch.zeros(3))
    assert type(found["state"][1]) is tuple
    assert found["state"][1][1:] == (None, 1.5, "word")
    assert list(found) == list(expected)


def test_parameters_are_saved_as_tensors() -> None:
    found = take({"weight": torch.nn.Parameter(torch.ones(2))}).on_host()["weight"]
    assert type(found) is torch.Tensor
    assert not found.requires_grad


class Operations(TorchDispatchMode):
    """Lists operations, with the devices that they read from and write to."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str, str, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if name == "_foreach_copy_":
            self.seen.append((name, args[1][0].device.type, args[0][0].device.type, True))
        elif name == "copy_":
            self.seen.append((name, args[1].device.type, args[0].device.type, args[2:] == (True,)))
        elif name in ("_to_copy", "clone"):
            self.seen.append((name, args[0].device.type, out.device.type, bool((kwargs or {}).get("non_blocking"))))
        return out


class Stream:
    """What is asked of a stream; there is no driver that would make one."""

    log: list[str]

    def __init__(self, _device: Any) -> None:
        self.log = Stream.log

    def record_event(self) -> str:
        self.log.append("taken")
        return "taken"

    def wait_event(self, event: str) -> None:
        self.log.append(f"waits for {event}")

    def synchronize(self) -> None:
        self.log.append("host waits")


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What streams of a GPU that is not there were asked for, within fake tensors."""
    Stream.log = []
    monkeypatch.setattr("torch.cuda.current_stream", Stream)
    monkeypatch.setattr("torch.cuda.Stream", Stream)
    monkeypatch.setattr("torch.cuda.stream", lambda _stream: contextlib.nullcontext())
    with FakeTensorMode():
        yield Stream.log


@WITHOUT_GPU
def test_a_gpu_copies_each_type_at_once_and_nothing_waits(streams: list[str]) -> None:
    with Operations() as operations:
        original = content("cuda")
        operations.seen.clear()
        snapshot = take(original)
        assert sorted(operations.seen) == [("_foreach_copy_", "cuda", "cuda", True)] * 2 + [
            ("_to_copy", "cpu", "cpu", False)
        ]
        assert streams == ["taken"]
        operations.seen.clear()
        found = snapshot.on_host()
    assert operations.seen == [("copy_", "cuda", "cpu", True)] * 5
    assert streams == ["taken", "waits for taken", "host waits"]
    assert found["model"]["weight"].device.type == "cpu"
    assert found["model"]["weight"].stride() == original["model"]["weight"].stride()


@WITHOUT_GPU
def test_without_room_on_the_gpu_the_copy_is_made_on_the_host(
    streams: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = content("cuda")

    def full(*_arguments: Any, **_options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty_like", full)
    snapshot = take(original)
    assert snapshot.content["model"]["weight"].device.type == "cpu"
    assert snapshot.on_host()["state"][0]["momentum"].device.type == "cpu"
    assert streams == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_moment_is_the_one_asked_for() -> None:
    values = torch.zeros(50, 1000, 1000, device="cuda")
    for number in range(4):
        values.fill_(number)
        snapshot = take({"values": values})
        values.fill_(-1)
        found = snapshot.on_host()["values"]
        assert (found.device.type, found.is_pinned()) == ("cpu", True)
        assert (found == number).all()
