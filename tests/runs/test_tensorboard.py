"""Event files as TensorBoard's own reader and its server see them."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as ServerAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray
from torchvision.transforms.functional import to_tensor
from torchvision.utils import make_grid

from resnet_train.config.run import Config
from resnet_train.runs.history import History
from resnet_train.runs.tensorboard import TensorBoard, hparams, image_grid

Compose = Callable[..., Config]
Serve = Callable[..., Any]


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
    return lambda from_step: TensorBoard(tmp_path, config, from_step=from_step)


def test_numbers_can_be_read_while_the_run_trains(tmp_path: Path, config: Config) -> None:
    board = TensorBoard(tmp_path, config, from_step=0)
    for step in (5, 10):
        board.write(step, {"loss/train": step / 4, "lr": 0.5} | ({"accuracy/val": 0.75} if step == 10 else {}))
        assert [step for step, _ in scalars(tmp_path, "loss/train")] == list(range(5, step + 1, 5))
    assert scalars(tmp_path, "loss/train") == [(5, 1.25), (10, 2.5)]
    assert scalars(tmp_path, "accuracy/val") == [(10, 0.75)]
    assert sorted(events(tmp_path).Tags()["scalars"]) == ["accuracy/val", "loss/train", "training/lr"]
    board.close("interrupted")


@pytest.mark.parametrize("clock", [1, -3600.0], ids=["runs on", "set back"])
def test_a_resumed_run_shows_each_step_once(
    tmp_path: Path, open_board: Callable[[int], TensorBoard], monkeypatch: pytest.MonkeyPatch, clock: float
) -> None:
    """The second session repeats step 15, which the checkpoint did not have; the third goes back to step 5.

    Files are read in the order of their names, which is that of the sessions, also where the clock was set back.
    """
    expected: list[tuple[int, float]] = []
    begun = time.time_ns()
    for session, (from_step, steps) in enumerate([(0, (0, 5, 10, 15)), (12, (15, 20)), (5, (10,))]):
        now = begun + int(clock * session * 1e9)
        monkeypatch.setattr(time, "time_ns", lambda now=now: now)
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
    TensorBoard(tmp_path, config, from_step=0).close("interrupted")
    (event,) = events(tmp_path).Tensors("config/text_summary")
    fence, *lines, end = event.tensor_proto.string_val[0].decode().splitlines()
    assert (fence, end) == ("```yaml", "```"), "Markdown"
    assert yaml.safe_load("\n".join(lines)) == asdict(config)


def test_training_images_are_shown_as_they_look(tmp_path: Path, config: Config) -> None:
    """Normalised and back; at most 64, in rows of eight."""
    pixels = torch.rand(70, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    normalised = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    board = TensorBoard(tmp_path, config, from_step=0)
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
    board = TensorBoard(tmp_path, config, from_step=0)
    found = hparams_data(tmp_path)
    assert found.keys() == {"session_start_info"}, "with an experiment TensorBoard would look at no other run"
    start = found["session_start_info"].session_start_info.hparams
    assert start["optim.lr"].number_value == 0.25
    assert (start["model.name"].string_value, start["model.residual"].string_value) == (config.model.name, "true")
    assert set(start) == set(hparams(config))
    board.close("finished")


@pytest.mark.parametrize(("status", "code"), [("finished", 1), ("failed", None), ("interrupted", None)])
def test_only_the_end_of_a_run_ends_its_session(tmp_path: Path, config: Config, status: str, code: int | None) -> None:
    """1 is success, 2 failure in the hparams plugin's api.proto; a run that was interrupted is resumed some day."""
    TensorBoard(tmp_path, config, from_step=0).close(status)
    found = hparams_data(tmp_path).get("session_end_info")
    assert (found.session_end_info.status if found else None) == code
    if found:
        assert abs(found.session_end_info.end_time_secs - time.time()) < 60


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {}),
        (["optim=adamw", "+label_smoothing=0.1"], {"optim.name": "adamw", "label_smoothing": 0.1}),
        (["model=resnet56", "experiment=quick"], {"experiment": "quick"}),
        (["dataset.augment={mixup: 0.2}", "device=cpu"], {"dataset.augment.mixup": 0.2}),
    ],
)
def test_hparams_are_those_that_were_given_and_what_compares_any_two_runs(
    tiny: Compose, overrides: list[str], expected: dict[str, float | str]
) -> None:
    config = tiny("optim=adamw", "label_smoothing=0.1", "dataset.augment.mixup=0.2")
    found = hparams(config, overrides)
    always = {"model.name": config.model.name, "optim.lr": config.optim.lr, "seed": 0}
    assert found.items() >= (always | expected).items()
    assert all(key in always | expected or key.startswith("dataset.augment.") for key in found)


