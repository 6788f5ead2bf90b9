"""Pictures of a result, as TensorBoard has them at the end of real runs."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as ServerAccumulator

from resnet_train.config.run import Config
from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.runs.pictures import as_pixels, confusion_matrix
from resnet_train.runs.summary import read_summary
from resnet_train.runs.tensorboard import TensorBoard
from resnet_train.train import run
from resnet_train.training import result_pictures
from resnet_train.training.result_pictures import ResultPictures, can_keep_logits, mistakes_sheet
from resnet_train.training.scores import score
from resnet_train.training.setup import build
from resnet_train.training.step import evaluate

Tiny = Callable[..., Config]
Events = Callable[[Path], EventAccumulator]
CONFUSION, MISTAKES = "test/confusion matrix", "test/worst mistakes"


def pixels(found: EventAccumulator, tag: str) -> Any:
    (event,) = found.Images(tag)
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


@pytest.mark.slow
@pytest.mark.parametrize("val_size", [0, 40])
def test_the_pictures_are_of_the_weights_that_give_the_result(
    tiny: Tiny, tmp_path: Path, events: Events, val_size: int
) -> None:
    pytest.importorskip("matplotlib")
    config = tiny("epochs=4", f"dataset.val_size={val_size}", "optim.lr=0.3", "dataset.num_test=100")
    summary = run(config, directory=tmp_path)
    built = build(config)
    name = "best" if val_size else "last"
    built.state.model.load_state_dict(read_checkpoint(tmp_path / f"checkpoints/{name}.pt")["state"]["model"])
    data = built.eval_data["test"]
    result = evaluate(built.state.model, data, precision="fp32", keep_logits=True)
    assert result.logits is not None
    assert result.accuracy == summary.result
    scores = score(result.logits, data.split.labels, classes=built.classes)
    found = events(tmp_path)
    assert (pixels(found, CONFUSION) == as_pixels(confusion_matrix(scores.confusion, built.classes))).all()
    page = mistakes_sheet(data.split.images, result.logits, data.split.labels, built.classes)
    assert page is not None
    assert (pixels(found, MISTAKES) == page).all()
    assert {event.step for tag in (CONFUSION, MISTAKES) for event in found.Images(tag)} == {summary.steps}


@pytest.mark.slow
def test_a_run_cut_after_its_last_step_has_them_once(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    config = tiny("epochs=null", "steps=6", "dataset.num_test=100")
    run(config, directory=tmp_path)
    (tmp_path / "summary.json").unlink()
    resumed = run(config, directory=tmp_path)
    assert (resumed.status, resumed.sessions) == ("finished", 2)
    found = ServerAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    assert (
        [event.step for event in found.Tensors(CONFUSION)] == [event.step for event in found.Tensors(MISTAKES)] == [6]
    )


def test_a_failed_run_has_none(tiny: Tiny, tmp_path: Path, events: Events) -> None:
    config = tiny("epochs=null", "steps=6", "optim.lr=1e30", "log_every=1")
    with pytest.raises(Exception, match="diverged"):
        run(config, directory=tmp_path)
    assert events(tmp_path).Tags()["images"] == ["augmented training images"]


def test_a_perfect_result_has_no_sheet() -> None:
    images, labels = torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.arange(4)
    assert mistakes_sheet(images, torch.eye(4), labels, tuple("abcd")) is None
    assert mistakes_sheet(images, -torch.eye(4), labels, tuple("abcd")) is not None


@pytest.mark.parametrize(("size", "classes"), [(4, 2), (33, 200), (130, 3)])
def test_sheets_of_any_size_and_many_classes(size: int, classes: int) -> None:
    images = torch.randint(256, (300, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(300, classes, generator=torch.Generator().manual_seed(1))
    page = mistakes_sheet(images, logits, torch.arange(300) % classes, tuple(f"class {n}" * 9 for n in range(classes)))
    assert page is not None
    assert page.shape[0] < page.shape[1], "eight in a row, four rows at most"


@pytest.mark.slow
def test_logits_of_a_huge_split_are_not_kept(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("epochs=null", "steps=2", "dataset.num_test=100")
    assert can_keep_logits(build(config), "test")
    monkeypatch.setattr(result_pictures, "MOST_LOGITS", 999)  # one fewer than 100 images of 10 classes
    with caplog.at_level("INFO"):
        assert run(config, directory=tmp_path).status == "finished"
    assert (
        "no pictures of the result in TensorBoard: they take at least 100 test images, and at most 999" in caplog.text
    )


@pytest.mark.slow
def test_a_run_of_a_second_does_not_draw(tiny: Tiny, tmp_path: Path, events: Events) -> None:
    run(tiny("epochs=null", "steps=2", "dataset.num_test=99"), directory=tmp_path)
    assert events(tmp_path).Tags()["images"] == ["augmented training images"]


def test_what_cannot_be_drawn_is_told(tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny("dataset.num_test=100")
    board = TensorBoard(tmp_path, config, from_step=0)
    pictures = ResultPictures(board)
    pictures.keep(torch.zeros(3, 10))  # logits of another number of images
    pictures.draw(build(config))
    assert "cannot draw the result for TensorBoard: RuntimeError: " in caplog.text
    board.close("finished")


@pytest.mark.slow
def test_without_matplotlib_a_run_ends_well_and_names_the_extra(
    tiny_overrides: tuple[str, ...], tmp_path: Path
) -> None:
    probe = (
        "import sys\nsys.modules['matplotlib.figure'] = None\n"
        "from resnet_train.cli.main import main\nfrom resnet_train.train import run\nsys.exit(main(sys.argv[1:], run))"
    )
    options = [one for one in tiny_overrides if not one.startswith("dataset.num_test")]
    length = ("epochs=null", "steps=2", "hydra.run.dir=run")
    command = [sys.executable, "-c", probe, *options, "dataset.num_test=100", *length]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = 'no confusion matrix in TensorBoard: plots need matplotlib, got none; pip install "resnet-train[plots]"'
    assert done.stdout.count(text) == 1
    summary = read_summary(tmp_path / "run")
    assert summary is not None
    assert summary.status == "finished"
    assert MISTAKES.encode() in next((tmp_path / "run").glob("events*")).read_bytes()
