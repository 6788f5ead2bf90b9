"""The command line, called in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from resnet_train.cli.main import main
from resnet_train.train import run


@pytest.fixture
def answer() -> Callable[..., int]:
    """Call ``resnet-train`` with arguments; returns the exit code."""
    return lambda *arguments: main(arguments, run)
