"""The C++ files: compiled once, kept, and told apart from what is missing; in processes, with real compilers."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), **environment},
        cwd=ROOT,
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
def test_a_corrupt_file_is_made_again(tmp_path: Path) -> None:
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
