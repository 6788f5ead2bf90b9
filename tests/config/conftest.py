"""Configurations from overrides, and what wrong ones are answered."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from resnet_train.config.run import Config
from resnet_train.config.store import register_schema
from resnet_train.errors import ConfigError


@pytest.fixture(autouse=True, scope="module")
def _conf() -> Iterator[None]:
    register_schema()
    with initialize_config_dir(config_dir=str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        yield


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESNET_TRAIN_DATA", raising=False)


def _composed(*overrides: str) -> DictConfig:
    return compose("train", overrides=list(overrides))


_cached = functools.cache(_composed)


def _converted(composed: DictConfig) -> Config:
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    return config


def _with_values(overrides: str) -> DictConfig:
    arguments = re.split(r" (?=[\w.]+=)", overrides)
    choices = [
        argument for argument in arguments if argument.split("=")[0] in ("model", "dataset", "optim", "schedule")
    ]
    values = OmegaConf.from_dotlist([argument for argument in arguments if argument not in choices])
    config = OmegaConf.merge(_cached(*choices), values)
    assert isinstance(config, DictConfig)
    return config


@pytest.fixture(scope="session")
def composed() -> Callable[..., DictConfig]:
    """What Hydra composes from overrides, before it is converted and checked."""
    return _composed


@pytest.fixture(scope="session")
def converted() -> Callable[[DictConfig], Config]:
    """Convert what was composed, which checks it."""
    return _converted


@pytest.fixture(scope="session")
def checked() -> Callable[[str], Config]:
    """A configuration from overrides, in a tenth of the time: each choice of options is composed once, values merged.

    Blanks in front of a ``key=`` separate overrides; other blanks belong to a value.
    """
    return lambda overrides: _converted(_with_values(overrides))


@pytest.fixture(scope="session")
def refusal() -> Callable[[str], str]:
    """The message with which overrides (as for ``checked``) are refused."""

    def message(overrides: str) -> str:
        config = _with_values(overrides)
        with pytest.raises(ConfigError) as error:  # as raised, not wrapped by OmegaConf
            OmegaConf.to_object(config)
        return str(error.value)

    return message
