"""What can be asked for without a run; torch is not imported for any of it."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.conftest import Shell


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["--cfg", "job"],
        ["--info", "defaults"],
        ["optim.lr=abc"],
        ["dataset.root=x", "epochs=0"],
        ["-m", "seed=1,2", "epochs=0"],
        ["resume=nowhere"],
    ],
)
def test_torch_is_not_imported_for_an_answer(arguments: list[str], shell: Shell) -> None:
    probe = (
        "import sys; from resnet_train.cli.main import main; from resnet_train.train import run; "
        "main(sys.argv[1:], run); sys.exit('torch' in sys.modules)"
    )
    assert shell.call(*arguments, program=(sys.executable, "-c", probe))[0] == 0


def test_completion_without_torch(shell: Shell) -> None:
    probe = (
        "import sys; from resnet_train.cli.main import main; from resnet_train.train import run\n"
        "code = main(sys.argv[1:], run)\nassert 'torch' not in sys.modules\nsys.exit(code)"
    )
    environment = {"COMP_LINE": "resnet-train model=resnet1", "COMP_POINT": "26"}
    code, out, err = shell.call("-sc", "query=bash", program=(sys.executable, "-c", probe), **environment)
    assert (code, err) == (0, "")
    assert {"model=resnet18", "model=resnet110"} <= set(out.split())


@pytest.mark.slow
def test_help_and_configuration(shell: Shell) -> None:
    code, out, err = shell.call("--help")
    assert (code, err) == (0, "")
    assert "experiment=quick" in out
    assert re.search(r"batch_size: 128  # images per step", out)
    assert "resnet18, resnet20, resnet32" in out
    code, out, err = shell.call("--cfg", "job", "optim.lr=0.3")
    assert (code, err) == (0, "")
    assert "  lr: 0.3\n" in out
    assert list(shell.folder.iterdir()) == []


@pytest.mark.slow
def test_parts_of_the_configuration(shell: Shell) -> None:
    assert "name: resnet${.depth}\n" in shell.call("--cfg", "job")[1]
    assert "name: resnet20\n" in shell.call("--cfg", "job", "--resolve")[1]
    code, out, _ = shell.call("--cfg", "job", "--package", "optim")
    assert code == 0
    assert out.startswith("# @package optim\nname: sgd\n")
    assert shell.call("--cfg", "hydra")[1].startswith("hydra:\n")
    assert {"hydra", "epochs"} <= set(re.findall(r"^(\w+):", shell.call("--cfg", "all")[1], re.M))
    code, _, err = shell.call("--cfg", "job", "--package", "nowhere")
    assert (code, err) == (2, "resnet-train: --package: expected a node of the configuration, got 'nowhere'\n")


def test_version(shell: Shell) -> None:
    assert shell.call("--version") == (0, f"resnet-train {metadata.version('resnet-train')}\n", "")


@pytest.mark.slow
def test_hydra_answers_for_itself(shell: Shell) -> None:
    code, out, _ = shell.call("--hydra-help")
    assert (code, "Powered by Hydra" in out or "Hydra" in out) == (0, True)
    code, out, _ = shell.call("--info", "searchpath")
    assert code == 0
    assert str(Path("conf")) in out
    assert list(shell.folder.iterdir()) == []


@pytest.mark.slow
def test_a_configuration_that_would_be_refused_is_not_shown(shell: Shell) -> None:
    code, out, err = shell.call("--cfg", "job", "epochs=0")
    assert (code, out) == (2, "")
    assert err == shell.call("epochs=0")[2]
