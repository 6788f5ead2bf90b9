"""TensorBoard in a real browser: what its tabs show of a sweep, and of a run that was resumed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from resnet_train.config.run import Config
from resnet_train.runs.directory import Invocation
from resnet_train.train import run
from tests.runs.conftest import eventually

pytestmark = pytest.mark.slow
Tiny = Callable[..., Config]
# TensorBoard's elements lie in shadow roots: a walk through all that is shown.
WALK = """
function* walk(node) {
  for (const child of node.childNodes) {
    if (child.nodeType == 3) { yield child; continue; }
    if (child.nodeType != 1 || ["STYLE", "SCRIPT", "TEMPLATE"].includes(child.tagName)) continue;
    if (getComputedStyle(child).display == "none") continue;
    yield child;
    yield* walk(child);
    if (child.shadowRoot) yield* walk(child.shadowRoot);
  }
}
"""
TEXT = f"{WALK}return [...walk(document.body)].filter(n => n.nodeType == 3).map(n => n.textContent).join(' ')"
FIND = f"""{WALK}
const within = (node, what) => [...walk(node), ...(node.shadowRoot ? walk(node.shadowRoot) : [])]
  .filter(n => n.nodeType == 1 && n.matches(what));
return within(document.body, arguments[0]).flatMap(n => arguments[1] ? within(n, arguments[1]) : [n]);
"""


@dataclass
class Page:
    """A tab of TensorBoard."""

    browser: Any
    address: str

    def open(self, tab: str) -> None:
        self.browser.get("about:blank")  # a change of what follows the # alone loads nothing
        self.browser.get(f"{self.address}/#{tab}")

    def text(self) -> str:
        return " ".join(self.browser.execute_script(TEXT).split())

    def find(self, outer: str, inner: str | None = None) -> list[Any]:
        """What ``outer`` selects, or what ``inner`` selects in it."""
        found: list[Any] = self.browser.execute_script(FIND, outer, inner)
        return found

    def wait(self, *texts: str, drawn: tuple[str, str] | None = None, count: int = 1) -> str:
        """Wait until all ``texts`` are shown, and ``count`` elements of what is ``drawn``; the page's text."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            shown = self.text()
            if all(text in shown for text in texts) and (drawn is None or len(self.find(*drawn)) >= count):
                return shown
            time.sleep(0.2)
        missing = [text for text in texts if text not in shown]
        raise AssertionError(f"{missing or drawn} not shown after a minute: {shown}")

    def save(self, name: str) -> None:
        """A screenshot, for people, where ``RESNET_TRAIN_SCREENSHOTS`` names a folder."""
        folder = os.environ.get("RESNET_TRAIN_SCREENSHOTS")
        if folder:
            self.browser.save_screenshot(str(Path(folder, f"{name}.png")))


