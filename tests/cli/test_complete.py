"""What a shell offers while a command is typed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from resnet_train.cli.complete import complete
from tests.conftest import Shell


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("resnet-train --mu", ["--multirun"]),
        ("resnet-train -m --config", ["--config-dir", "--config-name"]),
        ("resnet-train precision=f", ["precision=fp32", "precision=fp16"]),
        ("resnet-train model=resnet18 model.shortcut=", ["model.shortcut=A", "model.shortcut=B"]),
        ("resnet-train optim.nesterov=", ["optim.nesterov=true", "optim.nesterov=false"]),
        ("resnet-train dataset.augment.flip=t", ["dataset.augment.flip=true"]),
        ("resnet-train model=", None),
        ("resnet-train mod", None),
        ("resnet-train dataset.root=/", None),
    ],
)
def test_flags_and_values(line: str, offered: list[str] | None) -> None:
    assert complete(line) == offered


def test_runs_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs/2026-01-31/12-00-00-first").mkdir(parents=True)
    (tmp_path / "outputs/2026-01-31/12-00-00-first/config.yaml").touch()
    assert complete("resnet-train resume=") == ["resume=latest", "resume=outputs/2026-01-31/12-00-00-first"]
    assert complete("resnet-train resume=outputs/2026") == ["resume=outputs/2026-01-31/12-00-00-first"]
    assert complete("resnet-train init_from=o") == ["init_from=outputs/2026-01-31/12-00-00-first"]
    assert complete("resnet-train resume=elsewhere") is None


@pytest.mark.slow
def test_in_bash(shell: Shell) -> None:
    folder = Path(shell.program("resnet-train")[0]).parent
    script = (
        f'PATH="{folder}:$PATH"; eval "$(resnet-train -sc install=bash)"; COMP_CWORD=1; '
        'for COMP_LINE in "resnet-train precision=b" "resnet-train model=resnet10" "resnet-train --ver"; do '
        "COMP_POINT=${#COMP_LINE}; hydra_bash_completion; echo ${COMPREPLY[@]}; done"
    )
    done = subprocess.run(["bash", "-c", script], cwd=shell.folder, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["precision=bf16", "model=resnet101", "--version"], done.stderr
