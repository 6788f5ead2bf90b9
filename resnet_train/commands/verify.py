"""``resnet-verify``: does a run that was killed and resumed end where the undisturbed one ends, on this machine?

It trains some steps in one go, and again with kills (SIGKILL, at moments drawn at random) and resumes, in processes
of their own, and compares what the two left behind: weights, optimizer, moving average, scores, and the losses in
``metrics.csv`` and in the event files, bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnet_train.cli.compose import offline_config
from resnet_train.cli.overrides import key_of, quoted
from resnet_train.cli.program import Parser, end_with
from resnet_train.config.run import Config
from resnet_train.errors import ConfigError, RunError

TIMEOUT_SECONDS = 900.0
PARTS = ("model", "optimizer", "ema", "scaler", "last", "best", "progress", "patience")  # of a checkpoint's state


@dataclass
class Verdict:
    """What became of one disturbed run."""

    kills: list[float]  # seconds from a start to the kill that ended it
    differences: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def main() -> None:
    """``resnet-verify``, ``python -m resnet_train.commands.verify``."""
    parser = Parser(
        prog="resnet-verify",
        description="Train, and train again with a kill and a resume, and compare. Overrides are those of "
        "resnet-train; without CIFAR at hand, synthetic images take its place.",
        epilog="example: resnet-verify model=resnet20 --runs 3 --kills 2",
    )
    parser.add_argument("overrides", nargs="*", help="e.g. model=resnet18 precision=bf16")
    parser.add_argument("--steps", type=int, default=20, help="length of the runs (default 20)")
    parser.add_argument("--runs", type=int, default=1, help="disturbed runs (default 1)")
    parser.add_argument("--kills", type=int, default=1, help="kills of each (default 1)")
    parser.add_argument("--seed", type=int, help="of the moments of the kills (default: another one each time)")
    arguments = parser.parse_intermixed_args()
    end_with("resnet-verify", lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Verify what the command line asks for; 1 where a killed run ended otherwise."""
    if min(arguments.steps, arguments.runs, arguments.kills) < 1:
        raise ConfigError("expected --steps, --runs and --kills above 0")
    config, overrides, note = offline_config(arguments.overrides)
    overrides = reproducible(overrides, device=on_device(config))
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"{config.model.name} on {note}, {arguments.steps} steps; kills drawn with --seed {seed}", flush=True)
    survived = verify(overrides, steps=arguments.steps, runs=arguments.runs, kills=arguments.kills, seed=seed)
    print(f"{survived} of {arguments.runs} killed runs ended bit for bit like the undisturbed one")
    return 0 if survived == arguments.runs else 1


def on_device(config: Config) -> str:
    """The type of the device that a run of this configuration takes."""
    from resnet_train.training.plan import build_device

    return build_device(config.device).type


def reproducible(overrides: Sequence[str], *, device: str) -> list[str]:
    """The overrides, on CUDA with ``deterministic=true`` unless they settle it: the default adds in any order there."""
    if device != "cuda" or "deterministic" in map(key_of, overrides):
        return list(overrides)
    print("deterministic=true: on a GPU undisturbed runs differ from each other without it", flush=True)
    return [*overrides, "deterministic=true"]


