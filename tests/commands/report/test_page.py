"""The page of resnet-report, opened from the disk in a real browser without a network."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from resnet_train.commands.report.groups import Group, gather
from resnet_train.commands.report.page import write_page
from resnet_train.commands.report.records import RunRecord, find
from resnet_train.errors import ConfigError
from resnet_train.runs.directory import lock
from resnet_train.runs.metrics_table import COLUMNS, line_of, read_rows

HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror="document.title=1"><!--<b>&amp;'
SEEDS, ROWS, EPOCHS = 5, 1000, 100
CLASSES = 120


def variant(source: Path, target: Path, *, lr: float, seed: int, **more: Any) -> Path:
    """A copy of a real run under another configuration, with as many rows as a hundred epochs leave."""
    shutil.copytree(source, target)
    config = yaml.safe_load((target / "config.yaml").read_text())
    config["optim"]["lr"], config["seed"] = lr, seed
    (target / "config.yaml").write_text(yaml.safe_dump(config | more))
    overrides = [f"optim.lr={lr}", f"seed={seed}", *(f"{key}={value}" for key, value in more.items())]
    (target / "invocation.json").write_text(json.dumps({"flags": [], "overrides": overrides}))
    draw = random.Random(1000 * lr + seed)
    measured = [row for _, row in sorted(read_rows(source / "metrics.csv").items())]
    lines = [",".join(("step", *COLUMNS))]
    for number in range(1, ROWS + 1):
        row = {key: value for key, value in measured[number % len(measured)].items() if not key.endswith("/test")}
        if number % (ROWS // EPOCHS) == 0:
            row |= {key: value for key, value in measured[-1].items() if key.endswith("/test")}
        row = {key: value * (1 + draw.uniform(-0.1, 0.1)) for key, value in row.items()}
        lines.append(line_of(50 * number, row | {"epoch": number * EPOCHS / ROWS}))
    (target / "metrics.csv").write_text("\n".join(lines) + "\n")
    summary = json.loads((target / "summary.json").read_text())
    accuracy = round(0.9 - lr / 10 + draw.uniform(-0.002, 0.002), 4)
    summary["last"]["test"] |= {"accuracy": accuracy, "error": 1 - accuracy}
    summary |= {"result": accuracy, "seed": seed, "command": "resnet-train " + " ".join(overrides)}
    (target / "summary.json").write_text(json.dumps(summary))
    return target


def evaluate(directory: Path, name: str, classes: list[str]) -> None:
    """An evaluation in the form of resnet-eval's."""
    folder, draw, size = directory / "eval" / name, random.Random(0), len(classes)
    folder.mkdir(parents=True)
    confusion = [[draw.choice((0, 0, 0, 1)) + 40 * (row == column) for column in range(size)] for row in range(size)]
    count, correct = sum(map(sum, confusion)), sum(confusion[one][one] for one in range(size))
    bins = [
        {"low": n / 10, "high": (n + 1) / 10, "count": 5, "confidence": n / 10, "accuracy": n / 11} for n in range(10)
    ]
    content = {
        "split": "test", "checkpoint": "last", "step": 13, "tta": "none", "count": count, "correct": correct,
        "accuracy": correct / count, "error": 1 - correct / count, "interval": [0.5, 0.9], "top5": 0.99, "loss": 0.4,
        "balanced_accuracy": 0.7, "macro": {"f1": 0.6}, "calibration_error": 0.02, "reliability": bins,
        "classes": classes, "confusion": confusion, "per_class": [
            {"name": name, "precision": 0.5, "recall": 0.5, "f1": (1 + n) / (1 + size), "support": 40}
            for n, name in enumerate(classes)
        ],
    }  # fmt: skip
    (folder / "eval.json").write_text(json.dumps(content))
    lines = [
        f'{n},"{classes[0]}",{classes[1]},{1 - n / 100}'.replace(HOSTILE, HOSTILE.replace('"', '""')) for n in range(9)
    ]
    (folder / "mistakes.csv").write_text("index,label,prediction,confidence\n" + "\n".join(lines) + "\n")
    Image.effect_noise((400, 300), 60).convert("RGB").save(folder / "mistakes.png")


class Made:
    """What the page was made of."""

    def __init__(self, records: list[RunRecord], groups: list[Group], path: Path) -> None:
        self.records, self.groups, self.path = records, groups, path


