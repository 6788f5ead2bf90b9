"""Compiles C++ files when they are first needed, with the compiler of the machine, and loads them.

The result is kept in ``$XDG_CACHE_HOME/resnet-train`` (``~/.cache/resnet-train``) under a name made of everything that
it depends on: source and headers, compiler, options, processor, PyTorch. Whoever asks gets `Unavailable`, with the
reason, on a machine where this cannot be done; nothing depends on it but speed.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from resnet_train.config.paths import user_cache

COMPILE_TIMEOUT_SECONDS = 120
COMPILE_SECONDS = 5  # of all files, on one core of a server of 2023
PACKAGE = "resnet_train.kernels"
_SCRATCH = "building-"
OPTIONS = ("-shared", "-fPIC")
FAST = ("-std=c++17", "-O3", "-march=native", "-fopenmp")
OPTIONAL = ("-march=native", "-fopenmp")  # what a compiler may lack: Apple's clang has no OpenMP
# The compiler as a process group of its own that does not outlive us, however we end: the pipe on standard input closes
# with us, and then the group is killed.
_WATCHED = 'exec 3<&0; (read _ <&3; kill -KILL 0) & "$@" 3<&- </dev/null; status=$?; kill -KILL $!; exit $status'

logger = logging.getLogger(__name__)


class Unavailable(Exception):
    """The code could not be compiled or loaded here; the text says why, in a few words."""


@cache
def compiler() -> tuple[str, str]:
    """Path and version line of the C++ compiler: ``$CXX``, else c++, g++ or clang++ of the PATH."""
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        path = shutil.which(name)
        if path is not None:
            try:
                answer = subprocess.run([path, "--version"], capture_output=True, timeout=20, check=True)
            except (OSError, subprocess.SubprocessError):
                continue
            return path, os.fsdecode(answer.stdout).partition("\n")[0]
    raise Unavailable("no C++ compiler found (looked for $CXX, c++, g++, clang++)")


@cache
def load_norm_act() -> ctypes.CDLL:
    """Batch norm, addition and ReLU in one: ``csrc/norm_act.cpp``. Raises `Unavailable`."""
    library = load("norm_act.cpp", FAST)
    pointer, number, count = ctypes.c_void_p, ctypes.c_float, ctypes.c_long
    for dtype in ("float32", "bfloat16"):
        for name, arguments in (
            ("forward", [*[pointer] * 7, number, number, count, count, pointer]),
            ("inference", [*[pointer] * 5, count, count]),
            ("backward", [*[pointer] * 8, count, count]),
        ):
            function = getattr(library, f"norm_act_{name}_{dtype}")
            function.argtypes, function.restype = arguments, None
    return library


@cache
def load_batch() -> ctypes.CDLL:
    """Crop, flip and normalise in one: ``csrc/batch.cpp``. Raises `Unavailable`."""
    library = load("batch.cpp", FAST)
    pointer, count = ctypes.c_void_p, ctypes.c_long
    function = library.crop_flip_normalise
    function.argtypes, function.restype = [*[pointer] * 5, *[count] * 5, ctypes.c_int, pointer, pointer], None
    return library


@cache
def load_winograd() -> ctypes.CDLL:
    """3x3 convolutions with their gradients, by Winograd's algorithm: ``csrc/winograd.cpp``. Raises `Unavailable`."""
    library = load("winograd.cpp", FAST)
    for dtype in ("float32", "bfloat16"):
        convolve = getattr(library, f"winograd_convolve_{dtype}")
        convolve.argtypes, convolve.restype = [*[ctypes.c_void_p] * 3, *[ctypes.c_long] * 5, ctypes.c_int], None
        gradient = getattr(library, f"winograd_weight_gradient_{dtype}")
        gradient.argtypes, gradient.restype = [*[ctypes.c_void_p] * 3, *[ctypes.c_long] * 5], None
    return library


