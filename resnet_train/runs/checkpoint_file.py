"""What a checkpoint file says, read without torch, without running anything, and before memory is taken for tensors.

A checkpoint is what ``torch.save`` writes, a ZIP archive, whose comment field holds the SHA-256 of all that stands
before it, put there by `runs.sealing`. So ``torch.load(path, weights_only=True)`` reads it as it is, and `unseal` finds
any flipped bit first (ZIP's own checksums leave its headers out, and torch does not look at them).

The file may come from a stranger. `read_declared` takes the few opcodes and names that tensors and plain values need,
and compares what each tensor declares with the bytes that are there: a small file cannot ask for gigabytes.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import pickle
import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

FORMAT = 1
_END = struct.pack("<I", 0x06054B50)  # signature of the ZIP record that ends an archive
END_LENGTH = 22  # bytes of that record up to the comment; its last two bytes are the comment's length
PREFIX = b"sha256:"
CHECKSUM_LENGTH = len(PREFIX) + 64
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of files that torch wrote before version 1.6

# fmt: off
_OPCODES = {
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINSTRING", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "GLOBAL", "REDUCE",
    "NEWOBJ", "BUILD", "BINPERSID",
}
# fmt: on
_BYTES = {  # of an element
    **dict.fromkeys(("Byte", "Char", "Bool"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
MOST_COPIES = 4  # tensors may share their bytes: together they are at most so many times the file
MOST_DEPTH = 50


class CorruptCheckpoint(Exception):
    """The file is not what was once written; the message says why."""


class HoldsObjects(CorruptCheckpoint):
    """It would have to run code to be read: a whole model, say, that was saved."""


# ---------------------------------------------------------------------------------------------------------- checksum


def is_bare_end(record: bytes) -> bool:
    """Whether ``record`` ends a ZIP archive that has no comment."""
    return len(record) == END_LENGTH and record.startswith(_END) and record.endswith(b"\0\0")


def unseal(sealed: bytes) -> bytes:
    """Check the checksum at the end and return the bytes unchanged; raises `CorruptCheckpoint`."""
    body, comment = memoryview(sealed)[:-CHECKSUM_LENGTH], sealed[-CHECKSUM_LENGTH:]
    if not comment.startswith(PREFIX):
        raise CorruptCheckpoint("it does not end in a checksum: truncated, or not one of our checkpoints")
    if comment[len(PREFIX) :] != hashlib.sha256(body).hexdigest().encode():
        raise CorruptCheckpoint("its checksum does not fit its content")
    return sealed


# -------------------------------------------------------------------------------------------------------- what it says


@dataclass(frozen=True)
class DeclaredTensor:
    """A tensor as the file declares it."""

    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True)
class _Kind:
    item_bytes: int


@dataclass(frozen=True)
class _Storage:
    item_bytes: int
    numel: int


def read_declared(file: BinaryIO) -> Any:
    """The plain values in a file of ``torch.save``, with a `DeclaredTensor` for each tensor.

    Raises `CorruptCheckpoint` for everything that is not tensors and plain values, and for tensors that are not there.
    """
    try:
        file.seek(0)
        zipped = file.read(4) == b"PK\3\4"
        size = file.seek(0, io.SEEK_END)
        return _read_zip(file, size) if zipped else _read_legacy(file, size)
    except CorruptCheckpoint:
        raise
    except Exception as error:  # bytes of a stranger: zipfile and pickle meet them with any error there is
        raise CorruptCheckpoint(
            f"expected a file of torch.save, got another, or a broken one: {_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def _read_zip(file: BinaryIO, size: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        sizes = {record.filename: record.file_size for record in records}
        stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
        if not stored or len(sizes) != len(records) or sum(sizes.values()) > size:
            raise CorruptCheckpoint("its records are compressed, or declare more bytes than there are")
        names = [name for name in sizes if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(names) != 1:
            raise CorruptCheckpoint("expected a file of torch.save, got another ZIP archive")
        folder = names[0].removesuffix("data.pkl")
        return _Reader(size, sizes, f"{folder}data/").read(archive.read(names[0]))


def _read_legacy(file: BinaryIO, size: int) -> Any:
    """A magic number, the protocol, facts on the machine, the values, the names of the storages; then their bytes."""
    file.seek(0)
    reader = _Reader(size)
    if reader.read(_next_pickle(file)) != _LEGACY_MAGIC:
        raise CorruptCheckpoint("expected a file of torch.save, got another")
    for _ in ("protocol", "machine"):
        reader.read(_next_pickle(file))
    return reader.read(_next_pickle(file))


def _next_pickle(file: BinaryIO) -> bytes:
    start = file.tell()
    for _ in pickletools.genops(file):
        pass
    length = file.tell() - start
    file.seek(start)
    return file.read(length)


class _Reader:
    """Interprets one file's pickles, and keeps account of what its tensors declare."""

    def __init__(self, size: int, records: dict[str, int] | None = None, folder: str = "") -> None:
        self._size = size
        self._records = records  # of a ZIP archive: name and bytes
        self._folder = folder
        self._legacy: dict[str, int] = {}  # storages of an old file: name and bytes
        self._tensor_bytes = 0

    def read(self, data: bytes) -> Any:
        """The value of one pickle; raises `CorruptCheckpoint`, and whatever `pickle` makes of nonsense."""
        operations = 0
        for operation, argument, _ in pickletools.genops(data):
            operations += 1
            if operation.name not in _OPCODES:
                raise HoldsObjects(f"it holds more than tensors and plain values (opcode {operation.name})")
            if (
                operation.name == "LONG_BINPUT" and isinstance(argument, int) and argument > len(data)
            ):  # unpickling would make room for as many
                raise CorruptCheckpoint("its pickle numbers more values than it has")
        value = _Unpickler(io.BytesIO(data), self).load()
        _check_plain(value, at_most=4 * operations + 100)
        return value

    def storage(self, identity: Any) -> _Storage:
        """What stands for ``("storage", kind, key, device, numel, view)``."""
        name, kind, key, _, numel, *view = identity
        if name != "storage" or type(kind) is not _Kind or type(key) is not str or type(numel) is not int or any(view):
            raise CorruptCheckpoint("it names its storages in a way that no version of torch does")
        num_bytes = numel * kind.item_bytes
        if self._records is None:
            self._legacy[key] = max(num_bytes, self._legacy.get(key, 0))
            there = numel >= 0 and sum(self._legacy.values()) <= self._size
        else:
            there = numel >= 0 and self._records.get(self._folder + key) == num_bytes
        if not there:
            raise CorruptCheckpoint(f"a tensor declares {num_bytes:,} bytes, which are not in the file")
        return _Storage(kind.item_bytes, numel)

    def tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> DeclaredTensor:
        """Stands for ``torch._utils._rebuild_tensor_v2``."""
        numbers = (offset, *shape, *stride)
        if type(storage) is not _Storage or len(shape) != len(stride) or len(shape) > 64:
            raise CorruptCheckpoint("a tensor is not declared as torch does")
        if any(type(number) is not int or number < 0 for number in numbers):
            raise CorruptCheckpoint("the shape of a tensor is not whole numbers")
        numel = math.prod(shape)
        last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True)) if numel else 0
        if numel > storage.numel or last >= max(1, storage.numel):
            raise CorruptCheckpoint(f"a tensor declares {numel:,} elements, its storage has {storage.numel:,}")
        self._tensor_bytes += numel * storage.item_bytes
        if self._tensor_bytes > MOST_COPIES * self._size:
            raise CorruptCheckpoint("its tensors together are many times as large as the file")
        return DeclaredTensor(tuple(shape), numel * storage.item_bytes)


