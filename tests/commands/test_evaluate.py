from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from resnet_train.config.run import Config
from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.runs.summary import Summary, read_summary
from resnet_train.train import run
from tests.conftest import TINY, Shell

Figures = dict[str, Any]


@pytest.fixture(scope="module")
def trained(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a validation split, whose result is of the best checkpoint."""
    directory = tmp_path_factory.mktemp("trained") / "run,lr=0.1"
    overrides = ("epochs=3", "dataset.val_size=60", "ema_decay=0.9", "dataset.num_classes=7")
    run(tiny(*overrides, "optim.lr=0.2"), directory=directory)
    return directory


@pytest.fixture
def evaluate(shell: Shell) -> Callable[..., Figures]:
    """The figures that ``resnet-eval`` prints as JSON."""

    def call(*arguments: str) -> Figures:
        code, out, err = shell.call(*arguments, "--json", program="resnet-eval")
        assert code == 0, err
        found = json.loads(out)
        assert isinstance(found, dict)
        return found

    return call


def summary_of(directory: Path) -> Summary:
    found = read_summary(directory)
    assert found is not None
    return found


@pytest.mark.slow
def test_it_finds_what_the_runs_summary_says(trained: Path, evaluate: Callable[..., Figures]) -> None:
    own = summary_of(trained)
    test, val = evaluate(str(trained)), evaluate(str(trained), "--split", "val", "--checkpoint", "best")
    assert test["checkpoint"] == val["checkpoint"] == "best"
    for found, score in ((test, own.last["test"]), (val, own.best["val"])):
        assert (found["correct"], found["count"], found["step"]) == (score.correct, score.count, score.step)
        assert found["loss"] == pytest.approx(score.loss, rel=1e-5)
        assert sum(map(sum, found["confusion"])) == score.count
    assert test["summary"]["correct"] == test["correct"]
    last = evaluate(str(trained), "--checkpoint", "last", "--split", "val")
    assert last["correct"] == own.last["val"].correct and last["step"] == own.steps


@pytest.mark.slow
def test_what_it_writes(trained: Path, shell: Shell) -> None:
    code, out, err = shell.call(
        str(trained), "--split", "train", "--tta", "flip", "--tta-below", "0.9", program="resnet-eval"
    )
    assert code == 0, err
    folder = trained / "eval" / "train-best-flip-below-0.9"
    assert str(folder) in err and max(map(len, out.splitlines())) <= 80
    found = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    low, high = found["interval"]
    assert (
        f"{100 * found['accuracy']:.2f} % ({found['correct']} of 140 images), 95 % interval {100 * low:.2f} to" in out
    )
    assert f"flip for the {found['augmented']} images below 0.9" in out and low < found["accuracy"] < high
    with (folder / "mistakes.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found["count"] - found["correct"] > 0
    assert [row["confidence"] for row in rows] == sorted((row["confidence"] for row in rows), reverse=True)
    assert all(row["label"] != row["prediction"] and 0 <= int(row["index"]) < 140 for row in rows)
    with (folder / "confusion.csv").open(encoding="utf-8") as file:
        header, *matrix = csv.reader(file)
    assert header[1:] == found["classes"] == [row[0] for row in matrix]
    assert [[int(cell) for cell in row[1:]] for row in matrix] == found["confusion"]
    for name in ("confusion.png", "reliability.png", "mistakes.png"):
        with Image.open(folder / name) as picture:
            assert picture.size[0] > 100


@pytest.mark.slow
def test_a_checkpoint_alone_is_enough(trained: Path, tmp_path: Path, evaluate: Callable[..., Figures]) -> None:
    lonely = tmp_path / "mine.pt"
    shutil.copy(trained / "checkpoints" / "last.pt", lonely)
    found = evaluate(str(lonely), "--split", "val")
    assert found["correct"] == summary_of(trained).last["val"].correct
    assert "summary" not in found and list(tmp_path.iterdir()) == [lonely]
    again = evaluate(str(lonely), "--split", "val", "--output", str(tmp_path / "there"))
    assert (tmp_path / "there" / "eval.json").is_file() and again["correct"] == found["correct"]


@pytest.mark.slow
def test_weights_from_elsewhere(trained: Path, tmp_path: Path, evaluate: Callable[..., Figures]) -> None:
    content = read_checkpoint(trained / "checkpoints" / "best.pt")
    weights = {f"module.{name}": tensor for name, tensor in content["state"]["ema"].items()}
    torch.save({"state_dict": weights, "acc": 12.5}, tmp_path / "theirs.th")
    overrides = [word for word in TINY if word.startswith(("dataset", "model"))]
    overrides += ["dataset.num_classes=7", "dataset.val_size=60"]
    found = evaluate("--weights", str(tmp_path / "theirs.th"), *overrides)
    assert found["correct"] == summary_of(trained).last["test"].correct
    other = evaluate("--weights", str(tmp_path / "theirs.th"), *overrides, "dataset.mean=[0.1,0.1,0.1]")
    assert other["loss"] != found["loss"]  # the user's normalisation counts


@pytest.mark.slow
def test_mistakes_are_named_by_their_files(tmp_path: Path, shell: Shell) -> None:
    draws = torch.Generator().manual_seed(0)
    for split, number in (("train", 12), ("val", 4)):
        for name in ("red", "blue"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for index in range(number):
                pixels = torch.randint(60, (8, 8, 3), generator=draws, dtype=torch.uint8)
                pixels[..., 0 if name == "red" else 2] += 180
                Image.fromarray(pixels.numpy()).save(tmp_path / "images" / split / name / f"{index}.png")
    (tmp_path / "images/val/red/0.png").rename(tmp_path / "images/val/blue/wrong.png")  # a wrong label
    options = [word for word in TINY if not word.startswith("dataset")]
    images = ("dataset=imagefolder", f"dataset.root={tmp_path / 'images'}", "dataset.image_size=8")
    code, _, err = shell.call(*options, *images, "batch_size=8", "epochs=20", "hydra.run.dir=run")
    assert code == 0, err
    code, out, err = shell.call("run", program="resnet-eval")
    assert code == 0, err
    rows = (tmp_path / "run/eval/test-last/mistakes.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "path,label,prediction,confidence"
    assert rows[1].startswith("val/blue/wrong.png,blue,red,")
    (tmp_path / "images").rename(tmp_path / "moved")
    code, _, err = shell.call("run", program="resnet-eval")
    assert code == 2 and len(err.splitlines()) == 1 and "dataset.root" in err
    code, again, err = shell.call("run", f"dataset.root={tmp_path / 'moved'}", program="resnet-eval")
    assert code == 0 and again == out, err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected a run directory, latest or a file, got nothing"),
        (("nowhere",), "got 'nowhere', which does not exist"),
        (("latest",), "latest: expected a run under 'outputs', found none"),
        ((".",), "which holds no checkpoints"),
        (("{run}", "--checkpoint", "none.pt"), "--checkpoint: expected last, best or a file, got 'none.pt'"),
        (("{run}", "--tta-below", "0"), "--tta-below: expected a confidence in (0, 1], got 0"),
        (("{run}", "--device", "cuda:9"), "device: expected one of this machine's"),
        (("{run}", "optim.lr=x"), "optim.lr"),
        (("{run}", "dataset.num_classes=3"), "of other classes than the network was trained on"),
        (("{run}/config.yaml",), "expected a checkpoint of resnet-train"),
        (("--weights", "none.pt", "model=resnet20"), "--weights: "),
        (("--weights", "{run}/checkpoints/best.pt", "dataset=synthetic", "model=resnet32"), "are of another network"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    trained: Path, shell: Shell, arguments: tuple[str, ...], message: str
) -> None:
    given = [word.format(run=trained) for word in arguments]
    code, out, err = shell.call(*given, program="resnet-eval")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("resnet-eval: ") and message in err.splitlines()[-1], err


@pytest.mark.slow
def test_other_images_than_the_runs_are_told(trained: Path, shell: Shell) -> None:
    code, _, err = shell.call(str(trained), "dataset.num_test=40", program="resnet-eval")
    assert code == 0 and "resnet-eval: the data are not those of the run: other images" in err


def test_help_comes_without_torch(shell: Shell) -> None:
    probe = "import sys; sys.modules['torch'] = None; from resnet_train.commands.evaluate import main; main()"
    code, out, _ = shell.call("-c", probe, "--help", program=("python",))
    assert code == 0 and "examples: resnet-eval latest" in out
