"""Numbers on their way out: means, metrics.csv, event files as TensorBoard's own reader and its server see them."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as ServerAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray
from torchvision.transforms.functional import to_tensor
from torchvision.utils import make_grid

from resnet_train.config.run import Config
from resnet_train.engine import StepOutput
from resnet_train.errors import RunError
from resnet_train.metrics import COLUMNS, MetricsTable, TensorBoard, TrainMetrics, hparams, image_grid
from resnet_train.state import Progress

Compose = Callable[..., Config]
HEADER = "step,epoch,lr,loss/train,accuracy/train,gradient_norm,loss/val,accuracy/val,loss/test,accuracy/test\n"
DIVERGED = (
    "training has diverged. Start again with a smaller optim.lr, a warm-up (schedule.warmup=5) or clip_grad_norm=1; "
    "the last checkpoint is from before it"
)


def output(loss: float, accuracy: float = 0.5) -> StepOutput:
    return StepOutput(torch.tensor(loss), torch.tensor(accuracy), None)


# -------------------------------------------------------------------------------------------------------- train metrics


def test_windows_and_epochs_have_means_of_their_own() -> None:
    metrics = TrainMetrics(Progress())
    metrics.add(output(4.0, 0.0))
    metrics.add(output(2.0, 0.5))
    metrics.read(2, torch.tensor(7.0))
    metrics.read(2)  # nothing is pending: nothing is counted twice
    assert metrics.peek() == metrics.peek() == (3.0, 0.25)
    assert metrics.grad_norm() == 7.0
    assert metrics.end_window() == (3.0, 0.25)
    metrics.add(output(0.0, 1.0))
    metrics.read(3)
    assert math.isnan(metrics.grad_norm()), "not measured"
    assert metrics.end_window() == (0.0, 1.0)
    assert metrics.end_epoch() == (2.0, 0.5)
    metrics.add(output(8.0, 0.75))
    metrics.read(4)
    assert metrics.end_epoch() == metrics.end_window() == (8.0, 0.75)


def test_it_goes_on_from_what_was_saved() -> None:
    progress = Progress(window=[[1.0, 0.5]], epoch=[[3.0, 0.0], [1.0, 0.5]])
    metrics = TrainMetrics(progress)
    metrics.add(output(2.0, 1.0))
    metrics.read(11)
    assert progress == Progress(window=[[1.0, 0.5], [2.0, 1.0]], epoch=[[3.0, 0.0], [1.0, 0.5], [2.0, 1.0]])
    assert (metrics.end_window(), metrics.end_epoch()) == ((1.5, 0.75), (2.0, 0.5))


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("position", "update"), [(0, 8), (2, 10)])
def test_a_loss_that_is_no_number_names_its_update(loss: float, position: int, update: int) -> None:
    """Updates 8 to 10 are pending; from the first bad one on all are bad."""
    progress = Progress()
    metrics = TrainMetrics(progress, skips_overflow=True)
    for index in range(3):
        metrics.add(output(loss if index >= position else 1.0))
    with pytest.raises(RunError) as caught:
        metrics.read(10, torch.tensor(math.nan))
    assert str(caught.value) == f"the loss is {loss} at update {update}: {DIVERGED}"
    assert progress == Progress()


def test_a_gradient_that_is_no_number_is_an_error_unless_the_update_was_left_out() -> None:
    for norm in (math.nan, math.inf):
        metrics = TrainMetrics(Progress())
        metrics.add(output(1.0))
        with pytest.raises(RunError) as caught:
            metrics.read(7, torch.tensor(norm))
        assert str(caught.value) == f"the gradient's norm is {norm} at update 7: {DIVERGED}"
    scaled = TrainMetrics(Progress(), skips_overflow=True)
    scaled.add(output(1.0))
    scaled.read(7, torch.tensor(math.inf))
    assert scaled.peek() == (1.0, 0.5)


# ---------------------------------------------------------------------------------------------------------- metrics.csv


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.csv"


def test_rows_are_on_disk_at_once_with_empty_cells_for_what_was_not_measured(path: Path) -> None:
    table = MetricsTable(path, from_step=0)
    assert path.read_text() == HEADER
    table.write(5, {"epoch": 0.5, "lr": 0.1, "loss/train": 2.302585092994046, "gradient_norm": 1e-7})
    assert path.read_text() == HEADER + "5,0.5,0.1,2.30258509,,1e-07,,,,\n"
    table.write(10, {"epoch": 1.0, "loss/val": 1.25, "throughput/images_per_second": 1234.5})
    assert path.read_text() == HEADER + "5,0.5,0.1,2.30258509,,1e-07,,,,\n10,1,,,,,1.25,,,\n"


def test_a_row_of_the_last_step_completes_it(path: Path) -> None:
    table = MetricsTable(path, from_step=0)
    table.write(5, {"lr": 0.1})
    table.write(10, {"lr": 0.123456789, "loss/val": 1.5})
    table.write(10, {"loss/test": 2.5})
    assert path.read_text() == HEADER + "5,,0.1,,,,,,,\n10,,0.123456789,,,,1.5,,2.5,\n"
    table.write(10, {"lr": 1.0})
    assert path.read_text() == HEADER + "5,,0.1,,,,,,,\n10,,1,,,,1.5,,2.5,\n", "shorter than before"
    table.write(15, {"lr": 0.5})
    assert path.read_text().endswith("\n10,,1,,,,1.5,,2.5,\n15,,0.5,,,,,,,\n")


def rows(table: MetricsTable, *steps: int) -> None:
    for step in steps:
        table.write(step, {"epoch": step / 10, "loss/train": 1 / step, "accuracy/val": math.sqrt(step)})


@pytest.mark.parametrize("tail", ["", "5,0.5,", "20,2,", "25", "20,2,,0.05,,,,,,,,,\n"])
@pytest.mark.parametrize(("from_step", "redone"), [(15, (20, 25)), (12, (15, 20, 25)), (0, (5, 10, 15, 20, 25))])
def test_a_table_goes_on_as_if_it_had_never_been_cut(
    path: Path, from_step: int, redone: tuple[int, ...], tail: str
) -> None:
    """Rows from after the step are taken out, and what a killed process wrote half."""
    rows(MetricsTable(path, from_step=0), 5, 10, 15, 20, 25)
    whole = path.read_text()
    with path.open("a") as file:
        file.write(tail)
    table = MetricsTable(path, from_step=from_step)
    assert [int(line.partition(",")[0]) for line in path.read_text().splitlines()[1:]] == [
        step for step in (5, 10, 15, 20, 25) if step <= from_step
    ]
    rows(table, *redone)
    assert path.read_text() == whole
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "damage", ["5,0.\x001,0.1,,,,,,,", "five,1,0.1,,,,,,,", "5,1", "5,1,0.1,,,,,,,,,", "5,\xff,0.1,,,,,,,"]
)
def test_a_damaged_row_is_left_out_and_named(path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text(f"{HEADER}4,1,0.1,,,,,,,\n{damage}\n6,1,0.2,,,,,,,\n", encoding="latin-1")
    table = MetricsTable(path, from_step=9)
    assert path.read_text() == f"{HEADER}4,1,0.1,,,,,,,\n6,1,0.2,,,,,,,\n"
    assert (table.step, table.row) == (6, {"epoch": 1.0, "lr": 0.2})
    assert f"a row of {path} is damaged and left out: " in caplog.text


def test_the_last_row_is_known_after_reopening_and_can_be_completed(path: Path) -> None:
    rows(MetricsTable(path, from_step=0), 5, 10)
    table = MetricsTable(path, from_step=10)
    assert (table.step, set(table.row)) == (10, {"epoch", "loss/train", "accuracy/val"})
    table.write(10, {"loss/test": 0.5})
    assert path.read_text().splitlines()[-1] == "10,1,,0.1,,,,3.16227766,0.5,"
    empty = MetricsTable(path, from_step=4)
    assert (empty.step, empty.row, path.read_text()) == (-1, {}, HEADER)


def test_equal_runs_write_equal_tables() -> None:
    assert not [column for column in COLUMNS if "second" in column or "time" in column]


# ---------------------------------------------------------------------------------------------------------- TensorBoard


def events(directory: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return accumulator.Reload()


def scalars(directory: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(directory).Scalars(tag)]


def scalars_of_the_server(directory: Path, tag: str) -> list[tuple[int, float]]:
    """As `scalars`, with the reader behind TensorBoard's web server, which purges by a rule of its own."""
    accumulator = ServerAccumulator(str(directory), size_guidance={"tensors": 0})
    events = accumulator.Reload().Tensors(tag)
    return [(event.step, float(make_ndarray(event.tensor_proto))) for event in events]


