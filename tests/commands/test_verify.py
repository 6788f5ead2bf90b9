"""``resnet-verify`` finds killed runs the same, and different ones different."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable

import pytest

from resnet_train.commands.verify import Trial, compare, reproducible
from resnet_train.config.run import Config
from resnet_train.train import run
from tests.conftest import TINY, Shell

Tiny = Callable[..., Config]


@pytest.mark.slow
def test_verify_finds_killed_runs_the_same(shell: Shell) -> None:
    words = (*TINY, "ema_decay=0.9", "epochs=9", "--steps", "40", "--runs", "2", "--kills", "2", "--seed", "1")
    code, out, err = shell.call(*words, program="resnet-verify")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "2 of 2 killed runs ended bit for bit like the undisturbed one"
    assert len(re.findall(r"^run \d, killed after \d+\.\d\d s, \d+\.\d\d s: the same$", out, re.MULTILINE)) == 2
    assert re.search(r"^  model      sha256 [0-9a-f]{16}$", out, re.MULTILINE)
    assert list(shell.folder.iterdir()) == []


@pytest.mark.slow
def test_verify_finds_a_difference(tiny: Tiny, shell: Shell) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        run(tiny("epochs=null", "steps=6", "log_every=1", f"seed={seed}"), directory=shell.folder / name)
    one, same, other = (Trial(shell.folder / name, [], 6) for name in ("one", "same", "other"))
    assert compare(one, same) == []
    found = compare(one, other)
    assert found[0].startswith("model (")
    assert any(text.startswith("metrics.csv, first at ") for text in found)
    assert found[-1] == "the scalars in the event files"
    shutil.copy(shell.folder / "other/metrics.csv", shell.folder / "same/metrics.csv")
    assert [text.partition(",")[0] for text in compare(one, same)] == ["metrics.csv"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--steps", "0"), 2, "expected --steps, --runs and --kills above 0"),
        (("optim.lr=x",), 2, "optim.lr: expected a number, got 'x'"),
        (("batch_size=32", "epochs=1", "--steps", "10"), 1, None),
    ],
)
@pytest.mark.slow
def test_bad_input_of_verify(words: tuple[str, ...], code: int, message: str | None, shell: Shell) -> None:
    found, _, err = shell.call(*TINY, *words, program="resnet-verify")
    assert found == code
    if message is None:
        assert err.startswith("resnet-verify: a run ended before its time, with exit code 0: ")
    else:
        assert err == f"resnet-verify: {message}\n"


def test_on_a_gpu_runs_are_made_reproducible(capsys: pytest.CaptureFixture[str]) -> None:
    """On an H200 a killed run ended otherwise without ``deterministic=true``, and so did two undisturbed ones."""
    assert reproducible(["seed=1"], device="cuda") == ["seed=1", "deterministic=true"]
    assert "deterministic=true" in capsys.readouterr().out
    assert reproducible(["deterministic=false"], device="cuda") == ["deterministic=false"]
    assert reproducible(["seed=1"], device="cpu") == ["seed=1"]
    assert capsys.readouterr().out == ""


def test_the_module_answers_too(shell: Shell) -> None:
    code, out, _ = shell.call("--help", program=(sys.executable, "-m", "resnet_train.commands.verify"))
    assert code == 0
    assert "--kills" in out
