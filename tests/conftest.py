"""Fixtures that several test modules share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from resnet_train.config import Config, register_schema

# One thread, here and in the processes that tests start: the networks are small, and threads that wait for each other
# on a busy machine are many times slower. Read when torch is imported, after this file.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    """The folder that holds cifar-10-batches-py/."""
    return Path(os.environ["RESNET_TRAIN_DATA"])


@pytest.fixture(scope="session")
def compose_small() -> Callable[..., Config]:
    """Composes what conf/ holds, changed into a run of seconds and then by the overrides that it is given."""
    small = (
        "model.depth=8",
        "model.width=0.25",
        "dataset=synthetic",
        "dataset.num_train=120",
        "dataset.num_test=30",
        "dataset.image_size=16",
        "dataset.num_classes=4",
        "batch_size=16",
        "epochs=2",
        "device=cpu",
        "precision=fp32",
    )

    def composed(*overrides: str) -> Config:
        register_schema()
        with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
            config = OmegaConf.to_object(compose("train", overrides=[*small, *overrides]))
        assert isinstance(config, Config)
        return config

    return composed
