"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_train import cli, native
from resnet_train.config.run import Config
from resnet_train.config.store import register_schema

# One thread, here and in the processes that tests start: the networks are small, and threads that wait for each other
# on a busy machine are many times slower. Read when torch is imported, after this file.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A run of seconds: a network of 0.02M parameters on made-up images, exact on every machine.
TINY = (
    "dataset=synthetic",
    "dataset.num_train=200",
    "dataset.num_test=50",
    "dataset.image_size=16",
    "dataset.augment.flip=true",
    "model.depth=8",
    "model.width=0.25",
    "batch_size=32",
    "precision=fp32",
    "device=cpu",
    "log_every=5",
)


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    """The folder that holds cifar-10-batches-py/; tests on real images are skipped without it, but never in CI."""
    root = Path(os.environ.get("RESNET_TRAIN_DATA", "data"))
    if not (root / "cifar-10-batches-py").is_dir():
        message = f"no cifar-10-batches-py/ in {root}; name its folder in RESNET_TRAIN_DATA"
        if os.environ.get("CI") or os.environ.get("RESNET_TRAIN_REQUIRE_DATA"):
            pytest.fail(message)
        pytest.skip(message)
    return root


@pytest.fixture(scope="session")
def compiler() -> str:
    """Path of the C++ compiler; tests of compiled code are skipped without one, but never in CI."""
    try:
        return native.compiler()[0]
    except native.Unavailable as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def compose() -> Callable[..., Config]:
    """Compose a configuration from overrides, as the command line does."""

    def composed(*overrides: str) -> Config:
        register_schema()
        config, _ = cli.compose_config(cli.parse(list(overrides)), list(overrides))
        return config

    return composed


@pytest.fixture(scope="session")
def tiny_overrides() -> tuple[str, ...]:
    """What makes a run one of seconds, for a command line."""
    return TINY


@pytest.fixture(scope="session")
def tiny(compose: Callable[..., Config]) -> Callable[..., Config]:
    """A configuration that trains in seconds; later overrides win."""
    return lambda *overrides: compose(*cli.merge_overrides(TINY, overrides))