class _Unpickler(pickle.Unpickler):
    """Knows the names that tensors and dictionaries need, and no others; builds no tensors."""

    def __init__(self, file: BinaryIO, reader: _Reader) -> None:
        super().__init__(file)
        self._reader = reader

    def persistent_load(self, pid: Any) -> Any:
        return self._reader.storage(pid)

    def find_class(self, module: str, name: str) -> Any:
        kind = name.removesuffix("Storage")
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2":
                return self._reader.tensor
            case "torch._utils", "_rebuild_parameter":
                return lambda tensor, *_: tensor
            case "torch", "Size":
                return tuple
            case "torch", _ if kind != name and kind in _BYTES:
                return _Kind(_BYTES[kind])
        raise HoldsObjects(f"it holds more than tensors and plain values ({module[:100]}.{name[:100]})")


def _check_plain(value: Any, *, at_most: int) -> None:
    """Raise `CorruptCheckpoint` for objects, and for values that refer to each other so often that they explode."""
    stack, seen = [(value, 0)], 0
    while stack:
        item, depth = stack.pop()
        seen += 1
        if seen > at_most or depth > MOST_DEPTH:
            raise CorruptCheckpoint("its values refer to each other too often, or too deeply")
        if isinstance(item, dict):
            stack += [(inner, depth + 1) for pair in item.items() for inner in pair]
        elif isinstance(item, list | tuple):
            stack += [(inner, depth + 1) for inner in item]
        elif item is not None and not isinstance(item, str | bool | int | float | DeclaredTensor):
            raise HoldsObjects(f"it holds more than tensors and plain values ({type(item).__name__})")


# ------------------------------------------------------------------------------------------------ of a run's directory


def open_checkpoint(path: Path) -> BinaryIO:
    """Open a file of a run directory to read it; a link may be followed for that. Raises ``OSError``."""
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would wait for ever
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return open(path, "rb")


def numbered(folder: Path) -> list[Path]:
    """Checkpoints with a number in ``folder``, newest first, by number: 10 is newer than 9."""
    found = [
        (steps, path) for path in folder.glob("step-*.pt") if (steps := steps_of(path)) is not None and path.is_file()
    ]
    return [path for _, path in sorted(found, reverse=True)]


def steps_of(path: Path) -> int | None:
    """The number of completed steps in the name of a checkpoint."""
    match = re.fullmatch(r"step-(\d{1,18})\.pt", path.name, re.ASCII)
    return int(match[1]) if match else None


def newest_content(folder: Path, *, unseen: bool = False) -> dict[str, Any] | None:
    """What the newest whole checkpoint in ``folder`` says, without its tensors; None where there is none.

    With ``unseen`` the checksum is not looked at, so that a large file is not read from end to end.
    """
    for path in (*numbered(folder), folder / "last.pt", folder / "best.pt"):
        try:
            with open_checkpoint(path) as file:
                content = read_declared(file if unseen else io.BytesIO(unseal(file.read())))
        except (OSError, CorruptCheckpoint):
            continue
        if isinstance(content, dict) and content.get("format") == FORMAT:
            return content
    return None