def verify(overrides: Sequence[str], *, steps: int, runs: int, kills: int, seed: int) -> int:
    """Print a line for each disturbed run; returns how many ended like the undisturbed one."""
    draws = random.Random(seed)
    survived = 0
    with tempfile.TemporaryDirectory(prefix="resnet-verify-") as folder:
        every = max(divisor for divisor in range(1, max(1, steps // 5) + 1) if steps % divisor == 0)
        overrides = [*overrides, "log_every=1", f"checkpoint.every={every}steps", "checkpoint.keep=1000"]
        straight = Trial(Path(folder, "straight"), overrides, steps)
        seconds = straight.run_until_done()
        content = straight.state()
        print(f"undisturbed: {seconds:.1f} s in {content['precision']} on {content['device']}", flush=True)
        for name, digest in hashes(content["state"]).items():
            print(f"  {name:10} sha256 {digest}", flush=True)
        for number in range(1, runs + 1):
            trial = Trial(Path(folder, f"killed-{number}"), overrides, steps)
            verdict = Verdict([trial.run_and_kill(after=draws.uniform(0, seconds)) for _ in range(kills)])
            trial.run_until_done()
            verdict.differences = compare(straight, trial)
            survived += verdict.same
            moments = ", ".join(f"{moment:.2f} s" for moment in verdict.kills)
            outcome = "the same" if verdict.same else "DIFFERENT: " + "; ".join(verdict.differences)
            print(f"run {number}, killed after {moments}: {outcome}", flush=True)
    return survived


class Trial:
    """One run in a directory of its own, as a process that may be killed and started again."""

    def __init__(self, directory: Path, overrides: Sequence[str], steps: int) -> None:
        self.directory, self.steps = directory, steps
        self._command = [sys.executable, "-m", "resnet_train.train", *overrides, f"hydra.run.dir={quoted(directory)}"]

    def run_until_done(self) -> float:
        """Start, or continue, until the checkpoint of the last step is there; seconds. Raises `RunError`."""
        return self._run(lambda _: self._last().exists(), TIMEOUT_SECONDS)

    def run_and_kill(self, *, after: float) -> float:
        """Start, or continue, and kill after so many seconds; the seconds it had."""
        return self._run(lambda seconds: seconds >= after or self._last().exists(), TIMEOUT_SECONDS)

    def state(self) -> dict[str, Any]:
        """The checkpoint of the last step."""
        from resnet_train.runs.checkpoint import read_checkpoint

        return read_checkpoint(self._last())

    def rows(self) -> list[str]:
        """``metrics.csv`` up to the last step."""
        lines = (self.directory / "metrics.csv").read_text(encoding="ascii").splitlines()
        return [line for line in lines if not line[0].isdigit() or int(line.partition(",")[0]) <= self.steps]

    def scalars(self) -> dict[str, list[tuple[int, float]]]:
        """What TensorBoard shows up to the last step, without the throughput."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of each purge, which is what is wanted
        events = EventAccumulator(str(self.directory), size_guidance={"scalars": 0}).Reload()
        return {
            tag: [(event.step, event.value) for event in events.Scalars(tag) if event.step <= self.steps]
            for tag in events.Tags()["scalars"]
            if not tag.startswith("throughput")
        }

    def _last(self) -> Path:
        return self.directory / "checkpoints" / f"step-{self.steps:08d}.pt"

    def _run(self, is_over: Callable[[float], bool], timeout: float) -> float:
        """Let the process run until it is over; it is killed then, whatever it is doing."""
        begun = time.perf_counter()
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(self._command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
            try:
                while not is_over(time.perf_counter() - begun):
                    if process.poll() is not None and not self._last().exists():
                        output.seek(0)
                        said = output.read().strip().splitlines() or ["nothing"]
                        raise RunError(f"a run ended before its time, with exit code {process.returncode}: {said[-1]}")
                    if time.perf_counter() - begun > timeout:
                        raise RunError(f"a run did not reach step {self.steps} within {timeout:.0f} s")
                    time.sleep(0.002)
                return time.perf_counter() - begun
            finally:
                process.kill()
                process.wait()


def compare(one: Trial, other: Trial) -> list[str]:
    """In what two runs differ; nothing if they are the same."""
    left, right = hashes(one.state()["state"]), hashes(other.state()["state"])
    found = [f"{name} ({left[name]} and {right[name]})" for name in left if left[name] != right[name]]
    rows = zip(one.rows(), other.rows(), strict=False)
    if one.rows() != other.rows():
        first = next((a for a, b in rows if a != b), "their number")
        found.append(f"metrics.csv, first at {first}")
    if one.scalars() != other.scalars():
        found.append("the scalars in the event files")
    return found


def hashes(state: dict[str, Any]) -> dict[str, str]:
    """A short hash of each part of a checkpoint's state."""
    return {name: digest_of(state[name]) for name in PARTS}


def digest_of(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of nested tensors and plain values."""
    import torch

    digest = hashlib.sha256()

    def add(item: Any) -> None:
        match item:
            case torch.Tensor():
                digest.update(f"{item.dtype}{tuple(item.shape)}".encode())
                digest.update(item.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
            case dict():
                for key, inner in item.items():
                    digest.update(f"{key!r}:".encode())
                    add(inner)
            case list() | tuple():
                digest.update(f"[{len(item)}".encode())
                for inner in item:
                    add(inner)
            case _:
                digest.update(repr(item).encode())

    add(value)
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    main()
