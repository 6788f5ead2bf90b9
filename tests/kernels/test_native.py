"""The C++ files: compiled once, kept, and told apart from what is missing; in processes, with real compilers."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Shell

ROOT = Path(__file__).parents[2]
LOAD = """
from resnet_train.kernels import native
try:
    print("loaded", native.load_batch()._name)
except native.Unavailable as error:
    print("unavailable:", error)
"""


def load(cache: Path, **environment: str) -> str:
    """What a new process says that loads one of the files."""
    code, out, err = Shell(ROOT).call("-c", LOAD, program="python", XDG_CACHE_HOME=str(cache), **environment)
    assert (code, err) == (0, "")
    return out.strip()


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
    compiled = [line for line in calls.read_text().splitlines() if "batch.cpp" in line]
    assert len(compiled) == 1
    kept = sorted((tmp_path / "cache/resnet-train").iterdir())
    assert [str(path) for path in kept] == [first.removeprefix("loaded ")], "nothing else is left behind"


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_corrupt_file_is_made_again(tmp_path: Path) -> None:
    first = load(tmp_path)
    kept = Path(first.removeprefix("loaded "))
    size = kept.stat().st_size
    kept.write_bytes(b"not a library")
    assert load(tmp_path) == first
    assert kept.stat().st_size == size


@pytest.mark.slow
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


# Apple's clang: no OpenMP, on some processors no -march=native; and macOS has no huge pages to ask for.
APPLE = """case "$*" in
*-fopenmp*) echo "clang: error: unsupported option '-fopenmp'" >&2; exit 1;;
*-march=native*) echo "clang: error: the clang compiler does not support '-march=native'" >&2; exit 1;;
esac
exec {compiler} -I {headers} "$@" -O0
"""
FUSED = """
import sys, torch
from resnet_train.kernels import allocator
from resnet_train.kernels.choose import choose_backend
from resnet_train.models.resnet import CifarResNet
torch.manual_seed(0)
torch.set_num_threads(int(sys.argv[2]))
model, images = CifarResNet(8), torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
expected = model(images)
options = {"activation": "relu", "precision": "fp32", "compiled": False, "channels_last": True}
backend = choose_backend(sys.argv[1], device=torch.device("cpu"), **options)
backend.convert(model)
allocator.install()
print(backend.name, backend.reason, (model(images) - expected).abs().max().item() < 1e-4, sep=": ")
"""


def fused(cache: Path, cxx: Path, *, name: str, threads: int) -> str:
    """The choice of a new process with that compiler, its reason, and whether the network computes the same."""
    words = ("-c", FUSED, name, str(threads))
    code, out, err = Shell(ROOT).call(*words, program="python", XDG_CACHE_HOME=str(cache), CXX=str(cxx))
    assert (code, err) == (0, "")
    return out.strip()


@pytest.mark.slow
def test_a_compiler_like_apples(compiler: str, tmp_path: Path) -> None:
    """All files compile; without OpenMP they have one thread, which is no gain where PyTorch has several."""
    headers = tmp_path / "headers"
    (headers / "sys").mkdir(parents=True)
    (headers / "sys/mman.h").write_text("#include_next <sys/mman.h>\n#undef MADV_HUGEPAGE\n")
    (headers / "omp.h").write_text("#error there is none\n")
    cxx = script(tmp_path / "cxx", APPLE.format(compiler=compiler, headers=headers))
    one, several, named = (
        fused(tmp_path, cxx, name=name, threads=threads) for name, threads in (("auto", 1), ("auto", 2), ("fused", 2))
    )
    parts = "batch norm, addition and ReLU in one, 3x3 convolutions by Winograd's algorithm"
    assert re.fullmatch(rf"fused: {parts} \(compiled with [^;]*\): True", one)
    assert re.fullmatch(r"plain: .* has no OpenMP: one thread instead of 2: True", several)
    assert re.fullmatch(
        rf"fused: {parts} \(compiled with .*; but .* has no OpenMP: one thread instead of 2\): True", named
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("winograd.cpp", "batch norm, addition and ReLU in one"),
        ("norm_act.cpp", "3x3 convolutions by Winograd's algorithm"),
        ("batch.cpp", "batch norm, addition and ReLU in one, 3x3 convolutions by Winograd's algorithm"),
    ],
)
def test_a_file_that_does_not_compile_is_left_out_alone(compiler: str, tmp_path: Path, file: str, parts: str) -> None:
    fails = (
        f'case "$*" in *{file}*) echo "fatal error: no such instruction" >&2; exit 1;; esac\nexec {compiler} "$@" -O0'
    )
    cxx = script(tmp_path / "cxx", fails)
    said = fused(tmp_path, cxx, name="auto", threads=1)
    reason = re.escape(f"{cxx} failed on {file}: fatal error: no such instruction")
    assert re.fullmatch(
        rf"fused: {re.escape(parts)}(, batches from a table)? \(compiled with .*; but {reason}\): True", said
    )


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_compiler_does_not_outlive_its_process(tmp_path: Path, signum: int) -> None:
    """Nor what it has started itself."""
    text = f'[ "$1" = --version ] && echo slow 1.0 && exit\nsleep 60 &\necho $! > {tmp_path}/pid\nwait'
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "CXX": str(script(tmp_path / "cxx", text))}
    pid = tmp_path / "pid"
    with subprocess.Popen(
        [sys.executable, "-c", LOAD], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL
    ) as started:
        wait_until(lambda: pid.exists() and pid.read_text())
        started.send_signal(signum)
        started.wait(10)
    wait_until(lambda: not runs(int(pid.read_text())))


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def runs(pid: int) -> bool:
    """Whether a process is there that has not ended; one that ended may wait for somebody to ask for its exit code."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return sys.platform != "linux"


SAID = """
import logging
logging.basicConfig(level="INFO", format="%(message)s")
from resnet_train.kernels import native
native.load_batch(), native.load_norm_act()
"""


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiling_is_said_once_and_only_when_it_is_done(tmp_path: Path) -> None:
    left = tmp_path / "resnet-train" / "building-killed"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    said = [
        subprocess.run([sys.executable, "-c", SAID], capture_output=True, text=True, env=environment, cwd=ROOT).stderr
        for _ in range(2)
    ]
    assert said == ["compiling kernels, once (about 5 s)\n", ""]
    assert not left.exists(), "what a compiler left whose process was killed long ago"


COPY = """
import sys
from pathlib import Path
from resnet_train.kernels import native
native.PACKAGE = "other"
sys.path.insert(0, sys.argv[1])
print(native.load("uses.cpp", ["-O1"], package="other")._name)
"""


@pytest.mark.usefixtures("compiler")
def test_a_changed_header_makes_another_file(tmp_path: Path) -> None:
    """The header is found by the file that includes it, and a change of it alone is noticed."""
    folder = tmp_path / "other" / "csrc"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "uses.cpp").write_text('#include "number.h"\nextern "C" int number() { return kNumber; }\n')
    found = []
    for value in (1, 2, 1):
        (folder / "number.h").write_text(f"constexpr int kNumber = {value};\n")
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        words = [sys.executable, "-c", COPY, str(tmp_path)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True, env=environment, cwd=ROOT)
        found.append(done.stdout.strip())
        assert ctypes.CDLL(found[-1]).number() == value
    assert found[0] == found[2] != found[1]
