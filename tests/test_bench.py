"""``resnet-bench`` as a process: figures of every loop, and one line for bad input. Their size is not tested."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.test_cli import PROGRAM, call

BENCH = (str(Path(PROGRAM).with_name("resnet-bench")),)


@pytest.mark.slow
def test_all_loops_are_measured_side_by_side(tmp_path: Path) -> None:
    variants = ("--variant", "dataset.num_train=100 kernels=plain", "--variant", "channels_last=false")
    words = (*TINY, "--rounds", "2", "--seconds", "0.2", "--json", "figures.json", *variants)
    code, out, _ = call(*words, cwd=tmp_path, program=BENCH)
    assert code == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    loops = ["tutorial", "tuned", "ours", "dataset.num_train=100 kernels=plain", "channels_last=false"]
    assert list(figures["sides"]) == loops
    assert list(figures["num_train"].values()) == [200, 200, 200, 100, 200]
    assert list(figures["details"]) == loops[2:]
    assert figures["details"]["channels_last=false"]["choices"]["layout"] == "channels first: asked for"
    assert all(len(side["rounds"]) == 2 and min(side["rounds"]) > 0 for side in figures["sides"].values())
    assert "ours / tutorial: " in out
    assert "ours / tuned: " in out
    assert "ours / dataset.num_train=100 kernels=plain: " in out
    assert "kernels  plain: asked for" in out.partition("dataset.num_train=100 kernels=plain:\n")[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("optim.lr=abc", "optim.lr: expected a number, got 'abc'"),
        ("--variant optim.lr=abc", "optim.lr: expected a number, got 'abc'"),
        ("--sides other", "expected --sides among tutorial,tuned,ours, --rounds and --seconds above 0"),
    ],
)
def test_bad_input(words: str, message: str, tmp_path: Path) -> None:
    assert call(*words.split(), cwd=tmp_path, program=BENCH) == (2, "", f"resnet-bench: {message}\n")