@cache
def accepts(option: str) -> bool:
    """Whether compiler and linker accept an option: tried on an empty file."""
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=_folder()) as scratch:
        empty = Path(scratch, "empty.cpp")
        empty.touch()
        command = [compiler()[0], *OPTIONS, option, str(empty), "-o", str(Path(scratch, "empty.so"))]
        return _compile(command).returncode == 0


def load(source: str, options: Sequence[str], *, package: str = PACKAGE, depends_on: str = "") -> ctypes.CDLL:
    """Compile ``csrc/source`` of ``package``, unless that was done before, and load it. Raises `Unavailable`.

    ``options`` go to the compiler, without those of `OPTIONAL` that it refuses; the headers of this package's ``csrc/``
    are found by ``#include "..."``. ``depends_on``: what else tells one result from another.
    """
    if os.name == "nt":
        raise Unavailable("the C++ has not been tried on Windows yet")
    path, version = compiler()
    files = _headers() | {source: resources.files(package).joinpath("csrc", source).read_bytes()}

    def target_of(options: Sequence[str]) -> Path:
        key = hashlib.sha256()
        names_and_texts = (part for name, text in files.items() for part in (name.encode(), text))
        depends = (path, *OPTIONS, *options, version, _processor(), depends_on)
        for part in (*names_and_texts, *map(str.encode, depends)):
            key.update(hashlib.sha256(part).digest())
        return _folder() / f"{Path(source).stem}-{key.hexdigest()[:24]}.so"

    if not target_of(options).exists():
        options = [option for option in options if option not in OPTIONAL or accepts(option)]
    target = target_of(options)
    if target.exists():
        with contextlib.suppress(OSError):  # corrupt: then it is made again
            return ctypes.CDLL(str(target))
    _announce()
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=target.parent) as scratch:
        built = Path(scratch, "built.so")
        for name, text in files.items():
            Path(scratch, name).write_bytes(text)
        done = _compile([path, *OPTIONS, "-o", str(built), str(Path(scratch, source)), *options])
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise Unavailable(f"{path} failed on {source}: {lines[0].strip() if lines else 'no message'}")
        os.replace(built, target)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise Unavailable(f"{target.name} could not be loaded: {error}") from error


@cache
def _announce() -> None:
    """Say once that it will take a moment, and clear what compilers left that were killed with their processes."""
    logger.info("compiling kernels, once (about %d s)", COMPILE_SECONDS)
    for left in _folder().glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 10 * COMPILE_TIMEOUT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _compile(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a compiler that ends when this process does. Raises `Unavailable` where it cannot be run or takes long."""
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    reading, writing = os.pipe()
    try:
        if os.name == "posix":
            command = ["/bin/sh", "-c", _WATCHED, "sh", *command]
            options["process_group"] = 0
        with subprocess.Popen(command, stdin=reading, **options) as process:
            try:
                _, text = process.communicate(timeout=COMPILE_TIMEOUT_SECONDS)
            finally:
                os.close(writing)
                writing = -1
        return subprocess.CompletedProcess(command, process.returncode, "", text)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{compiler()[0]} could not be run: {error}") from error
    finally:
        os.close(reading)
        if writing != -1:
            os.close(writing)


def _headers() -> dict[str, bytes]:
    files = sorted(resources.files(PACKAGE).joinpath("csrc").iterdir(), key=lambda file: file.name)
    return {file.name: file.read_bytes() for file in files if file.name.endswith(".h")}


@cache
def _folder() -> Path:
    """Where compiled files are kept; a folder of this process alone where that place cannot be written."""
    folder = user_cache()
    if folder is not None:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
    try:
        temporary = tempfile.TemporaryDirectory(prefix="resnet-train-", ignore_cleanup_errors=True)
    except OSError as error:
        raise Unavailable(f"no folder to compile in: {error}") from error
    atexit.register(temporary.cleanup)
    return Path(temporary.name)


def _processor() -> str:
    """What tells processors apart whose instructions differ: code made for one may not run on another."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            flags = next(line for line in file if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        flags = ""
    return f"{platform.system()} {platform.machine()} {platform.processor()} {flags}"
