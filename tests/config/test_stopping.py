"""What ends a run, or a session of it, early."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from resnet_train.config.run import Config
from resnet_train.config.stopping import seconds_of
from resnet_train.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2 h", 7200),
        ("2h", 7200),
        ("1.5 hours", 5400),
        ("90 min", 5400),
        ("1 minute", 60),
        ("45 s", 45),
        ("0.25 seconds", 0.25),
        ("2 d", 172_800),
        ("1 day", 86_400),
        ("1:30:00", 5400),
        ("00:00:07", 7),
        ("100:00:00", 360_000),
        ("1-12:00:00", 129_600),
        (" 2 h ", 7200),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "2", "h", "0 h", "0:00:00", "-1 h", "1:30", "1:60:00", "2 weeks", "1e3 s", "inf h", "2 h 30 min"]
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        seconds_of(text)
    assert str(caught.value) == (
        f"max_time: expected a time such as '2 h', '90 min', '45 s' or '1:30:00', got {text!r}; "
        f"max_time=null sets no limit"
    )


@pytest.mark.slow
def test_hydra_takes_them(compose: Callable[..., Config]) -> None:
    for text in ("2 h", "2h", "1:30:00", "1-12:00:00"):
        assert compose(f"max_time={text}").max_time == text


def test_folders_of_images_may_hold_their_own_validation_split(compose: Callable[..., Config]) -> None:
    config = compose("dataset=imagefolder", "dataset.root=images", "early_stop.patience=3")
    assert config.early_stop.patience == 3