def test_hparams_are_the_numbers_and_texts_that_are_set(tiny: Compose, compose: Compose) -> None:
    flat = hparams(tiny("ema_decay=0.5", "dataset.val_size=10", "schedule=multistep", "schedule.milestones=[1, 2]"))
    assert (flat["optim.lr"], flat["seed"], flat["ema_decay"], flat["precision"]) == (0.1, 0, 0.5, "fp32")
    assert (flat["model.residual"], flat["schedule.milestones"], flat["optim.name"]) == ("true", "[1, 2]", "sgd")
    assert all(type(value) in (int, float, str) for value in flat.values())
    assert not {"steps", "clip_grad_norm", "resume"} & flat.keys(), "not set"
    assert not {"dataset.root", "dataset.mirrors"} & hparams(compose("dataset=cifar10")).keys(), "where, not what"


# -------------------------------------------------------------------------------------------------------- a real server


@pytest.mark.slow
def test_a_server_shows_a_run_while_it_trains(tmp_path: Path, config: Config, tensorboard_server: Serve) -> None:
    (tmp_path / "run").mkdir()
    board = TensorBoard(tmp_path / "run", config, from_step=0)
    board.write(5, {"loss/train": 0.5})
    board.write(10, {"loss/train": 0.25, "accuracy/val": 0.75})
    with tensorboard_server(tmp_path, "--load_fast=false") as server:
        tags = server.wait(lambda: server.get("/data/plugin/scalars/tags"))
        assert tags["run"].keys() == {"loss/train", "accuracy/val"}
        assert server.get("/data/environment")["data_location"] == str(tmp_path)
        points = server.get("/data/plugin/scalars/scalars?run=run&tag=loss%2Ftrain")
        assert [(step, value) for _, step, value in points] == [(5, 0.5), (10, 0.25)]
        statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
        query = {"experimentName": "", "allowedStatuses": statuses, "colParams": [], "startIndex": 0, "sliceSize": 9}
        (group,) = server.get("/data/plugin/hparams/session_groups", query)["sessionGroups"]
        assert group["hparams"]["optim.lr"] == 0.25
        assert group["hparams"]["model.name"] == config.model.name
        metrics = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        assert metrics == {"accuracy/val": 0.75, "loss/train": 0.25}
        (category,) = server.get("/data/plugin/custom_scalars/layout")["category"]
        assert [chart["title"] for chart in category["chart"]] == ["loss", "accuracy"]
        for chart, tags in zip(category["chart"], (["loss/train"], ["accuracy/val"]), strict=True):
            (tag,) = chart["multiline"]["tag"]
            shown = server.get(f"/data/plugin/custom_scalars/scalars?run=run&tag={quote(tag)}")
            assert list(shown["tag_to_events"]) == tags
        assert [session["status"] for session in group["sessions"]] == ["STATUS_UNKNOWN"]  # TensorBoard's for no end
        board.close("finished")
        query["allowedStatuses"] = ["STATUS_SUCCESS"]
        groups = server.wait(lambda: server.get("/data/plugin/hparams/session_groups", query).get("sessionGroups"))
        assert groups[0]["hparams"] == group["hparams"]


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--load_fast=false", "--load_fast=auto"])  # its two readers
def test_a_server_shows_accuracy_and_loss_of_what_a_sweep_varies(
    tmp_path: Path, config: Config, tensorboard_server: Serve, flag: str
) -> None:
    """TensorBoard ticks the first five keys, those that differ before others, and the first five metrics."""
    for seed, lr in ((0, 0.1), (1, 0.1), (1, 0.2)):
        (tmp_path / f"{seed}-{lr}").mkdir()
        changed = replace(config, seed=seed, optim=replace(config.optim, lr=lr))
        overrides = [f"seed={seed}", f"optim.lr={lr}"]
        board = TensorBoard(tmp_path / f"{seed}-{lr}", changed, from_step=0, overrides=overrides)
        board.write(5, {"epoch": 1.0, "lr": lr, "gradient_norm": 1.0, "per class accuracy/cat": 1.0, "loss/test": 0.5})
        board.write(5, {"loss/train": 1.0, "accuracy/train": 0.1, "accuracy/test": 0.5})
        board.close("finished")
    with tensorboard_server(tmp_path, flag) as server:
        server.wait(lambda: len(server.get("/data/plugin/scalars/tags")) == 3)
        query = {"experimentName": "", "hparamsLimit": 1000, "includeMetrics": True}
        found = server.get("/data/plugin/hparams/experiment", query)
    assert [(info["name"], info.get("differs", False)) for info in found["hparamInfos"]] == [
        ("optim.lr", True),
        ("seed", True),
        ("model.name", False),
    ]
    metrics = [info["name"]["tag"] for info in found["metricInfos"]]
    assert metrics[:4] == ["accuracy/test", "accuracy/train", "loss/test", "loss/train"]
    assert not {"accuracy/test", "loss/test"} & set(metrics[5:])


