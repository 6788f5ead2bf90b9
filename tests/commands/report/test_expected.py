"""Grades: the statistics, with SciPy as a second opinion, and what was not measured alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from resnet_train.commands.report.expected import Recipes, compare
from resnet_train.commands.report.records import RunRecord, find
from resnet_train.config.expected import ExpectedConfig, ProtocolConfig

Known = Callable[..., RunRecord]
PROTOCOL = ProtocolConfig(result="last", precision="fp32", differs=[])


def expected(mean: float, *, spread: float | None = None, n: int = 1) -> ExpectedConfig:
    return ExpectedConfig(mean=mean, spread=spread, n=n, source="a paper", protocol=PROTOCOL)


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([91.0, 91.2, 91.4], expected(91.25), "within"),
        ([91.0, 91.2, 91.4], expected(92.25), "below"),
        ([91.0, 91.2, 91.4], expected(90.1), "above"),
        ([91.0, 91.2, 91.4], expected(90.5, spread=0.16, n=5), "above"),
        ([91.0, 91.2, 91.4], expected(91.5, spread=0.16, n=5), "within"),
        ([91.2], expected(91.2), "too few seeds"),
        ([91.2, 91.2], expected(91.2, spread=0.1, n=9), "too few seeds"),
        ([100 * 0.8824] * 3, expected(88.24), "within"),
        ([100 * 0.8824] * 3, expected(88.25), "below"),
        ([88.24] * 3, expected(88.24, spread=0.0, n=2), "within"),
    ],
)
def test_verdicts(ours: list[float], theirs: ExpectedConfig, verdict: str) -> None:
    found, interval = compare(ours, theirs)
    assert found == verdict
    assert (interval is None) == (verdict == "too few seeds")


OURS = [[91.0, 91.2, 91.4], [90.1, 93.2, 91.7, 92.2, 90.9], [88.24, 88.25, 88.24, 88.3]]


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize(("spread", "n"), [(0.16, 5), (1.3, 3), (0.02, 30)])
def test_the_interval_is_welchs(ours: Sequence[float], spread: float, n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    mean = 91.3
    _, interval = compare(ours, expected(mean, spread=spread, n=n))
    test = stats.ttest_ind_from_stats(
        statistics.fmean(ours), statistics.stdev(ours), len(ours), mean, spread, n, equal_var=False
    )
    freedom = _freedom(ours, spread, n)
    reach = stats.t.ppf(0.975, freedom) * abs((statistics.fmean(ours) - mean) / test.statistic)
    difference = statistics.fmean(ours) - mean
    assert interval == pytest.approx((difference - reach, difference + reach), abs=1e-4)
    assert (test.pvalue < 0.05) == (not interval[0] <= 0 <= interval[1])


def _freedom(ours: Sequence[float], spread: float, n: int) -> float:
    a, b = statistics.variance(ours) / len(ours), spread**2 / n
    return (a + b) ** 2 / (a**2 / (len(ours) - 1) + b**2 / (n - 1))


@pytest.mark.parametrize("ours", OURS)
def test_one_run_of_the_source_is_met_by_a_prediction_interval(ours: Sequence[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    mean, deviation, n = statistics.fmean(ours), statistics.stdev(ours), len(ours)
    reach = stats.t.ppf(0.975, n - 1) * deviation * (1 + 1 / n) ** 0.5
    assert compare(ours, expected(91.0))[1] == pytest.approx((mean - 91 - reach, mean - 91 + reach), abs=1e-4)


# ------------------------------------------------------------------------------------------------------------- recipes


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., list[str]]:
    """Write the recipe ``mine``, which asks for a run of the fixture ``runs``; returns the flags that find it."""

    def write(text: str = "") -> list[str]:
        folder = tmp_path / "conf/experiment"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "mine.yaml").write_text(
            "# @package _global_\ndefaults:\n  - override /dataset: synthetic\nepochs: 2\nbatch_size: 32\n"
            "precision: fp32\nmodel: {depth: 8, width: 0.25}\noptim: {lr: 0.1}\n"
            "dataset: {num_train: 200, num_test: 50, image_size: 16, augment: {flip: true}}\n" + text
        )
        return ["--config-dir", str(tmp_path / "conf")]

    return write


EXPECTED = """\
expected:
  mean: 50
  spread: null
  n: 1
  source: a paper, table 3
  protocol: {result: RESULT, precision: PRECISION, differs: [DIFFERS]}
