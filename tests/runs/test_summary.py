"""The result of a run, as a file, as a sentence, and as a line of a sweep's table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from resnet_train.runs.summary import Score, Summary, read_summary

SCORE = Score(loss=0.1, accuracy=0.9123, error=0.0877, correct=9123, count=10_000, step=3910)
SUMMARY = Summary(
    status="finished",
    name="resnet20",
    directory="outputs/run",
    result_split="test",
    result_rule="after the last of 3910 steps",
    result=0.9123,
    objective=0.9123,
    last={"test": SCORE},
    best={"test": replace(SCORE, step=3000)},
    images={"train": 50_000, "test": 10_000},
    steps=3910,
    total_steps=3910,
    train_seconds=99.6,
    versions={"torch": "2.9"},
    command="resnet-train 'name=ü'",
)


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    replace(SUMMARY, status="interrupted").write(tmp_path)
    SUMMARY.write(tmp_path)
    assert read_summary(tmp_path) == SUMMARY
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[]",
        "1",
        "null",
        "{}",
        '{"status": "finished"}',
        '{"last": {"test": 1}, "best": {}}',
        '{"last": [], "best": {}}',
        '{"last": {"test": {"loss": 1}}, "best": {}}',
        '{"last": {}, "best": {}, "unknown": 1}',
        b"\xff\xfe\x00",
    ],
)
def test_none_where_there_is_none_or_it_is_corrupt(tmp_path: Path, text: str | bytes | None) -> None:
    if text is not None:
        (tmp_path / "summary.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert read_summary(tmp_path) is None


def test_every_truncation_is_seen(tmp_path: Path) -> None:
    SUMMARY.write(tmp_path)
    path = tmp_path / "summary.json"
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, 31):
        path.write_bytes(whole[:length])
        assert read_summary(tmp_path) is None, length


@pytest.mark.parametrize(
    ("summary", "sentence"),
    [
        (
            SUMMARY,
            "test accuracy 91.23 % (9,123 of 10,000 images, error 8.77 %), after the last of 3910 steps",
        ),
        (
            replace(SUMMARY, status="interrupted", result=None, steps=120),
            "interrupted after 120 of 3910 steps, without a result",
        ),
        (
            replace(SUMMARY, status="failed", result=None, steps=0, last={}),
            "failed after 0 of 3910 steps, without a result",
        ),
        (
            replace(SUMMARY, result=0.0, last={"test": Score(9.0, 0.0, 1.0, 0, 50, 7)}, result_rule="by the rule"),
            "test accuracy 0.00 % (0 of 50 images, error 100.00 %), by the rule",
        ),
    ],
)
def test_the_result_in_one_line(summary: Summary, sentence: str) -> None:
    assert summary.sentence() == sentence
