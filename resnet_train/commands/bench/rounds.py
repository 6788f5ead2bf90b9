"""Loops measured in alternating rounds, each in a process of its own that sleeps while it is another's turn.

What one loop sets up for itself (threads, memory) is not there for the others.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import sys
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from resnet_train.commands.bench.baselines import baseline
from resnet_train.commands.bench.roofline import copy_bandwidth, matmul_ceiling, roofline
from resnet_train.commands.bench.trainer import Trainer, wait
from resnet_train.config.run import Config
from resnet_train.data.dataset import load_dataset
from resnet_train.errors import RunError
from resnet_train.models.build import build_model
from resnet_train.models.count import layers
from resnet_train.runs import environment
from resnet_train.runs.console import duration
from resnet_train.training.plan import build_device, build_plan, build_precision

# Steps at the start of each round that do not count: they start workers and fill caches, use up the batches that a
# loader prepared while it was another loop's turn, and let the other's workers come to rest.
UNMEASURED = 5


@dataclass
class Result:
    """Images per second of one loop, a number for each round."""

    rounds: list[float]

    @property
    def median(self) -> float:
        """The middle round."""
        return statistics.median(self.rounds)


class LoopProcess:
    """One loop, or the measurement of the machine, in a process of its own that sleeps between its turns."""

    def __init__(self, config: Config, loop: str, seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_answer, args=(config, loop, seconds, multiprocessing.get_start_method(), theirs)
        )
        self._process.start()
        theirs.close()
        self.threads: int
        self.num_train: int  # images of an epoch
        self.threads, self.num_train = self._receive()

    def __enter__(self) -> LoopProcess:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()

    def round(self) -> Any:
        """Let it run for a while; images per second, or the machine's figures."""
        return self._ask("round")

    def report(self) -> dict[str, Any]:
        """What else there is to know about it, measured now."""
        report: dict[str, Any] = self._ask("report")
        return report

    def _ask(self, question: str) -> Any:
        self._pipe.send(question)
        return self._receive()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError as error:
            self._process.join()
            raise RunError(f"a loop ended early, with exit code {self._process.exitcode}; see above") from error


def measure(
    config: Config, variants: dict[str, Config], *, loops: tuple[str, ...], rounds: int, seconds: float
) -> dict[str, Any]:
    """Run the loops in alternating rounds of some ``seconds`` each, after one warm-up round of each."""
    tell(f"starting {len(loops) + len(variants)} loops and a measurement of the machine")
    load_dataset(config.dataset, seed=config.seed)  # once, before the processes: it may have to be unpacked
    everything = {loop: (config, loop) for loop in loops} | {
        text: (one, "resnet-train") for text, one in variants.items()
    }
    results = {name: Result([]) for name in everything}
    machine: dict[str, list[float]] = {"fp32": [], "half": [], "copy": []}
    with contextlib.ExitStack() as stack:
        processes = {
            name: stack.enter_context(LoopProcess(one, loop, seconds)) for name, (one, loop) in everything.items()
        }
        measuring = stack.enter_context(LoopProcess(config, "machine", seconds))
        begun = time.perf_counter()
        for round_number in range(rounds + 1):
            for name, process in processes.items():
                results[name].rounds.append(process.round())
            for name, figure in measuring.round().items():
                machine[name].append(figure)
            speeds = ", ".join(f"{name} {result.rounds[-1]:,.0f}" for name, result in results.items())
            left = (time.perf_counter() - begun) / (round_number + 1) * (rounds - round_number)
            number = f"round {round_number} of {rounds}" if round_number else "warm-up"
            tell(f"{number}: {speeds} images/s, {duration(left)} left")
        for result in results.values():
            del result.rounds[0]  # the warm-up
        tell("looking at the phases, evaluation and checkpoints of resnet-train")
        return _report(config, everything, results, machine, processes) | {"seconds_per_round": seconds}


def tell(text: str) -> None:
    """Say on standard error how far it is: the figures go to standard output."""
    print(text, file=sys.stderr, flush=True)


def _report(
    config: Config,
    loops: dict[str, tuple[Config, str]],
    results: dict[str, Result],
    machine: dict[str, list[float]],
    processes: dict[str, LoopProcess],
) -> dict[str, Any]:
    plan = build_plan(config)
    dataset = load_dataset(config.dataset, seed=config.seed)
    model = build_model(
        config.model, num_classes=len(dataset.classes), seed=config.seed, channels=config.dataset.channels
    )
    ceiling = {name: statistics.median(values) for name, values in machine.items()}
    found = layers(model, dataset.image_size)
    is_half = plan.precision in ("bf16", "fp16")
    roof = roofline(
        found,
        flops=ceiling["half" if is_half else "fp32"],
        bandwidth=ceiling["copy"],
        bytes_per_value=2 if is_half else 4,
    )
    return {
        "model": config.model.name,
        "batch_size": config.batch_size,
        "multiply_adds": sum(layer.multiply_adds for layer in found),
        "num_train": {name: process.num_train for name, process in processes.items()},
        "device": str(plan.device),
        "hardware": environment.hardware(plan.device),
        "precision": plan.precision,
        "choices": dict(plan.lines()),
        "versions": environment.versions(),
        "git_commit": environment.git_commit(),
        "torch_threads": max(process.threads for process in processes.values()),
        "loops": {name: {**asdict(result), "median": result.median} for name, result in results.items()},
        "machine": {"rounds": machine, "median": ceiling},
        "roofline": {**asdict(roof), "images_per_second": roof.images_per_second},
        "details": {name: processes[name].report() for name, (_, loop) in loops.items() if loop == "resnet-train"},
    }


def _answer(config: Config, loop: str, seconds: float, start_method: str, pipe: Connection) -> None:
    """The process of a `LoopProcess`: an answer for each message, until the other end closes."""
    multiprocessing.set_start_method(start_method, force=True)  # for the workers of a DataLoader: as in any program
    device = build_device(config.device)
    if loop == "machine":
        _answer_machine(device, pipe)
        return
    trainer, num_train = None, 0
    if loop == "resnet-train":
        trainer = Trainer(config)
        steps, num_train = trainer.loop(), trainer.num_train
    else:
        dataset = load_dataset(config.dataset, seed=config.seed)
        tuned, num_train = loop == "tuned", len(dataset.train)
        precision, _ = build_precision(config.precision, device) if tuned else ("fp32", "")
        steps = baseline(config, dataset, device, precision=precision, tuned=tuned)
    pipe.send((torch.get_num_threads(), num_train))
    with contextlib.suppress(EOFError):
        while True:
            if pipe.recv() == "round":
                pipe.send(_round(steps, seconds, config.batch_size, device))
            else:
                pipe.send({} if trainer is None else trainer.report())
    steps.close()


def _round(steps: Generator[None, None, None], seconds: float, batch_size: int, device: torch.device) -> float:
    for _ in range(UNMEASURED):
        next(steps)
    wait(device)
    begun = time.perf_counter()
    made = 0
    while time.perf_counter() - begun < seconds:
        next(steps)
        made += 1
    wait(device)
    return made * batch_size / (time.perf_counter() - begun)


def _answer_machine(device: torch.device, pipe: Connection) -> None:
    pipe.send((torch.get_num_threads(), 0))
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    with contextlib.suppress(EOFError):
        while pipe.recv():
            pipe.send(
                {
                    "fp32": matmul_ceiling(device, torch.float32),
                    "half": matmul_ceiling(device, half),
                    "copy": copy_bandwidth(device),
                }
            )