"""


def text(result: str = "last", precision: str = "fp32", differs: str = "") -> str:
    return EXPECTED.replace("RESULT", result).replace("PRECISION", precision).replace("DIFFERS", differs)


def test_runs_of_a_recipe_are_graded(recipe: Callable[..., list[str]], runs: Path, known: Known) -> None:
    flags = recipe(text())
    found = [record for record in find([str(runs)]) if record.flat["optim.lr"] == 0.1]
    records = [
        known(config={"seed": one.seed}, result=0.4 + 0.001 * number, overrides=["experiment=mine"], flags=flags)
        for number, one in enumerate(found)
    ]
    grade = Recipes().grade(records)
    assert grade is not None
    assert (grade.recipe, grade.verdict, grade.n, grade.differences) == ("mine", "below", 3, [])
    assert (grade.mean, grade.std) == (pytest.approx(40.1), pytest.approx(0.1))
    assert grade.expected.source == "a paper, table 3"


LAST, SPLIT = "after the last of 13 steps", "of the weights that were best on the validation split"
FORCED = "after 7 steps: optim.lr: saved 1, requested 2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("expects", "config", "facts", "differences"),
    [
        (text(), {"optim.lr": 0.3, "kernels": "plain"}, {}, ["optim.lr: 0.3, 0.1 in the recipe"]),
        (
            text(),
            {"dataset.val_size": 9, "eval_every": 3},
            {},
            ["eval_every: 3, 1 in the recipe", "dataset.val_size: 9, 0 in the recipe"],
        ),
        (text(precision="fp16"), {}, {}, ["precision: fp32, fp16 in the source"]),
        (text(precision="unknown"), {}, {"precision": "bf16"}, ["precision: bf16, unknown in the source"]),
        (text("best"), {}, {}, [f"result: {LAST}; the source gives the best one on the test images"]),
        (
            text("unknown"),
            {},
            {},
            [f"result: {LAST}; the source does not say whether it gives the last or the best one"],
        ),
        (text(), {}, {"result_rule": SPLIT}, [f"result: {SPLIT}; the source gives the last one"]),
        (
            text(differs="'45,000 images'"),
            {},
            {"forced": [FORCED]},
            [f"forced at resume: {FORCED}", "source: 45,000 images"],
        ),
    ],
)
def test_every_difference_of_protocol_is_named(
    recipe: Callable[..., list[str]],
    known: Known,
    expects: str,
    config: dict[str, object],
    facts: dict[str, object],
    differences: list[str],
) -> None:
    record = known(config=config, overrides=["experiment=mine"], flags=recipe(expects), **facts)
    grade = Recipes().grade([record])
    assert grade is not None
    assert (grade.verdict, grade.interval, grade.std) == ("too few seeds", None, None)
    assert sorted(grade.differences) == sorted(differences)


def test_no_recipe_no_expectation_no_grade(recipe: Callable[..., list[str]], known: Known, tmp_path: Path) -> None:
    recipes = Recipes()
    assert recipes.grade([]) is None
    assert recipes.grade([known()]) is None
    assert recipes.grade([known(overrides=["experiment=mine"], flags=recipe())]) is None
    assert recipes.grade([known(overrides=["experiment=gone"])]) is None
    elsewhere = known(overrides=["experiment=he2015_resnet20"])
    assert recipes.grade([elsewhere]) is None, "synthetic images are not those of the paper"
    assert recipes.grade([known(overrides=elsewhere.overrides, config={"dataset.name": "cifar10"})]) is not None
    assert (
        recipes.grade([known(overrides=["experiment=mine"], flags=["--config-dir", str(tmp_path / "nowhere")])]) is None
    )


@pytest.mark.slow
@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 1202])
def test_published_recipes_expect_what_the_paper_says(depth: int, compose: Callable[..., object]) -> None:
    """He et al. 2015, table 6: test error in %."""
    errors = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.61, 1202: 7.93}
    config = compose(f"experiment=he2015_resnet{depth}")
    found = config.expected  # type: ignore[attr-defined]
    assert found.mean == pytest.approx(100 - errors[depth])
    assert (found.spread, found.n) == ((0.16, 5) if depth == 110 else (None, 1))
    assert "table 6" in found.source
