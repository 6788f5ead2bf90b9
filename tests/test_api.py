"""The public names, and what they do together."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import resnet_train
from resnet_train.errors import ConfigError
from tests.conftest import TINY, Shell


def test_public_names() -> None:
    assert sorted(resnet_train.__all__) == [
        "Classifier",
        "Prediction",
        "Summary",
        "__version__",
        "load",
        "load_config",
        "run",
    ]
    assert dir(resnet_train) == sorted(resnet_train.__all__)
    assert all(getattr(resnet_train, name) is not None for name in resnet_train.__all__)
    assert resnet_train.__version__ == metadata.version("resnet-train")
    with pytest.raises(AttributeError, match="module 'resnet_train' has no attribute 'train_all'"):
        resnet_train.train_all  # noqa: B018


@pytest.mark.slow
def test_names_are_found_when_they_are_needed() -> None:
    probe = "import sys, resnet_train; resnet_train.load_config(['epochs=1']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0


@pytest.mark.slow
def test_a_run_from_python_is_continued_from_a_shell(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    summary = resnet_train.run(resnet_train.load_config([*TINY, "epochs=1"]))
    assert isinstance(summary, resnet_train.Summary)
    assert Path(summary.directory).parent.parent == tmp_path / "outputs"
    code, out, err = shell.call(f"resume={summary.directory}", "epochs=2")
    assert (code, err) == (0, "")
    assert re.search(r"^epoch 2/2, ", out, re.M)


@pytest.mark.slow
def test_a_run_is_continued_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = resnet_train.run(resnet_train.load_config([*TINY, "epochs=1", "seed=7"]))
    config = resnet_train.load_config([f"resume={first.directory}", "epochs=2"])
    assert (config.seed, config.batch_size, config.epochs) == (7, 32, 2)
    second = resnet_train.run(config)
    assert (second.directory, second.sessions, second.status) == (first.directory, 2, "finished")


@pytest.mark.parametrize("name", ["latest", "nowhere"])
def test_nothing_begins_from_scratch_in_silence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = resnet_train.load_config([*TINY, "epochs=1"])
    config.resume = name
    for ask in (lambda: resnet_train.load_config([*TINY, f"resume={name}"]), lambda: resnet_train.run(config)):
        with pytest.raises(ConfigError, match="resume"):
            ask()
    assert list(tmp_path.iterdir()) == []
