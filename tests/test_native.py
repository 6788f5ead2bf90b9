"""The C++ files: compiled once, kept, and told apart from what is missing; in processes, with real compilers."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resnet_train import native

CSRC = Path(native.__file__).parent / "csrc"
LOAD = """
from resnet_train import native
try:
    print("loaded", native.load_batch()._name)
except native.Unavailable as error:
    print("unavailable:", error)
"""


def load(cache: Path, **environment: str) -> str:
    """What a new process says that loads one of the files."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), **environment},
        cwd=CSRC.parent.parent,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_file_is_compiled_once_and_kept(compiler: str, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    wrapper = script(tmp_path / "cxx", f'echo "$@" >> {calls}\nexec {compiler} "$@"')
    first = load(tmp_path / "cache", CXX=str(wrapper))
    assert first.startswith(f"loaded {tmp_path}/cache/resnet-train/batch-")
    assert load(tmp_path / "cache", CXX=str(wrapper)) == first
    compiled = [line for line in calls.read_text().splitlines() if "-shared" in line]
    assert len(compiled) == 1
    kept = sorted((tmp_path / "cache/resnet-train").iterdir())
    assert [str(path) for path in kept] == [first.removeprefix("loaded ")], "nothing else is left behind"


@pytest.mark.usefixtures("compiler")
def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    first = load(tmp_path)
    kept = Path(first.removeprefix("loaded "))
    size = kept.stat().st_size
    kept.write_bytes(b"not a library")
    assert load(tmp_path) == first
    assert kept.stat().st_size == size


def test_another_compiler_has_files_of_its_own(compiler: str, tmp_path: Path) -> None:
    wrapper = script(tmp_path / "cxx", f'[ "$1" = --version ] && echo "cxx 1.0" && exit\nexec {compiler} "$@"')
    assert load(tmp_path) != load(tmp_path, CXX=str(wrapper))


@pytest.mark.usefixtures("compiler")
def test_without_a_folder_to_keep_files_it_compiles_for_itself(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = load(tmp_path / "file", TMPDIR=str(tmp_path))
    assert said.startswith(f"loaded {tmp_path}/resnet-train-")
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "removed at the end"


def test_without_a_compiler(tmp_path: Path) -> None:
    expected = "unavailable: no C++ compiler found (looked for $CXX, c++, g++, clang++)"
    assert load(tmp_path, PATH=str(tmp_path), CXX="") == expected
    assert load(tmp_path, PATH=str(tmp_path), CXX="/no/such/compiler") == expected


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    text = (
        '[ "$1" = --version ] && echo broken 1.0 && exit\necho "in file" >&2\necho "fatal error: no space" >&2\nexit 1'
    )
    wrapper = script(tmp_path / "cxx", text)
    assert load(tmp_path, CXX=str(wrapper)) == f"unavailable: {wrapper} failed on batch.cpp: fatal error: no space"
    assert list((tmp_path / "resnet-train").iterdir()) == []


def test_a_result_that_cannot_be_loaded(tmp_path: Path) -> None:
    text = '[ "$1" = --version ] && echo odd 1.0 && exit\nwhile [ "$1" != -o ]; do shift; done\necho nothing > "$2"'
    said = load(tmp_path, CXX=str(script(tmp_path / "cxx", text)))
    assert said.startswith("unavailable: batch-")
    assert " could not be loaded: " in said


# ------------------------------------------------------------------------------------------- gradients of weights, AMX


@pytest.fixture(scope="module")
def in_software(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """`csrc/conv_weight_grad.cpp` with tiles in software: everything of it but the instructions themselves."""
    if platform.machine() != "x86_64":
        pytest.skip("AMX is of x86")
    target = tmp_path_factory.mktemp("amx") / "conv_weight_grad.so"
    header = Path(__file__).with_name("amx_in_software.h")
    options = ["-std=c++17", "-O2", "-march=native", "-fopenmp", "-shared", "-fPIC", "-include", str(header)]
    subprocess.run([compiler, *options, "-o", str(target), str(CSRC / "conv_weight_grad.cpp")], check=True, timeout=120)
    library = ctypes.CDLL(str(target))
    library.conv_weight_grad.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_long] * 5]
    library.conv_weight_grad.restype = None
    return library


# (images, height, width, in, out), in an order in which buffers grow and shrink
SHAPES = [
    (1, 1, 1, 16, 16),
    (3, 8, 8, 16, 32),
    (16, 8, 8, 64, 64),
    (5, 7, 9, 48, 16),
    (2, 4, 6, 16, 16),
    (33, 6, 5, 32, 16),
    (2, 40, 33, 16, 16),
    (1, 3, 3, 16, 16),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_of_the_weights_in_software(in_software: ctypes.CDLL, shape: tuple[int, ...]) -> None:
    count, height, width, channels_in, channels_out = shape
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(count, height, width, channels_in, generator=draws).bfloat16()
    dy = torch.randn(count, height, width, channels_out, generator=draws).bfloat16()
    found = torch.full((channels_out, 3, 3, channels_in), torch.nan)
    in_software.conv_weight_grad(x.data_ptr(), dy.data_ptr(), found.data_ptr(), *shape)
    expected = torch.nn.grad.conv2d_weight(
        x.permute(0, 3, 1, 2).double(),
        (channels_out, channels_in, 3, 3),
        dy.permute(0, 3, 1, 2).double(),
        padding=1,
    )
    torch.testing.assert_close(found.permute(0, 3, 1, 2).double(), expected, rtol=1e-4, atol=1e-4)


MEMORY = """
import os, torch
from resnet_train import native

def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

native.return_free_memory()
native.install_allocator()
kept = torch.arange(2_000_000)
blocks = [torch.ones(10_000_000 + 3_000_000 * i) for i in range(4)]
full = megabytes()
del blocks
idle = megabytes()
native.return_free_memory()
print(round(full - idle), round(idle - megabytes()), bool((kept == torch.arange(2_000_000)).all()))
again = torch.ones(10_000_000)
print(again.sum().item())
"""


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory in use")
def test_memory_is_kept_until_it_is_asked_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=120, cwd=CSRC.parents[1]
    )
    assert done.stderr == ""
    (still_there, returned, untouched), (total,) = (line.split() for line in done.stdout.splitlines())
    assert int(still_there) < 8, "of the 221 MB of the four tensors, all are kept"
    assert int(returned) > 200
    assert (untouched, total) == ("True", "10000000.0")
