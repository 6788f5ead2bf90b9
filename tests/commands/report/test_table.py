"""What a terminal shows, to the letter, also where it is narrow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from resnet_train.commands.report.expected import Grade
from resnet_train.commands.report.groups import gather
from resnet_train.commands.report.progress import Progress
from resnet_train.commands.report.records import RunRecord
from resnet_train.commands.report.table import Report, near, short, table
from resnet_train.config.expected import ExpectedConfig, ProtocolConfig

Known = Callable[..., RunRecord]


@pytest.fixture
def finished(known: Known) -> list[RunRecord]:
    """Two learning rates, three and one seeds."""
    return [
        known(
            config={"optim.lr": lr, "seed": seed},
            overrides=["batch_size=32", f"optim.lr={lr}", f"seed={seed}"],
            directory=Path(f"/runs/{lr}-{seed}"),
            result=result,
            total_seconds=75.0,
            images_per_second=1234.4,
        )
        for lr, seed, result in ((0.1, 0, 0.9), (0.1, 1, 0.91), (0.1, 2, 0.92), (0.05, 0, 0.95))
    ]


def shown(records: list[RunRecord], *, width: int = 80, metric: str = "accuracy") -> str:
    return table(Report(records, gather(records, metric=metric), metric), width=width)


def test_a_row_for_each_configuration(finished: list[RunRecord]) -> None:
    text = "\n".join(line.rstrip() for line in shown(finished).splitlines())
    loss = replace(finished[0]).summary
    assert loss is not None
    alike = f"{loss.last['test'].loss:.4f}"
    assert text == (
        "4 runs: 4 finished\n"
        "all: batch_size=32\n"
        "\n"
        "lr    n        test %        test loss     time  images/s\n"
        f"0.05  1         95.00           {alike}  0:01:15     1,234\n"
        f"0.1   3  91.00 ± 1.00  {alike} ± 0.0000  0:01:15     1,234"
    )


def test_a_seed_that_was_run_twice_is_told(finished: list[RunRecord]) -> None:
    again = replace(finished[0], directory=Path("/runs/again"))
    assert "(finished runs that repeat a seed of their row, and do not count: 1)" in shown([*finished, again])


def test_one_run(known: Known) -> None:
    lines = shown([known(overrides=["epochs=2"])]).splitlines()
    assert lines[:2] == ["1 run: 1 finished", "all: epochs=2"]
    assert lines[3].split() == ["n", "test", "%", "test", "loss", "time", "images/s"]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_narrow_terminal(known: Known, width: int) -> None:
    """Metrics go from the right; then all keys share a column, which is folded."""
    keys = {"optim.weight_decay": 0.00025, "dataset.augment.crop_padding": 2, "schedule.warmup_shape": "constant"}
    text = shown([known(), known(config=keys)], width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "constant" in text and "test loss" in text
    assert ("warmup_shape=constant" in text) == (width < 80), "folded"
    assert "\n(no room for " in text


def test_sorted_by_another_metric(finished: list[RunRecord]) -> None:
    lines = shown(finished, metric="memory").splitlines()
    assert lines[3].split()[:4] == ["lr", "n", "peak", "MB"]


# --------------------------------------------------------------------------------------------- what has not finished


def unfinished(known: Known, status: str, **facts: object) -> RunRecord:
    record = known(config={"optim.lr": 0.3}, overrides=["optim.lr=0.3"], directory=Path("/runs") / status)
    return replace(record, status=status, summary=None, **facts)  # type: ignore[arg-type]


def test_what_has_not_finished_stands_apart(known: Known, finished: list[RunRecord]) -> None:
    some = Progress(9, 13, 1.44, 2.08, "test", 0.4567, 1234.4, 75.0)
    records = [
        *finished,
        unfinished(known, "running", progress=some),
        unfinished(known, "interrupted", progress=replace(some, seconds_left=None)),
        unfinished(known, "failed", progress=Progress(9), error="the loss is nan"),
        RunRecord(Path("/runs/waiting"), "waiting", {}, ["optim.lr=0.7", "seed=4"]),
    ]
    parts = shown(records).split("\n\n")
    assert parts[0].splitlines()[0] == "8 runs: 4 finished, 1 running, 1 interrupted, 1 failed, 1 waiting"
    running, interrupted, failed, waiting = parts[2:]
    assert running == (
        "running:\n  lr=0.3 seed=0  epoch 1.44/2.08, test 45.67 %, 1,234 images/s, 0:01:15 left\n    /runs/running"
    )
    first, second, resume = interrupted.splitlines()
    assert (first, second) == ("interrupted:", "  lr=0.3 seed=0  epoch 1.44/2.08, test 45.67 %")
    assert resume.endswith(" resume=/runs/interrupted")
    assert failed == "failed:\n  lr=0.3 seed=0  step 9, the loss is nan\n    /runs/failed/train.log"
    assert waiting == "waiting:\n  lr=0.7 seed=4"


def test_a_run_that_starts(known: Known) -> None:
    assert "  running  starting\n" in shown([unfinished(known, "running", progress=Progress())])


def test_many_that_wait_are_counted() -> None:
    jobs = [RunRecord(Path(f"/{seed}"), "waiting", {}, [f"seed={seed}"]) for seed in range(2000)]
    lines = shown(jobs).splitlines()
    assert lines[0] == "2,000 runs: 2,000 waiting"
    assert (lines[3], lines[-1], len(lines)) == ("  seed=0", "  and 1,980 more", 24)


# --------------------------------------------------------------------------------------------------------------- grades


def test_a_grade(finished: list[RunRecord]) -> None:
    protocol = ProtocolConfig("last", "fp32", [])
    grade = Grade(
        recipe="mine",
        expected=ExpectedConfig(mean=92.0, spread=0.16, n=5, source="a paper, table 3", protocol=protocol),
        n=3,
        mean=91.0,
        std=1.0,
        interval=(-3.5, 1.5),
        verdict="within",
        differences=["epochs: 2, 200 in the recipe", "precision: bf16, fp32 in the source"],
    )
    groups = [replace(group, grade=grade) if group.n == 3 else group for group in gather(finished)]
    part = table(Report(finished, groups, "accuracy"), width=80).split("\n\n")[-1]
    assert part == (
        "mine: within. Test accuracy 91.00 ± 1.00 % (n = 3), expected 92.00 ± 0.16 % (n =\n"
        "    5); the difference lies between -3.50 and +1.50 points with 95 % confidence\n"
        "  row: optim.lr=0.1\n"
        "  expected by: a paper, table 3\n"
        "  not alike:\n"
        "  - epochs: 2, 200 in the recipe\n"
        "  - precision: bf16, fp32 in the source"
    )
    groups = [replace(group, grade=replace(grade, differences=[])) if group.grade else group for group in groups]
    assert table(Report(finished, groups, "accuracy"), width=80).endswith("\n  expected by: a paper, table 3")


# ---------------------------------------------------------------------------------------------------------------- words


def test_short_names_tell_keys_apart() -> None:
    assert short(["optim.lr", "model.name", "dataset.name", "seed"]) == ["lr", "model.name", "dataset.name", "seed"]


def test_paths_as_they_are_typed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert near(tmp_path / "outputs/a") == "outputs/a"
    assert near(Path("/elsewhere/a")) == "/elsewhere/a"


def test_a_strangers_text_is_written_out(known: Known) -> None:
    evil = "\x1b[2Jx\ny"
    records = [
        known(config={"init_from": evil}, overrides=[f"init_from={evil}"]),
        known(config={"init_from": evil + "2"}),
        replace(unfinished(known, "failed", error=evil, progress=Progress()), directory=Path(f"/{evil}")),
        RunRecord(Path("/w"), "waiting", {}, [f"init_from={evil}"]),
    ]
    for width in (20, 80, 300):
        text = shown(records, width=width)
        assert "\x1b" not in text and "x\ny" not in text and r"\x1b[2J" in text