# ------------------------------------------------------------------------------------------------ events that were lost


def spoil(path: Path, how: str) -> None:
    """What a power failure leaves of a file that was not synced."""
    whole = path.read_bytes()
    match how:
        case "removed":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(whole[: len(whole) * 2 // 3])
        case "zeros":
            path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))


@pytest.mark.parametrize("how", ["whole", "removed", "empty", "truncated", "zeros"])
@pytest.mark.parametrize("which", [0, 1])
def test_what_was_lost_is_written_anew(tmp_path: Path, config: Config, how: str, which: int) -> None:
    measured = History()
    for from_step, steps in ((0, range(5, 40, 5)), (20, range(25, 60, 5))):
        before = History.of(measured.state_dict(), steps=from_step)
        board = TensorBoard(tmp_path, config, from_step=from_step, measured=before)
        for step in steps:
            board.write(step, {"loss/train": 1 / step, "throughput/images_per_second": step})
            measured.add(step, {"loss/train": 1 / step, "throughput/images_per_second": step}, at=1e9 + step)
        board.close("interrupted")
    spoil(sorted(tmp_path.glob("events*"))[which], how)
    board = TensorBoard(tmp_path, config, from_step=40, measured=History.of(measured.state_dict(), steps=40))
    board.write(45, {"loss/train": 9.0})
    board.close("interrupted")
    expected = [(step, np.float32(1 / step)) for step in range(5, 45, 5)] + [(45, 9.0)]
    assert scalars(tmp_path, "loss/train") == scalars_of_the_server(tmp_path, "loss/train") == expected
    assert [step for step, _ in scalars(tmp_path, "throughput/images_per_second")] == list(range(5, 45, 5))
    times = [event.wall_time for event in events(tmp_path).Scalars("loss/train")][:-1]
    assert (times == [1e9 + step for step in range(5, 45, 5)]) == (how != "whole")
    assert len(events(tmp_path).Tensors("config/text_summary")) == 1


def test_what_a_recipe_expects_is_no_hyperparameter(compose: Callable[..., Config]) -> None:
    assert not [key for key in hparams(compose("experiment=he2015_resnet20")) if key.startswith("expected")]
