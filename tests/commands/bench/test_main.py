"""``resnet-bench`` as a process: figures of every loop, and one line for bad input. Their size is not tested."""

from __future__ import annotations

import json

import pytest

from resnet_train.commands.bench.main import split
from tests.conftest import TINY, Shell


def test_a_variant_is_split_as_shells_do_but_for_backslashes() -> None:
    text = r"""compile=true name='a b' "init_from='C:\new files'" dataset.root=C:\images #1"""
    assert split(text) == ["compile=true", "name=a b", r"init_from='C:\new files'", r"dataset.root=C:\images", "#1"]


@pytest.mark.slow
def test_all_loops_are_measured_side_by_side(shell: Shell) -> None:
    variant = "dataset.num_train=100 kernels=plain channels_last=false"
    arguments = (*TINY, "--rounds", "2", "--seconds", "0.2", "--json", "figures.json", "--variant", variant)
    code, out, err = shell.call(*arguments, program="resnet-bench")
    assert code == 0, err
    figures = json.loads((shell.folder / "figures.json").read_text())
    loops = ["tutorial", "tuned", "resnet-train", variant]
    assert list(figures["loops"]) == loops
    assert list(figures["num_train"].values()) == [200, 200, 200, 100]
    assert list(figures["details"]) == loops[2:]
    assert figures["details"][variant]["choices"]["layout"] == "channels first: asked for"
    assert all(len(loop["rounds"]) == 2 and min(loop["rounds"]) > 0 for loop in figures["loops"].values())
    assert "resnet-train / tutorial: " in out
    assert "resnet-train / tuned: " in out
    assert f"resnet-train / {variant}: " in out
    assert "kernels  plain: asked for" in out.partition(f"{variant}:\n")[2]
    assert [line.partition(":")[0] for line in err.splitlines() if " images/s, " in line] == [
        "warm-up",
        "round 1 of 2",
        "round 2 of 2",
    ]
    assert figures["first_step"].keys() == {"cold", "warm"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("optim.lr=abc", "optim.lr: expected a number, got 'abc'"),
        ("--variant optim.lr=abc", "optim.lr: expected a number, got 'abc'"),
        ("--loops other", "expected --loops among tutorial,tuned,resnet-train, --rounds and --seconds above 0"),
    ],
)
def test_bad_input(arguments: str, message: str, shell: Shell) -> None:
    assert shell.call(*arguments.split(), program="resnet-bench") == (2, "", f"resnet-bench: {message}\n")