@pytest.fixture(scope="module")
def made(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A page of 20 finished runs in four configurations, one of them hostile, of a failed one and a running one."""
    folder = tmp_path_factory.mktemp("page")
    source = runs / "deep/0.1-0"
    for lr, more in ((0.1, {}), (0.2, {}), (0.4, {}), (1e-05, {"init_from": HOSTILE})):
        for seed in range(SEEDS):
            variant(source, folder / f"sweep/{lr}-{seed}", lr=lr, seed=seed, **more)
    shutil.copytree(runs / "diverged", folder / "diverged")
    running = variant(source, folder / "running", lr=0.2, seed=9)
    (running / "summary.json").unlink()
    evaluate(folder / "sweep/0.1-0", "test-last", [HOSTILE, *(f"class {n}" for n in range(9))])
    evaluate(folder / "sweep/0.2-0", "test-last", [f"class {n}" for n in range(CLASSES)])
    broken = folder / "sweep/0.4-0/eval/cut"
    broken.mkdir(parents=True)
    (broken / "eval.json").write_text('{"split": "te')
    with ExitStack() as stack:
        stack.enter_context(lock(running))
        records = find([str(folder)])
    groups = gather(records)
    write_page(groups, records, folder / "report.html", metric="accuracy")
    return Made(records, groups, folder / "report.html")


@pytest.fixture(scope="module")
def page(made: Made, browser: Any) -> Iterator[Any]:
    """The browser, with the page open."""
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(made.path.as_uri())
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get("about:blank")


@pytest.fixture
def ask(page: Any) -> Callable[..., Any]:
    """The value of an expression of JavaScript on the page."""
    return lambda expression, *values: page.execute_script(f"return {expression}", *values)


@pytest.fixture
def texts(ask: Callable[..., Any]) -> Callable[[str], list[str]]:
    """The texts of the elements that are shown of those that a selector finds."""
    expression = "[...document.querySelectorAll(arguments[0])].filter((e) => e.offsetParent).map((e) => e.textContent)"
    return lambda selector: ask(expression, selector)  # type: ignore[no-any-return]


def click(page: Any, selector: str, text: str = "") -> None:
    """Click on the first element with ``text`` in it."""
    script = "[...document.querySelectorAll(arguments[0])].find((e) => e.textContent.includes(arguments[1])).click()"
    page.execute_script(script, selector, text)


def type_into(page: Any, selector: str, text: str) -> None:
    field = page.find_element("css selector", selector)
    field.clear()
    field.send_keys(text or " \b")


def column(title: str) -> str:
    """Cells of the table of configurations, by the place of a title in its head."""
    return f"""(() => {{
      const heads = [...document.querySelectorAll("#configurations th")].map((head) => head.textContent);
      const rows = [...document.querySelectorAll("#configurations tbody tr")].filter((row) => !row.hidden);
      return rows.map((row) => row.children[heads.indexOf("{title}")].textContent);
    }})()"""


# ---------------------------------------------------------------------------------------------------------------- size


def test_twenty_runs_take_less_than_six_megabytes(made: Made) -> None:
    assert len([record for record in made.records if record.status == "finished"]) == 20
    assert all(len(record.rows) == ROWS for record in made.records if record.status == "finished")
    assert made.path.stat().st_size < 6_000_000


def test_the_scripts_are_three_and_no_text_ends_one(made: Made) -> None:
    page = made.path.read_text(encoding="utf-8")
    assert len(re.findall("<script", page, re.IGNORECASE)) - page.count('"<script') >= 3
    assert len(re.findall("</script", page, re.IGNORECASE)) == 3
    assert HOSTILE not in page and "<!--" not in page


# ------------------------------------------------------------------------------------------------------- first screen


@pytest.mark.slow
def test_which_is_best_by_how_much_how_sure(made: Made, texts: Callable[[str], list[str]]) -> None:
    best, second = made.groups[:2]
    assert best.mean is not None and second.mean is not None and best.std is not None
    which, value, difference = texts("#verdict .figure")
    assert best.label in which and "best of 4 configurations" in which
    assert f"{100 * best.mean:.2f} ± {100 * best.std:.2f} %" in value and "5 seeds" in value
    assert f"{100 * (best.mean - second.mean):.2f} points above the next" in difference
    assert "Clear." in difference and "95 % interval of the difference: +" in difference and second.label in difference


@pytest.mark.slow
def test_what_is_left_out_is_said(texts: Callable[[str], list[str]], page: Any) -> None:
    click(page, "#notes summary")
    assert texts("#notes summary") == ["1 thing left out"]
    assert texts("#notes li")[0].startswith("0.4-0/eval/cut/eval.json: cannot be read (")


# -------------------------------------------------------------------------------------------------------------- tables


def test_only_the_keys_that_differ_are_columns(texts: Callable[[str], list[str]]) -> None:
    heads = [head for head in texts("#configurations th") if head]
    assert heads[0] == "optim.lr" and heads[-2:] == ["time", "images/s"]
    assert set(heads[:2]) == {"optim.lr", "init_from"} and "test accuracy" in heads and "n" in heads


def test_the_table_sorts(page: Any, ask: Callable[..., Any]) -> None:
    cells = column("optim.lr")
    assert ask(cells) == ["1e-05", "0.1", "0.2", "0.4"], "best first"
    click(page, "#configurations th button", "test accuracy")
    assert ask(cells) == ["0.4", "0.2", "0.1", "1e-05"]
    click(page, "#configurations th button", "optim.lr")
    assert ask(cells) == ["1e-05", "0.1", "0.2", "0.4"]
    head = page.find_element("css selector", "#configurations th[aria-sort]")
    assert (head.text.split("\n")[0], head.get_attribute("aria-sort")) == ("optim.lr", "ascending")
    head.find_element("css selector", "button").send_keys("\n")  # by the keyboard
    assert ask(cells) == ["0.4", "0.2", "0.1", "1e-05"]


def test_the_table_filters(page: Any, ask: Callable[..., Any], texts: Callable[[str], list[str]]) -> None:
    type_into(page, "#configurations input", "0.2 ")
    assert ask(column("optim.lr")) == ["0.2"]
    type_into(page, "#configurations input", "nowhere")
    assert ask(column("optim.lr")) == [] and texts("#configurations .none") == ["no configuration has all these words"]
    type_into(page, "#configurations input", "")
    assert len(ask(column("optim.lr"))) == 4


def test_what_has_not_finished_stands_apart(texts: Callable[[str], list[str]]) -> None:
    running, failed = texts("#unfinished tbody tr")
    assert running.startswith("running") and "running" in running and "100.0" in running
    assert failed.startswith("failed") and "training has diverged" in failed


def test_two_configurations_side_by_side(made: Made, page: Any, texts: Callable[[str], list[str]]) -> None:
    a, b = page.find_elements("css selector", "#compare select")
    page.execute_script(
        "const choose = (select, text) => { select.value = [...select.options].find((one) => one.text.includes(text))"
        ".value; select.dispatchEvent(new Event('change')); };"
        "choose(arguments[0], '0.1-3'); choose(arguments[1], '0.4-4')",
        a,
        b,
    )
    assert texts("#compare tbody tr") == ["optim.lr0.10.4", "seed34"]
    click(page, "#compare input")
    assert len(texts("#compare tbody tr")) == len(made.records[1].flat)
    click(page, "#compare input")


@pytest.mark.slow
def test_what_a_run_was_made_with(made: Made, page: Any, texts: Callable[[str], list[str]]) -> None:
    click(page, "#runs .run summary", "0.2-3")
    page.implicitly_wait(5)
    (facts,) = page.find_elements("css selector", "#runs .run[open] dl")
    page.implicitly_wait(0)
    summary = next(one.summary for one in made.records if one.directory.name == "0.2-3")
    assert summary is not None
    assert "resnet-train optim.lr=0.2 seed=3" in facts.text
    assert summary.hardware in facts.text and f"torch {summary.versions['torch']}" in facts.text
    type_into(page, "#runs input", "0.4-1")
    assert len(texts("#runs .run > summary")) == 1
    type_into(page, "#runs input", "")


# -------------------------------------------------------------------------------------------------------------- curves


LOSS = "document.querySelector('[data-chart=loss] .plot')"


def test_curves_are_drawn(page: Any, ask: Callable[..., Any], texts: Callable[[str], list[str]]) -> None:
    assert texts(".chart h3") == ["Loss", "Accuracy", "Learning rate", "Gradient norm"]
    # Four configurations, train and test, a line and a band; the running one has no finished run beside it to hide in.
    lines = ask(f"{LOSS}.data.filter((trace) => trace.fill !== 'toself').length")
    bands = ask(f"{LOSS}.data.filter((trace) => trace.fill === 'toself').length")
    assert (lines, bands) == (8, 8)
    drawn = page.find_elements("css selector", "[data-chart=loss] .scatterlayer path.js-line")
    assert len([one for one in drawn if one.get_attribute("d")]) >= lines
    assert texts("#curves .legend li .quiet")[:4] == ["n=5"] * 4


def test_the_band_is_mean_and_deviation_over_the_seeds(made: Made, ask: Callable[..., Any]) -> None:
    mean, deviation, n, band = ask(
        f"(() => {{ const data = {LOSS}.data; const line = data.find((one) => one.meta?.[0] === 'test ');"
        "const band = data[data.indexOf(line) - 1]; const last = line.y.length - 1;"
        "return [line.y[last], ...line.customdata[last], band.y[last]]; })()"
    )
    values = [max(record.rows.items())[1]["loss/test"] for record in made.groups[0].runs]
    assert (mean, deviation, n) == (
        pytest.approx(statistics.fmean(values), rel=1e-4),
        pytest.approx(statistics.stdev(values), rel=1e-2),
        SEEDS,
    )
    assert band == pytest.approx(mean + deviation)


@pytest.mark.slow
def test_runs_are_chosen(page: Any, ask: Callable[..., Any], texts: Callable[[str], list[str]]) -> None:
    boxes = "#curves .legend .all > li > label input"
    page.execute_script(f"document.querySelectorAll('{boxes}')[1].click()")
    assert ask(f"{LOSS}.data.length") == 12
    page.execute_script("document.querySelector('#curves .legend li ul input').click()")
    assert texts("#curves .legend li .quiet")[0] == "n=4"
    assert ask(f"document.querySelector('{boxes}').indeterminate") is True
    click(page, "#curves input[value=lines]")
    assert ask(f"{LOSS}.data.length") == 2 * (4 + 5 + 5)
    click(page, "#curves input[value=test]")
    assert ask(f"{LOSS}.data.length") == 4 + 5 + 5
    type_into(page, "#curves .legend input", "lr=0.4")
    click(page, "#curves .buttons button", "Untick all")
    assert ask(f"{LOSS}.data.length") == 4 + 5
    type_into(page, "#curves .legend input", "")
    click(page, "#curves .buttons button", "Untick all")
    assert texts("#curves [data-chart=loss] .quiet") == ["tick a run to see it"]
    click(page, "#curves .buttons button", "Tick all")
    assert ask(f"{LOSS}.data.length") == 20 + 2, "those that have not finished too"
    click(page, "#curves input[value=test]")
    click(page, "#curves input[value=band]")


@pytest.mark.slow
def test_curves_zoom_together(page: Any, ask: Callable[..., Any]) -> None:
    from selenium.webdriver import ActionChains

    place = page.find_element("css selector", "[data-chart=accuracy] .nsewdrag")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", place)
    width = place.rect["width"]
    actions = ActionChains(page, duration=20).move_to_element_with_offset(place, -width // 4, 0).click_and_hold()
    actions.move_by_offset(int(width / 4), 3).move_by_offset(int(width / 4), 0).release().perform()
    ranges = "[...document.querySelectorAll('.chart .plot')].map((plot) => plot.layout.xaxis.range)"
    assert len(ask(ranges)) == 4
    for low, high in ask(ranges):
        assert 20 < low < 30 and 70 < high < 80
    click(page, "#curves input[value=end]")
    low, high = ask(f"{LOSS}.layout.xaxis.range")
    assert low == pytest.approx(50) and high > 100
    click(page, "#curves input[value=step]")
    assert ask(f"{LOSS}.layout.xaxis.range[0]") == pytest.approx(25 * ROWS)
    click(page, "#curves input[value=all]")
    click(page, "#curves input[value=epoch]")


# ---------------------------------------------------------------------------------------------------------- evaluation


def test_an_evaluation(ask: Callable[..., Any], texts: Callable[[str], list[str]]) -> None:
    facts = " ".join(texts("#evaluations .facts div"))
    assert "95 % interval 50.00 % to 90.00 %" in facts and "top-599.00 %" in facts
    matrix = "document.querySelector('.matrix').data[0]"
    assert ask(f"[{matrix}.z.length, {matrix}.z[0].length, {matrix}.type]") == [10, 10, "heatmap"]
    rows = ask(
        "[...document.querySelectorAll('#evaluations .some tbody tr')].map((row) => row.children[2].textContent)"
    )
    assert rows and set(rows) == {"1"}, "the pairs that were confused"
    assert ask("document.querySelector('#evaluations .sheet').naturalWidth") > 0
    weakest = texts("#evaluations .gap td:first-child")
    assert HOSTILE in weakest


@pytest.mark.slow
def test_a_matrix_of_many_classes(page: Any, ask: Callable[..., Any]) -> None:
    page.execute_script(
        "const choice = document.querySelector('#evaluations select'); choice.value = 1;"
        "choice.dispatchEvent(new Event('change'))"
    )
    matrix = "document.querySelector('.matrix').data[0]"
    assert ask(f"{matrix}.z.length") == CLASSES
    assert ask(f"{matrix}.z[3][3]") is None, "mistakes alone, or the diagonal would outshine them"
    click(page, "#evaluations .head input[type=checkbox]")
    assert ask(f"{matrix}.z[3][3]") > 0.4
    page.execute_script(
        "const choice = document.querySelector('#evaluations select'); choice.value = 0;"
        "choice.dispatchEvent(new Event('change'))"
    )


# --------------------------------------------------------------------------------------------------------------- theme


@pytest.mark.slow
def test_light_and_dark(page: Any, ask: Callable[..., Any]) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = f"{LOSS}.layout.font.color"
    found = {}
    for theme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        found[theme] = [ask(ground), ask(ink)]
    assert found["light"][0] == "rgb(255, 255, 255)" and found["light"] != found["dark"]
    for theme in ("light", "dark"):  # against the system, which is dark
        page.execute_script(
            "const choice = document.querySelector('#theme'); choice.value = arguments[0];"
            "choice.dispatchEvent(new Event('change'))",
            theme.title(),
        )
        assert [ask(ground), ask(ink)] == found[theme]
    page.refresh()
    assert ask(ground) == found["dark"][0], "the choice is remembered"
    page.execute_script("localStorage.clear()")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


# -------------------------------------------------------------------------------------------------------------- safety


def test_hostile_texts_stay_texts(page: Any, ask: Callable[..., Any], texts: Callable[[str], list[str]]) -> None:
    assert page.title == "22 runs, 4 configurations · resnet-report"
    assert HOSTILE in ask(column("init_from"))
    assert any(HOSTILE in text for text in texts("#curves .legend label"))
    assert ask("document.scripts.length") == 3
    assert ask("[...document.images].every((image) => image.className === 'sheet')")
    ticks = ask("[...document.querySelectorAll('.matrix .ytick text')].map((one) => one.textContent)")
    assert HOSTILE[:17] + "…" in ticks
    told = ask("document.querySelector('.matrix').data[0].hovertext[0][1]")
    assert told.startswith("&lt;/script&gt;&lt;script&gt;") and "&amp;amp; taken for class 0: " in told


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280])
def test_no_width_scrolls_the_page(page: Any, ask: Callable[..., Any], width: int) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert ask("innerWidth") == width and ask("document.documentElement.scrollWidth") <= width
    wide = (
        "[...document.querySelectorAll('.plot')].filter((one) => one.getBoundingClientRect().right > innerWidth).length"
    )
    WebDriverWait(page, 10).until(lambda _: ask(wide) == 0, "plots follow the width")


def test_nothing_was_asked_for_and_nothing_failed(made: Made, page: Any) -> None:
    """Last, over all that the tests above did."""
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    asked = [one["request"]["url"] for one in sent if not one["documentURL"].startswith("chrome")]
    assert made.path.as_uri() in asked
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {made.path.as_uri()}
    assert page.get_log("browser") == []


# ------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.slow
def test_runs_without_a_result(runs: Path, tmp_path: Path, browser: Any) -> None:
    shutil.copytree(runs / "diverged", tmp_path / "diverged")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/invocation.json").write_text('{"flags": [], "overrides": ["model=resnet20"]}')
    records = find([str(tmp_path)])
    write_page(gather(records), records, tmp_path / "page.html", metric="loss")
    browser.get((tmp_path / "page.html").as_uri())
    shown = browser.find_element("css selector", "main").text
    assert "No run has a result yet" in shown and "training has diverged" in shown
    assert browser.get_log("browser") == []


def test_numbers_that_are_none(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "deep/0.1-0", tmp_path / "run")
    text = (tmp_path / "run/metrics.csv").read_text().splitlines()
    cells = text[1].split(",")
    (tmp_path / "run/metrics.csv").write_text("\n".join([text[0], ",".join([*cells[:3], "nan", "inf", *cells[5:]])]))
    records = find([str(tmp_path)])
    assert any(not math.isfinite(value) for row in records[0].rows.values() for value in row.values())
    write_page(gather(records), records, tmp_path / "page.html", metric="accuracy")
    (data,) = re.findall(r'id="data">(.*?)</script>', (tmp_path / "page.html").read_text(encoding="utf-8"))
    assert json.loads(data)["runs"][0]["curves"]["loss/train"] == [None]


def test_without_plotly(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ConfigError, match=r'not installed; pip install "resnet-train\[report\]"'):
        write_page(made.groups, made.records, tmp_path / "page.html", metric="accuracy")


def test_a_folder_that_is_not_there(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--html: expected a file in a folder that exists, got '.*'; make .*nowhere"):
        write_page(made.groups, made.records, tmp_path / "nowhere/page.html", metric="accuracy")