def hparams_data(directory: Path) -> dict[str, HParamsPluginData]:
    contents = events(directory).PluginTagToContent("hparams")
    return {tag.removeprefix("_hparams_/"): HParamsPluginData.FromString(content) for tag, content in contents.items()}


@pytest.fixture(scope="module")
def config(tiny: Compose) -> Config:
    return tiny("optim.lr=0.25", "dataset.val_size=10")


@pytest.fixture
def open_board(tmp_path: Path, config: Config) -> Callable[[int], TensorBoard]:
    def opened(from_step: int) -> TensorBoard:
        time.sleep(1 - time.time() % 1)  # event files are read in the order of their names: the second they begin in
        return TensorBoard(tmp_path, config, from_step=from_step, metrics=("accuracy/val",))

    return opened


def test_numbers_can_be_read_while_the_run_goes_on(tmp_path: Path, config: Config) -> None:
    board = TensorBoard(tmp_path, config, from_step=0, metrics=("accuracy/val",))
    for step in (5, 10):
        board.write(step, {"loss/train": step / 4, "lr": 0.5} | ({"accuracy/val": 0.75} if step == 10 else {}))
        assert [step for step, _ in scalars(tmp_path, "loss/train")] == list(range(5, step + 1, 5))
    assert scalars(tmp_path, "loss/train") == [(5, 1.25), (10, 2.5)]
    assert scalars(tmp_path, "accuracy/val") == [(10, 0.75)]
    assert sorted(events(tmp_path).Tags()["scalars"]) == ["accuracy/val", "loss/train", "lr"]
    board.close("interrupted")


