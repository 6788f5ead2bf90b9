"""What ``scripts/train`` without arguments runs: the recipe ``quick``, on the best images that can be had here.

That is CIFAR-10, from the disk or from its mirrors. Where none of them answers, Fashion-MNIST takes its place if
Debian's package lies there, else synthetic images; this is said before the run and after it. With arguments nothing is
ever replaced.
"""

from __future__ import annotations

import sys
from contextlib import suppress

from resnet_train.cli.compose import load_config
from resnet_train.cli.job import Train, console_log
from resnet_train.cli.main import fail, main
from resnet_train.cli.overrides import PROGRAM
from resnet_train.config.dataset import CifarConfig
from resnet_train.data.archive import obtain
from resnet_train.data.available import check_available
from resnet_train.data.cifar import archive_of
from resnet_train.data.published import source_of
from resnet_train.errors import ConfigError

RECIPE = "experiment=quick"
TIMEOUT_SECONDS = 10.0  # without a byte, for each mirror: a first run should not wait long


def first_run(train: Train) -> int:
    """Run it and return the exit code."""
    try:
        overrides, note = choose()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        return fail(PROGRAM, error)
    if note:
        print(note, flush=True)
    code = main(overrides, train)
    if note:
        print(f"\n{note}")
    return code


def choose() -> tuple[list[str], str]:
    """The overrides of the run, and what to say where it is not on CIFAR-10."""
    dataset = load_config([RECIPE]).dataset
    assert isinstance(dataset, CifarConfig)
    try:
        with console_log():
            obtain(archive_of(dataset), source_of(dataset, timeout_seconds=TIMEOUT_SECONDS))
        return [RECIPE], ""
    except (ConfigError, OSError) as error:
        reason = str(error).partition("; ")[0]
    other, images = ["dataset=synthetic"], "synthetic images"
    with suppress(ConfigError):
        check_available(load_config([RECIPE, "dataset=fashion_mnist", "dataset.download=false"]).dataset)
        other, images = ["dataset=fashion_mnist"], "Fashion-MNIST"
    return [RECIPE, *other], (
        f"NOTE: CIFAR-10 cannot be had here ({reason}), so this run is on {images}; its accuracy says nothing about "
        f"CIFAR-10"
    )
