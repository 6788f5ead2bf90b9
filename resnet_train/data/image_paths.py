"""Which images a command is to look at: files, folders, patterns, standard input. Listed here, not opened; no torch."""

from __future__ import annotations

import codecs
import glob
import io
import locale
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resnet_train.data.decode import image_endings
from resnet_train.data.folder_names import composed, ending, is_own_file, is_own_folder
from resnet_train.data.imagefolder import described, walk

HEAD = 1 << 16  # bytes of standard input by which an image is told from paths
# A text holds none of these but tabs and line ends; NUL separates paths, as find -print0 does.
_BINARY = re.compile(rb"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass
class Listed:
    """What was found: paths, and what stood in the way."""

    paths: list[str] = field(default_factory=list)  # as they were given; of a folder sorted, the same on every system
    problems: list[str] = field(default_factory=list)  # a line each
    left_out: Counter[str] = field(default_factory=Counter)  # files that are no images, by their endings

    def notes(self) -> str:
        """What was left out, in words; empty where nothing was."""
        return described(self.left_out)


def list_images(names: Sequence[str], *, but: Path | None = None) -> Listed:
    """Paths of the images that ``names`` mean.

    A file is taken as it is; a folder gives the images anywhere in it, without what is hidden; a pattern (``*.png``,
    ``photos/**``) gives what matches, since shells on Windows leave it as it is. What lies in the folder ``but`` is
    not listed.
    """
    found = Listed()
    for name in names:
        if os.path.isdir(name):
            _add_folder(found, name)
        elif glob.has_magic(name) and not os.path.lexists(name):
            _add_pattern(found, name)
        elif os.path.exists(name):
            found.paths.append(name)
        else:
            found.problems.append(f"{name}: no such file or folder")
    if but is not None and but.is_dir():
        inside = os.path.join(os.path.realpath(but), "")
        folders = {folder: os.path.join(os.path.realpath(folder), "") for folder in map(os.path.dirname, found.paths)}
        found.paths = [path for path in found.paths if not folders[os.path.dirname(path)].startswith(inside)]
    return found


def _add_folder(found: Listed, name: str) -> None:
    folder, before = Path(name), len(found.paths)
    problems: list[OSError] = []
    files = sorted(walk(folder, folder, on_error=problems.append), key=composed)
    found.problems += [f"{error.filename}: {error.strerror}" for error in problems]
    _add(found, [os.path.join(name, file.replace("/", os.sep)) for file in files])
    if len(found.paths) == before and not problems:
        found.problems.append(f"{name}: a folder without images")


def _add_pattern(found: Listed, pattern: str) -> None:
    before, named = len(found.paths), set(Path(pattern).parts)
    matches = sorted(glob.iglob(pattern, recursive=True), key=composed)
    folders = {match: None for match in matches if os.path.isdir(match)}
    if "**" not in named:  # which matches what lies in folders by itself
        for folder in folders:
            _add_folder(found, folder)
    own = [match for match in matches if all(part in named or is_own_folder(part) for part in Path(match).parts[:-1])]
    _add(found, [match for match in own if match not in folders and is_own_file(os.path.basename(match))])
    if len(found.paths) == before:
        found.problems.append(f"{pattern}: no image matches this pattern")


def _add(found: Listed, files: Sequence[str]) -> None:
    """Add the images among ``files``, by their endings."""
    endings = image_endings()
    for file in files:
        kind = ending(file)
        if kind in endings:
            found.paths.append(file)
        else:
            found.left_out[kind or "no ending"] += 1


# --------------------------------------------------------------------------------------------------- standard input


def read_images(stream: io.BufferedReader) -> bytes | Iterator[str]:
    """One image, whose bytes ``stream`` holds, or the paths of images that it lists, one a line or separated by NUL.

    Which of the two is told by the first bytes. Paths are yielded as they come in.
    """
    head = b""
    while len(head) < HEAD and not re.search(rb"[\0\n]", head):
        if not (read := stream.read1(HEAD - len(head))):
            break
        head += read
    return head + stream.read() if _is_image(head) else _paths(head, stream)


def _is_image(head: bytes) -> bool:
    """Whether an image begins with ``head``; paths whose first one exists are paths, whatever they look like."""
    from PIL import Image

    first = re.split(rb"[\0\n]", head, maxsplit=1)[0]
    if not head or os.path.lexists(_decoded(first)):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return True
    if _BINARY.search(head):
        return True
    try:
        with Image.open(io.BytesIO(head)):  # formats that are text: PPM, XBM
            return True
    except Exception:  # see `decode`
        return False


def _paths(head: bytes, stream: io.BufferedReader) -> Iterator[str]:
    separator = b"\0" if b"\0" in head else b"\n"
    rest = head
    while True:
        *records, rest = rest.split(separator)
        yield from filter(None, map(_decoded, records))
        if not (read := stream.read1(HEAD)):
            break
        rest += read
    yield from filter(None, [_decoded(rest)])


def _decoded(record: bytes) -> str:
    """A path as programs write it: in bytes of the file system, on Windows in UTF-8 or the country's encoding."""
    record = record.removesuffix(b"\r").removeprefix(codecs.BOM_UTF8)  # PowerShell puts it in front
    if os.name != "nt":
        return os.fsdecode(record)
    try:
        return record.decode()
    except UnicodeDecodeError:
        return record.decode(locale.getpreferredencoding(), errors="replace")