@pytest.mark.slow
def test_a_run_that_is_taken_up_shows_each_step_once(tmp_path: Path, open_board: Callable[[int], TensorBoard]) -> None:
    """The second session repeats update 15, which the checkpoint did not have; the third goes back to update 5."""
    expected: list[tuple[int, float]] = []
    for session, (from_step, steps) in enumerate([(0, (0, 5, 10, 15)), (12, (15, 20)), (5, (10,))]):
        board = open_board(from_step)
        for step in steps:
            board.write(step, {"loss/train": session})
        board.close("interrupted")
        expected = [(step, loss) for step, loss in expected if step <= from_step] if session else []
        expected += [(step, float(session)) for step in steps]
        assert scalars(tmp_path, "loss/train") == scalars_of_the_server(tmp_path, "loss/train") == expected
    assert expected == [(0, 0), (5, 0), (10, 2)]
    text = events(tmp_path).Tensors("config/text_summary")
    assert [event.step for event in text] == [0]


def test_the_configuration_is_there_as_text(tmp_path: Path, config: Config) -> None:
    TensorBoard(tmp_path, config, from_step=0, metrics=()).close("interrupted")
    (event,) = events(tmp_path).Tensors("config/text_summary")
    lines = event.tensor_proto.string_val[0].decode().splitlines()
    assert "    optim.lr: 0.25" in lines
    assert "    dataset.augment.flip: True" in lines
    assert "    clip_grad_norm: None" in lines


