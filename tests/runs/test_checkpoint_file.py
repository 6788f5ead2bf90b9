"""What a file declares is compared with what it holds, before torch makes room for it."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_train.runs.checkpoint_file import CorruptCheckpoint, DeclaredTensor, read_declared

DTYPES = [
    *(torch.uint8, torch.int8, torch.bool, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
]


def saved(content: Any, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@pytest.mark.parametrize("zipped", [True, False], ids=["ZIP", "before 1.6"])
def test_what_torch_writes_is_read(zipped: bool) -> None:
    weights = {str(dtype): torch.zeros(2, 3, dtype=dtype) for dtype in DTYPES}
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    plain = {"a": [1, 2**40, -1, 1e-5, None, True, "ü"], "b": (1, (2, 3)), "c": {}}
    views = {"flat": torch.arange(12.0).reshape(3, 4).T, "empty": torch.zeros(0, 3), "number": torch.tensor(1)}
    content = {
        "weights": weights,
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameter": torch.nn.Parameter(torch.zeros(5)),
        "size": torch.Size([1, 2]),
        **plain,
        **views,
    }
    found = read_declared(io.BytesIO(saved(content, zipped=zipped)))
    assert {key: found[key] for key in plain} == plain
    assert found["weights"] == {
        name: DeclaredTensor((2, 3), 6 * value.element_size()) for name, value in weights.items()
    }
    assert isinstance(found["model"], OrderedDict)
    assert found["model"].keys() == network.state_dict().keys()
    assert [found[name].shape for name in views] == [(4, 3), (0, 3), ()]


def test_no_torch_is_needed(root: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from resnet_train.runs.checkpoint_file import newest_content\n"
        "content = newest_content(Path('tests/data/run-0.1.0/checkpoints'))\n"
        "assert content['config']['model']['depth'] == 8 and content['state']['step'] == 20\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=60)


# ---------------------------------------------------------------------------------------------------------- small bombs


def rezipped(data: bytes, change: Callable[[str, bytes], bytes], *, method: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with other records."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


def with_number(data: bytes, old: int, new: int) -> bytes:
    """Another number in the pickle: each stands there as BININT1, BININT2, BININT or LONG1."""

    def change(name: str, record: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return record
        changed = record.replace(pickle.dumps(old, 2)[2:-1], pickle.dumps(new, 2)[2:-1])
        assert changed != record
        return changed

    return rezipped(data, change)


def declared_twice(data: bytes) -> bytes:
    """The central directory names the same bytes again and again."""
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as archive:
        record = next(one for one in archive.infolist() if one.filename.endswith("data/0"))
        for number in range(500):
            again = zipfile.ZipInfo(record.filename.replace("data/0", f"data/{number + 1000}"))
            for field in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(again, field, getattr(record, field))
            archive.filelist.append(again)
        archive._didModify = True  # type: ignore[attr-defined]
    return buffer.getvalue()


def laughs(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value] * 10
    return value


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


NUMBERS = torch.arange(10**5)
FLOATS = saved({"a": torch.arange(1000.0)})
BOMBS = {
    "shape": (with_number(FLOATS, 1000, 10**10), "a tensor declares 40,000,000,000 bytes, which are not in the file"),
    "expanded": (saved({"a": torch.zeros(1).expand(10**10)}), "declares 10,000,000,000 elements, its storage has 1"),
    "overlapping": (
        saved({"a": torch.arange(2000.0).as_strided((1000, 1000), (1, 1))}),
        "a tensor declares 1,000,000 elements, its storage has 2,000",
    ),
    "one storage for many": (
        saved({"a": [NUMBERS[:] for _ in range(50)]}),
        "its tensors together are many times as large as the file",
    ),
    "compressed": (
        rezipped(saved({"a": torch.zeros(10**6)}), lambda _, record: record, method=zipfile.ZIP_DEFLATED),
        "its records are compressed, or declare more bytes than there are",
    ),
    "records on top of each other": (
        declared_twice(FLOATS),
        "its records are compressed, or declare more bytes than there are",
    ),
    "shorter record": (
        rezipped(FLOATS, lambda name, record: record[:-4] if name.endswith("data/0") else record),
        "a tensor declares 4,000 bytes, which are not in the file",
    ),
    "billion laughs": (saved({"a": laughs(12)}), "its values refer to each other too often, or too deeply"),
    "depth": (saved({"a": nested(200)}), "its values refer to each other too often, or too deeply"),
    "memo": (
        rezipped(FLOATS, lambda name, record: b"\x80\x02Nr\xff\xff\xff\x7f." if name.endswith("pkl") else record),
        "its pickle numbers more values than it has",
    ),
    "before 1.6": (
        saved({"a": torch.arange(1000.0)}, zipped=False).replace(b"M\xe8\x03", b"J\xff\xff\xff\x7f"),
        "a tensor declares 8,589,934,588 bytes, which are not in the file",
    ),
    "frame": (
        b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b".",
        "it holds more than tensors and plain values (opcode FRAME)",
    ),
    "another ZIP": (
        rezipped(FLOATS, lambda _, record: record).replace(b"data.pkl", b"data.xyz"),
        "expected a file of torch.save, got another ZIP archive",
    ),
    "code": (saved({"a": print}), "it holds more than tensors and plain values (__builtin__.print)"),
    "an object": (saved({"a": {1, 2}}), "it holds more than tensors and plain values"),
    "text": (b"no weights", "expected a file of torch.save, got another, or a broken one: "),
    "nothing": (b"", "expected a file of torch.save, got another, or a broken one: "),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_cannot_ask_for_gigabytes(name: str) -> None:
    data, reason = BOMBS[name]
    assert len(data) < 5_000_000
    with pytest.raises(CorruptCheckpoint) as caught:
        read_declared(io.BytesIO(data))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shape", "expanded", "billion laughs", "memo"])
def test_a_run_that_holds_one_is_refused_before_memory_is_taken(
    tmp_path: Path, name: str, seal: Callable[[bytes], bytes]
) -> None:
    """In a process that may have little more memory than it has anyway; the checksum fits."""
    path = tmp_path / "step-00000001.pt"
    path.write_bytes(seal(BOMBS[name][0]))
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from resnet_train.runs.checkpoint import CorruptCheckpoint, read_checkpoint\n"
        "pages = int(Path('/proc/self/statm').read_text().split()[0])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (200 << 20),) * 2)\n"
        "try: read_checkpoint(Path(sys.argv[1]))\n"
        "except CorruptCheckpoint as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert BOMBS[name][1] in done.stdout, done.stderr
