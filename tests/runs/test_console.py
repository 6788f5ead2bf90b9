"""What a person sees while a run trains."""

from __future__ import annotations

import logging

import pytest

from resnet_train.runs.console import count, duration, header, progress_bar


def test_numbers_as_people_read_them() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.6, 3725.2, 90_061)] == [
        *("0:00:00", "0:01:00", "1:02:05"),
        "1 day, 1:01:01",
    ]
    assert (count(7), count(269_722)) == ("7", "269,722")


def test_a_header_is_one_aligned_line_per_property(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        header([("model", "resnet20"), ("directory", "outputs/run")])
    assert caplog.messages == ["model      resnet20", "directory  outputs/run"]


def test_there_is_no_bar_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(done=3, total=9) as progress:
        progress.advance()
        progress.show(1.5, 0.25, lr=0.1, images_per_second=1000.0)
        assert not progress.visible
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (120, "loss 1.234, 56.7 %, lr 0.0925, 12,345 images/s"),
        (80, "loss 1.234, 56.7 %, lr 0.0925, 12,345 images/s"),
        (70, "loss 1.234, lr 0.0925, 12,345 images/s"),
        (60, "loss 1.234, 12,345 images/s"),
        (40, "12,345 images/s"),
    ],
)
def test_a_narrow_terminal_shows_what_matters_most(columns: int, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with progress_bar(done=3, total=300) as progress:
        progress.show(1.234, 0.567, lr=0.0925, images_per_second=12345.0)
        assert progress._bar.postfix == shown