@pytest.fixture(scope="module")
def sweep(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four finished jobs of two learning rates and two seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    for lr in (0.05, 0.2):
        for seed in (0, 1):
            overrides = ["epochs=2", f"optim.lr={lr}", f"seed={seed}"]
            invocation = Invocation([], overrides, ["optim.lr", "seed"])
            run(tiny(*overrides), directory=folder / f"lr={lr},seed={seed}", invocation=invocation)
    return folder


@pytest.fixture(scope="module")
def resumed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with diagnostics and a validation split, resumed behind its newest evaluation and made longer."""
    directory = tmp_path_factory.mktemp("resumed") / "run"
    overrides = ("dataset.val_size=40", "dataset.num_test=100", "diagnostics=true", "checkpoint.keep=9")
    run(tiny(*overrides, "epochs=2"), directory=directory)
    (directory / "summary.json").unlink()
    newest = max(directory.glob("checkpoints/step-*.pt"))
    for name in (newest.name, "last.pt", "best.pt"):
        (directory / "checkpoints" / name).unlink()
    shutil.copy(max(directory.glob("checkpoints/step-*.pt")), directory / "checkpoints/best.pt")
    run(tiny(*overrides, "epochs=3"), directory=directory)
    return directory.parent


@pytest.fixture(scope="module")
def sweep_page(browser: Any, tensorboard_server: Callable[..., Any], sweep: Path) -> Iterator[Page]:
    with tensorboard_server(sweep) as server:
        yield Page(browser, server.address)


@pytest.fixture(scope="module")
def run_page(browser: Any, tensorboard_server: Callable[..., Any], resumed: Path) -> Iterator[Page]:
    with tensorboard_server(resumed) as server:
        yield Page(browser, server.address)


def columns(page: Page) -> list[str]:
    """The heads of the table in the HParams tab."""
    return [" ".join(head.text.split()) for head in page.find("vaadin-grid-cell-content", ".table-header")]


def test_hparams_has_what_a_sweep_varies_and_how_it_went(sweep_page: Page) -> None:
    sweep_page.open("hparams")
    shown = sweep_page.wait("lr=0.05,seed=0", "lr=0.2,seed=1", "accuracy/test", "loss/test", "0.20000")
    sweep_page.save("hparams-sweep")
    assert [text for text in ("optim.lr", "seed", "model.name") if text not in shown] == []
    assert [
        text for text in ("batch_size", "weight_decay", "dataset.", "training/epoch") if text in columns(sweep_page)
    ] == []
    heads = [head for head in columns(sweep_page) if head]
    assert heads[2:] == [
        *("optim.lr", "seed", "model.name"),
        *("accuracy/test", "accuracy/train", "loss/test", "loss/train", "throughput/images_per_second"),
    ]


def test_time_series_draw_each_job(sweep_page: Page) -> None:
    sweep_page.open("timeseries")
    jobs = [f"lr={lr},seed={seed}" for lr in (0.05, 0.2) for seed in (0, 1)]
    sweep_page.wait("accuracy /test", "accuracy /train", *jobs, drawn=("line-chart", "canvas"), count=2)
    # In the list of runs, and in the table of a chart.
    eventually(lambda: all(shown.count(job) > 1 for shown in [sweep_page.text()] for job in jobs))
    sweep_page.save("timeseries-sweep")


def test_scalars_have_one_card_for_each_tag(sweep_page: Page) -> None:
    sweep_page.open("scalars")
    shown = sweep_page.wait(
        "accuracy/test", "loss/train", "throughput training 3", drawn=("vz-line-chart2", "path"), count=20
    )
    sweep_page.save("scalars-sweep")
    assert shown.count("tag: accuracy/test") == 1


def test_text_has_the_configuration(sweep_page: Page) -> None:
    sweep_page.open("text")
    sweep_page.wait("config/text_summary", "name: resnet8", "depth: 8", drawn=("tf-markdown-view", "code"), count=4)
    sweep_page.save("text-sweep")


def test_custom_scalars_overlay_train_val_and_test(run_page: Page) -> None:
    run_page.open("custom_scalars")
    expected = ("train, val and test", "diagnostics", "per layer gradient norm", "Matches (3)", "Matches (8)")
    shown = run_page.wait(*expected, drawn=("vz-line-chart2", "path"), count=20)
    run_page.save("custom-scalars-resumed")
    assert shown.count("Matches (3)") >= 2, "loss and accuracy, each of train, val and test"


def test_images_are_shown_at_the_step_that_they_are_of(run_page: Page) -> None:
    run_page.open("images")
    shown = run_page.wait("augmented training images", "test/confusion matrix", "test/worst mistakes", "step 15")
    run_page.wait(drawn=("tf-image-loader", "img"), count=3)
    assert shown.count("tag: test/confusion matrix") == 1
    deadline = time.monotonic() + 60
    while any(image.get_property("naturalWidth") < 50 for image in run_page.find("tf-image-loader", "img")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    run_page.save("images-resumed")


@pytest.mark.parametrize(
    ("tab", "chart"), [("histograms", "vz-histogram-timeseries"), ("distributions", "vz-distribution-chart")]
)
def test_histograms_and_distributions_of_each_layer(run_page: Page, tab: str, chart: str) -> None:
    run_page.open(tab)
    run_page.wait("gradients/conv1", "gradients/layer1.0.conv2", drawn=(chart, "path"), count=8)
    run_page.save(f"{tab}-resumed")


def test_the_graph_is_the_networks(run_page: Page) -> None:
    run_page.open("graphs")
    run_page.wait("Main Graph", "CifarResNet", "input", "output", drawn=("tf-graph-scene", "rect"), count=3)
    run_page.save("graph-resumed")
