"""How long a user waits: from the start of ``resnet-train`` to the end of its first step."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from resnet_train.cli.overrides import quoted
from resnet_train.errors import RunError

TIMEOUT_SECONDS = 600


def first_step(overrides: Sequence[str]) -> dict[str, float]:
    """Seconds until the first row of metrics is there: ``cold`` with empty caches, ``warm`` with full ones.

    The run is ended then. What is compiled is kept in a folder of its own. Raises `RunError` where no step is made.
    """
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        caches = {"XDG_CACHE_HOME": f"{folder}/cache", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
        for name in ("cold", "warm"):
            directory = Path(folder, name)
            seconds[name] = _time_to_first_row(overrides, directory, caches)
            shutil.rmtree(directory, ignore_errors=True)
    return seconds


def _time_to_first_row(overrides: Sequence[str], directory: Path, caches: dict[str, str]) -> float:
    table = directory / "metrics.csv"
    arguments = [*overrides, "log_every=1", f"hydra.run.dir={quoted(directory)}"]
    command = [sys.executable, "-m", "resnet_train.train", *arguments]
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **caches})
        try:
            while not table.exists() or table.read_text(encoding="ascii").count("\n") < 2:
                if process.poll() is not None or time.perf_counter() - begun > TIMEOUT_SECONDS:
                    output.seek(0)
                    said = output.read().strip().splitlines() or ["nothing"]
                    raise RunError(f"resnet-train made no first step; it said: {said[-1]}")
                time.sleep(0.005)
            return time.perf_counter() - begun
        finally:
            process.kill()
            process.wait()
