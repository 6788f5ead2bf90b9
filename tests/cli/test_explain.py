"""What a command line that is wrong is answered with: one line, and nothing is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_train.cli.explain import explain, is_config_error
from resnet_train.config.store import options_of
from tests.conftest import Shell

Answer = Callable[..., int]

MODELS = (
    "plain18, plain20, plain32, plain34, plain44, plain56, plain110, resnet18, resnet20, resnet32, resnet34, resnet44, "
    "resnet50, resnet56, resnet101, resnet110, resnet152, resnet1202"
)
MESSAGES = [
    ("model=resnet21", f"model: expected one of {MODELS}, got 'resnet21'; did you mean model=resnet32?"),
    (
        "dataset=cifar1O",
        "dataset: expected one of cifar10, cifar100, eurosat, fashion_mnist, imagefolder, imagenette, kmnist, "
        "medmnist, mnist, stl10, svhn, synthetic, tiny_imagenet, got 'cifar1O'; did you mean dataset=cifar10?",
    ),
    ("optm.lr=0.1", "optm: no such key; did you mean optim?"),
    ("optim.lt=0.1", "optim.lt: no such key; did you mean optim.lr?"),
    ("+batchsize=3", "batchsize: no such key; did you mean batch_size?"),
    ("++dataset.augment.flp=true", "dataset.augment.flp: no such key; did you mean dataset.augment.flip?"),
    (
        "optim=adamw optim.momentum=0.9",
        "optim.momentum: optim=adamw has no such key, optim=sgd has; remove it or change optim",
    ),
    (
        "schedule.milestones=[1]",
        "schedule.milestones: schedule=cosine has no such key, schedule=multistep has; remove it or change schedule",
    ),
    (
        "model.stem=imagenet",
        "model.stem: only resnet18 to resnet152 and their plain counterparts have it; remove it or change model",
    ),
    ("optim.lr=abc", "optim.lr: expected a number, got 'abc'"),
    ("optim.lr=null", "optim.lr: expected a value, got null"),
    ("batch_size=1.5", "batch_size: expected a whole number, got '1.5'"),
    ("deterministic=maybe", "deterministic: expected true or false, got 'maybe'"),
    ("early_stop=3", "early_stop: expected a group of keys, got '3'; set early_stop.KEY=VALUE"),
    ("early_stop.patiense=3", "early_stop.patiense: no such key; did you mean early_stop.patience?"),
    ("freeze=conv1", "freeze: expected a list, got a single value; write freeze=[VALUE]"),
    ("checkpoint=3", "checkpoint: expected a group of keys, got '3'; set checkpoint.KEY=VALUE"),
    ("~optim.lr", "optim.lr: every run needs a value here, it cannot be removed; set optim.lr=VALUE"),
    ("~optim", "optim: expected a value, got none; give it as optim=VALUE"),
    ("optim.lr=${nowhere}", "optim.lr: Interpolation key 'nowhere' not found; quote a $ that is meant as such"),
    ("optim.lr=-1", "optim.lr: expected a number > 0, got -1.0"),
    ("seed=1,2", "seed: expected one value, got 1,2; to sweep over them put -m in front"),
    ("seed=[1", "cannot read 'seed=[1': its value holds [, which needs quotes of its own; write \"seed='[1'\""),
    ("name=a&b", "cannot read 'name=a&b': its value holds &, which needs quotes of its own; write \"name='a&b'\""),
    (
        "epochs 3",
        "cannot read 'epochs': expected KEY=VALUE, as in epochs=10; resnet-train --help shows what can be set",
    ),
    ("lr=0.1", "lr: no such key; did you mean optim.lr?"),
    ("optim.learning_rate=0.1", "optim.learning_rate: no such key; did you mean optim.lr?"),
    (
        "--epochs 3",
        "--epochs: no such flag; values are given as KEY=VALUE, as in epochs=..., and resnet-train --help lists what "
        "there is",
    ),
    (
        "--lr=0.1",
        "--lr: no such flag; values are given as KEY=VALUE, as in lr=0.1, and resnet-train --help lists what there is",
    ),
    ("+experiment=quick", "experiment: expected one option; write experiment=quick once, without a +"),
    ("+model.width=2", "model.width: it is there already; leave the + out, as in model.width=2"),
    ("model=glob(*)", "model: expected one value, got glob(*); to sweep over them put -m in front"),
    ("-m model=glob(nothing*)", "expected values to sweep over, got none: model=glob(nothing*)"),
    ("~seed", "seed: every run needs a value here, it cannot be removed; set seed=VALUE"),
    ("experiment=null epochs=0", "epochs: expected a number >= 1, got 0"),
    ("--hydra-help seed=1", "--hydra-help: expected nothing beside it, got seed=1"),
    (
        "resume=run/checkpoints/last.pt",
        "resume: expected a run directory, got the checkpoint run/checkpoints/last.pt; resume=run continues from the "
        "newest one, init_from=run/checkpoints/last.pt starts a new run from this one",
    ),
    ("model=null", f"model: expected one of {MODELS}, got null"),
    ("hydra.foo=1", "hydra.foo: no such key of Hydra's; resnet-train --cfg hydra shows all of them"),
    ("steps=10", "epochs=200 and steps=10 contradict each other: give one; for 10 steps add epochs=null"),
    (
        "schedule=multistep epochs=50",
        "schedule.milestones: expected all before the end of the run's 19532 steps (epochs=50), got 150 = 58594 steps",
    ),
    (
        "schedule.warmup=300",
        "schedule.warmup: expected at most the run's 78125 steps (epochs=200), got 300 = 117188 "
        "steps; try schedule.warmup=0",
    ),
    ("batch_size=60000", "batch_size: expected at most the 50000 training images, got 60000; try batch_size=50000"),
    (
        "precision=fp16 device=cpu",
        "precision=fp16 needs a CUDA device, got device=cpu; try precision=bf16 or precision=fp32",
    ),
    ("device=gpu", "device: expected auto, cpu, cuda, cuda:N or mps, got 'gpu'"),
    (
        "dataset.root=nowhere dataset.download=false",
        "dataset.root: expected cifar-10-batches-py/ or "
        "cifar-10-python.tar.gz in {here}/nowhere, got neither; add dataset.download=true, or name the folder that "
        "holds "
        "cifar-10-batches-py/ or cifar-10-python.tar.gz with dataset.root=FOLDER or the environment variable "
        "RESNET_TRAIN_DATA, or take dataset=synthetic, which needs no file",
    ),
    ("resume=nowhere", "resume: expected a run directory, got 'nowhere', which does not exist"),
    ("resume=", "resume: expected a run directory or latest, got nothing; resume=null starts a new run"),
    (
        "resume=.",
        "resume: expected a run directory, got '.', which holds no config.yaml; run directories look like "
        "outputs/2026-01-31/12-00-00-resnet20",
    ),
    ("resume=latest", "resume=latest: expected an unfinished run under 'outputs', found none"),
    ("-m resume=latest", "resume: expected one run, got a sweep (-m); resume its jobs one by one, without -m"),
    (f"seed=1{'0' * 400}", f"seed: expected a number >= 0 and <= 1.79769e+308, got 1{'0' * 400}"),
    ("-m seed=1,2 epochs=0", "epochs: expected a number >= 1, got 0"),
    ("-m model=resnet20,resnet21", f"model: expected one of {MODELS}, got 'resnet21'; did you mean model=resnet32?"),
    (
        "--foo",
        "--foo: no such flag; values are given as KEY=VALUE, as in foo=..., and resnet-train --help lists what "
        "there is",
    ),
    ("--config-dir nowhere", "--config-dir: expected a folder of YAML files, got 'nowhere', which is none"),
    (
        "--config-name nowhere",
        "no config named 'nowhere': expected nowhere.yaml in conf/ or in the folder given with --config-dir",
    ),
]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--config-name", "\r"], r"no config named '\r': expected \r.yaml in conf/"),
        (["--config-name", "a\u2028b/\x1b[31m"], r"a\u2028b: expected one of "),
        (["seed=\x1b[31m"], r"cannot read 'seed=\x1b[31m': "),
    ],
    ids=["return", "separator", "escape"],
)
def test_characters_that_move_the_cursor_are_written_out(
    words: list[str], shown: str, answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(*words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"resnet-train: {shown}")
    assert len(printed.splitlines()) == 1 and printed[:-1].isprintable()


@pytest.mark.slow
@pytest.mark.parametrize(("words", "message"), MESSAGES, ids=[words for words, _ in MESSAGES])
def test_bad_input_is_answered_in_one_line(
    words: str,
    message: str,
    answer: Answer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    assert answer(*words.split(" ")) == 2
    printed = capsys.readouterr()
    assert printed.err == f"resnet-train: {message.replace('{here}', str(tmp_path))}\n"
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []  # nothing was written


@pytest.mark.slow
def test_full_errors_show_the_traceback(shell: Shell) -> None:
    code, _, err = shell.call("optim.lr=abc", HYDRA_FULL_ERROR="1")
    assert code == 2
    assert "Traceback (most recent call last)" in err
    assert err.endswith("resnet-train: optim.lr: expected a number, got 'abc'\n")


@pytest.mark.slow
@pytest.mark.parametrize("group", ["model", "dataset", "optim", "schedule"])
def test_a_group_that_is_null(group: str, answer: Answer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(f"# @package _global_\n{group}: null\n")
    assert answer("--config-dir", str(tmp_path), "experiment=own") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"resnet-train: {group}: expected one of ")
    assert err.endswith(", got null\n")
    assert set(options_of(group)) <= set(re.findall(r"\w+", err))
    (tmp_path / "experiment" / "own.yaml").write_text(f"# @package _global_\n{group}: ${{seed}}\n")
    assert answer("--config-dir", str(tmp_path), "experiment=own") == 2
    err = capsys.readouterr().err
    assert err in (
        "resnet-train: expected a group of keys, got '${seed}' in its place; name an option, as in optim=sgd\n",
        f"resnet-train: {group}: expected a group of keys, got '${{seed}}'; set {group}.KEY=VALUE\n",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "optim:\n  lr: 0.1\n",
            "experiment: a recipe of your own has to begin with the line # @package _global_, with ",
        ),
        (
            "\ufeff# @package _global_\nseed: 1\n",
            "experiment: a recipe of your own has to begin with the line # @package",
        ),
        (
            "# @package _global_\noptim.lr: 0.1\n",
            "optim.lr: keys in YAML do not nest by dots; write optim: {lr: ...} there",
        ),
        (
            "# @package _global_\noptim:\n  learning_rate: 0.1\n",
            "optim.learning_rate: no such key; did you mean optim.lr?",
        ),
    ],
    ids=["no package", "byte order mark", "dots", "unknown key"],
)
def test_a_recipe_of_the_users_own(
    text: str, message: str, answer: Answer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(text, encoding="utf-8")
    assert answer("--config-dir", str(tmp_path), "experiment=own") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"resnet-train: {message}")
    assert err.count("\n") == 1


def test_a_plugin_that_can_be_installed(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer("-m", "hydra/launcher=ray", "seed=1,2") == 2
    assert capsys.readouterr().err.endswith(", got 'ray'; install it with: pip install hydra-ray-launcher\n")


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["it's", "a & b", "\u00dcbung \u6570\u636e"])
def test_paths_need_no_quotes_of_their_own(
    folder: str, answer: Answer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(f"dataset.root={tmp_path / folder}", "dataset.download=false") == 2
    assert f" in {tmp_path / folder}, got neither" in capsys.readouterr().err


def test_a_file_that_the_system_refuses() -> None:
    """As on Windows while a spreadsheet holds it."""
    refused = PermissionError(13, "Permission denied", "outputs/a/metrics.csv")
    assert explain(refused) == (
        "outputs/a/metrics.csv: Permission denied; expected to read and write it, look whether another program has it "
        "open (HYDRA_FULL_ERROR=1 shows where)"
    )
    assert not is_config_error(refused)
    assert "not foreseen" in explain(OSError("without a file"))