def test_training_images_are_shown_as_they_look(tmp_path: Path, config: Config) -> None:
    """Normalised and back; at most 64, in rows of eight."""
    pixels = torch.rand(70, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    normalised = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    board = TensorBoard(tmp_path, config, from_step=0, metrics=())
    board.write_images(normalised, mean=mean, std=std)
    board.close("interrupted")
    (event,) = events(tmp_path).Images("augmented training images")
    shown = to_tensor(Image.open(io.BytesIO(event.encoded_image_string)))
    torch.testing.assert_close(shown, make_grid(pixels[:64], nrow=8, padding=2), rtol=0, atol=1.1 / 255)
    assert event.step == 0


@pytest.mark.parametrize(("count", "columns", "gap"), [(12, 4, 2), (9, 4, 1), (4, 4, 0), (3, 1, 3)])
def test_a_grid_is_torchvisions(count: int, columns: int, gap: int) -> None:
    images = torch.rand(count, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(image_grid(images, columns, gap), make_grid(images, nrow=columns, padding=gap))


def test_the_hparams_tab_knows_a_run_from_its_beginning(tmp_path: Path, config: Config) -> None:
    board = TensorBoard(tmp_path, config, from_step=0, metrics=("accuracy/val", "accuracy/test"))
    found = hparams_data(tmp_path)
    assert found.keys() == {"experiment", "session_start_info"}
    start = found["session_start_info"].session_start_info.hparams
    assert start["optim.lr"].number_value == 0.25
    assert (start["model.name"].string_value, start["model.residual"].string_value) == (config.model.name, "true")
    metrics = [info.name.tag for info in found["experiment"].experiment.metric_infos]
    assert metrics == ["accuracy/val", "accuracy/test"]
    assert {info.name for info in found["experiment"].experiment.hparam_infos} == set(hparams(config))
    board.close("finished")


@pytest.mark.parametrize(("status", "code"), [("finished", 1), ("failed", None), ("interrupted", None)])
def test_only_the_end_of_a_run_ends_its_session(tmp_path: Path, config: Config, status: str, code: int | None) -> None:
    """1 is success, 2 failure in the hparams plugin's api.proto; a run that was interrupted goes on some day."""
    TensorBoard(tmp_path, config, from_step=0, metrics=()).close(status)
    found = hparams_data(tmp_path).get("session_end_info")
    assert (found.session_end_info.status if found else None) == code
    if found:
        assert abs(found.session_end_info.end_time_secs - time.time()) < 60


def test_hparams_are_the_numbers_and_words_that_are_set(tiny: Compose, compose: Compose) -> None:
    flat = hparams(tiny("ema_decay=0.5", "dataset.val_size=10", "schedule=multistep", "schedule.milestones=[1, 2]"))
    assert (flat["optim.lr"], flat["seed"], flat["ema_decay"], flat["precision"]) == (0.1, 0, 0.5, "fp32")
    assert (flat["model.residual"], flat["schedule.milestones"], flat["optim.name"]) == ("true", "[1, 2]", "sgd")
    assert all(type(value) in (int, float, str) for value in flat.values())
    assert not {"steps", "clip_grad_norm", "resume"} & flat.keys(), "not set"
    assert not {"dataset.root", "dataset.mirrors"} & hparams(compose("dataset=cifar10")).keys(), "where, not what"


# -------------------------------------------------------------------------------------------------------- a real server


def get(url: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON at ``url``, past any proxy."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as response:
        return json.load(response)


@contextmanager
def server(logdir: Path, log: Path) -> Iterator[str]:
    """The address of a TensorBoard on a free port."""
    words = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1", "--port", "0"]
    with (
        log.open("w") as file,
        subprocess.Popen([*words, "--load_fast=false", "--reload_interval=1"], stdout=file, stderr=file) as process,
    ):
        try:
            yield eventually(lambda: re.search(r"http://(localhost|127\.0\.0\.1):\d+", log.read_text()), process)[0]
        finally:
            process.terminate()


def eventually(look: Callable[[], Any], process: subprocess.Popen[bytes]) -> Any:
    """What ``look`` returns as soon as it returns something."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError(f"nothing after a minute, exit code {process.poll()}")


def test_a_server_shows_a_run_while_it_trains(tmp_path: Path, config: Config) -> None:
    logdir = tmp_path / "logs"
    (logdir / "run").mkdir(parents=True)
    board = TensorBoard(logdir / "run", config, from_step=0, metrics=("accuracy/val",))
    board.write(5, {"loss/train": 0.5})
    board.write(10, {"loss/train": 0.25, "accuracy/val": 0.75})
    with server(logdir, tmp_path / "server.log") as address:
        deadline = time.monotonic() + 60
        while (tags := get(f"{address}/data/plugin/scalars/tags")) == {} and time.monotonic() < deadline:
            time.sleep(0.1)
        assert tags["run"].keys() == {"loss/train", "accuracy/val"}
        assert get(f"{address}/data/environment")["data_location"] == str(logdir)
        points = get(f"{address}/data/plugin/scalars/scalars?run=run&tag=loss%2Ftrain")
        assert [(step, value) for _, step, value in points] == [(5, 0.5), (10, 0.25)]
        statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
        query = {"experimentName": "", "allowedStatuses": statuses, "colParams": [], "startIndex": 0, "sliceSize": 9}
        (group,) = get(f"{address}/data/plugin/hparams/session_groups", query)["sessionGroups"]
        assert group["hparams"]["optim.lr"] == 0.25
        assert group["hparams"]["model.name"] == config.model.name
        assert [(value["name"]["tag"], value["value"]) for value in group["metricValues"]] == [("accuracy/val", 0.75)]
        assert [session["status"] for session in group["sessions"]] == ["STATUS_UNKNOWN"]  # TensorBoard's for no end
        board.close("finished")
        query["allowedStatuses"] = ["STATUS_SUCCESS"]
        while not (groups := get(f"{address}/data/plugin/hparams/session_groups", query).get("sessionGroups")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert groups[0]["hparams"] == group["hparams"]
