"""``resnet-bench``: images per second of this project's training loop and of the loops that it replaces, in one run.

Three loops train the same network on the same images, in alternating rounds, so that a machine whose speed drifts
favours none of them:

- ``tutorial``: what people copy: torchvision transforms on PIL images, a DataLoader with a worker for each core, fp32,
  NCHW, the loss and the accuracy read at every step.
- ``tuned``: what a careful user makes of it: the same loader with pinned memory and workers that stay, mixed precision,
  channels_last, nothing read from the device in between.
- ``ours``: `TrainData.batch` and `train_step`, as the training loop calls them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from resnet_train import cli
from resnet_train.config import CifarConfig, Config, register_schema
from resnet_train.errors import ConfigError, RunError
from resnet_train.explain import explain, is_config_error
from resnet_train.files import check_available

SIDES = ("tutorial", "tuned", "ours")
# Updates at the start of each round that do not count: they start workers and fill caches, use up the batches that a
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


def main() -> None:
    """``resnet-bench``, ``python -m resnet_train.bench``."""
    parser = argparse.ArgumentParser(
        prog="resnet-bench",
        description="Compare training loops on this machine. Overrides are those of resnet-train: model=resnet18 ...",
    )
    parser.add_argument("overrides", nargs="*", help="e.g. model=resnet18 batch_size=128")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each loop (default 5)")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a round of one loop (default 8)")
    parser.add_argument("--sides", default=",".join(SIDES), help=f"loops to compare (default {','.join(SIDES)})")
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE")
    arguments = parser.parse_intermixed_args()
    register_schema()
    try:
        sides = tuple(arguments.sides.split(","))
        if not set(sides) <= set(SIDES) or arguments.rounds < 1 or arguments.seconds <= 0:
            raise ConfigError(f"expected --sides among {','.join(SIDES)}, --rounds and --seconds above 0")
        config, note = benchmark_config(arguments.overrides)
        report = measure(config, sides=sides, rounds=arguments.rounds, seconds=arguments.seconds)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"resnet-bench: {explain(error)}", file=sys.stderr)
        sys.exit(cli.EXIT_CONFIG if is_config_error(error) else cli.EXIT_FAILED)
    report["images"] = note
    print(table(report))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(report, file, indent=2)
            file.write("\n")


def benchmark_config(overrides: list[str]) -> tuple[Config, str]:
    """Compose as resnet-train does; without CIFAR-10 at hand, made-up images of the same shape take its place."""
    config, _ = cli.compose_config(cli.parse(overrides), overrides)
    if isinstance(config.dataset, CifarConfig):
        try:
            config.dataset.download = False
            check_available(config.dataset)
        except ConfigError:
            shape = ["dataset=synthetic", "dataset.num_train=50000", "dataset.num_test=10", "dataset.image_size=32"]
            classes = 10 if config.dataset.name == "cifar10" else 100
            kept = [word for word in overrides if not cli.key_of(word).startswith("dataset")]
            config, _ = cli.compose_config(
                cli.parse(kept), [*kept, *shape, "dataset.augment.flip=true", f"dataset.num_classes={classes}"]
            )
            return config, "made-up images of the same shape, since CIFAR is not at hand"
    return config, config.dataset.name


def measure(config: Config, *, sides: tuple[str, ...], rounds: int, seconds: float) -> dict[str, Any]:
    """Run the loops in alternating rounds of some ``seconds`` each, after one warm-up round of each.

    Each loop has a process of its own, which sleeps while it is another's turn: what one sets up for itself (threads,
    memory) is not there for the others.
    """
    from resnet_train import build, environment
    from resnet_train.data import load
    from resnet_train.resnet import multiply_adds

    device = build.build_device(config.device)
    precision = build.build_precision(config.precision, device)
    kernels = build.build_kernels(config.kernels, config.model, device)
    dataset = load(config.dataset, seed=config.seed)  # once, before the processes: it may have to be unpacked
    model = build.build_model(config.model, num_classes=len(dataset.classes), seed=config.seed)
    results = {side: Result([]) for side in sides}
    with contextlib.ExitStack() as stack:
        contestants = {side: stack.enter_context(Contestant(config, side, seconds)) for side in sides}
        for round_number in range(rounds + 1):
            for side, contestant in contestants.items():
                images_per_second = contestant.round()
                if round_number:
                    results[side].rounds.append(images_per_second)
        threads = {contestant.threads for contestant in contestants.values()}
    return {
        "model": config.model.name,
        "batch_size": config.batch_size,
        "multiply_adds": multiply_adds(model, dataset.image_size),
        "num_train": len(dataset.train),
        "device": str(device),
        "hardware": environment.hardware(device),
        "precision": precision,
        "kernels": f"{kernels.name}: {kernels.reason}",
        "versions": environment.versions(),
        "git_commit": environment.git_commit(),
        "seconds_a_round": seconds,
        "torch_threads": max(threads),
        "sides": {side: {**asdict(result), "median": result.median} for side, result in results.items()},
    }


class Contestant:
    """One loop in a process of its own."""

    def __init__(self, config: Config, side: str, seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_contestant, args=(config, side, seconds, multiprocessing.get_start_method(), theirs)
        )
        self._process.start()
        theirs.close()
        self.threads: int = self._receive()

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()

    def round(self) -> float:
        """Let it run for a while; images per second."""
        self._pipe.send(True)
        return float(self._receive())

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError as error:
            self._process.join()
            raise RunError(f"a loop ended early, with exit code {self._process.exitcode}; see above") from error


def _contestant(config: Config, side: str, seconds: float, start_method: str, pipe: Connection) -> None:
    """The process of a `Contestant`: a round for each message, until the other end closes."""
    import torch

    from resnet_train import build
    from resnet_train.data import load

    multiprocessing.set_start_method(start_method, force=True)  # for the workers of a DataLoader: as in any program
    device = build.build_device(config.device)
    precision = build.build_precision(config.precision, device)
    dataset = load(config.dataset, seed=config.seed)
    loop = (
        _ours(config, dataset, device, precision)
        if side == "ours"
        else _reference(
            config, dataset, device, precision="fp32" if side == "tutorial" else precision, tuned=side == "tuned"
        )
    )
    pipe.send(torch.get_num_threads())
    with contextlib.suppress(EOFError):
        while pipe.recv():
            for _ in range(UNMEASURED):
                next(loop)
            _wait(device)
            begun = time.perf_counter()
            updates = 0
            while time.perf_counter() - begun < seconds:
                next(loop)
                updates += 1
            _wait(device)
            pipe.send(updates * config.batch_size / (time.perf_counter() - begun))
    loop.close()


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ours(config: Config, dataset: Any, device: Any, precision: str) -> Generator[None, None, None]:
    """The product's own batches and step, one update for each item."""
    from resnet_train import build
    from resnet_train.engine import train_step
    from resnet_train.loop import at_rest

    kernels = build.build_kernels(config.kernels, config.model, device)
    data = build.build_train_data(config, dataset, device, kernels)
    state = build.build_state(
        config, num_classes=len(dataset.classes), device=device, precision=precision, kernels=kernels
    )
    options = build.build_step_options(config, precision)
    with at_rest():
        while True:
            images, labels = data.batch(state.step)
            train_step(state, images, labels, lr=config.optim.lr, options=options)
            yield


def _reference(
    config: Config, dataset: Any, device: Any, *, precision: str, tuned: bool
) -> Generator[None, None, None]:
    """The loop of tutorials, as it is or tuned, one update for each item."""
    import torch
    from PIL import Image
    from torch.nn import functional as F
    from torch.utils.data import DataLoader
    from torch.utils.data import Dataset as TorchDataset
    from torchvision import transforms

    from resnet_train import build

    pixels, labels = dataset.train.images.numpy(), dataset.train.labels.tolist()
    augment = config.dataset.augment
    transform = transforms.Compose(
        [
            transforms.RandomCrop(dataset.image_size, padding=augment.crop_padding),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(config.dataset.mean, config.dataset.std),
        ]
    )

    class Pictures(TorchDataset[tuple[torch.Tensor, int]]):
        """PIL image, transform, label: what torchvision.datasets.CIFAR10 does."""

        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return transform(Image.fromarray(pixels[index])), labels[index]

    loader = DataLoader(
        Pictures(),
        batch_size=config.batch_size,
        shuffle=True,
        num_workers=os.cpu_count() or 1,
        drop_last=True,
        pin_memory=tuned and device.type == "cuda",
        persistent_workers=tuned,
    )
    model = build.build_model(config.model, num_classes=len(dataset.classes), seed=config.seed)
    model = model.to(device, memory_format=torch.channels_last if tuned else torch.contiguous_format)  # type: ignore[call-overload]
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=config.optim.lr, momentum=0.9, weight_decay=5e-4)
    scaler = torch.amp.GradScaler("cuda", enabled=tuned and precision == "fp16")
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    running_loss, correct, total = 0.0, 0, 0
    while True:
        for images, targets in loader:
            images, targets = images.to(device, non_blocking=tuned), targets.to(device, non_blocking=tuned)
            if tuned:
                images = images.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype=dtype, enabled=tuned and precision != "fp32"):
                outputs = model(images)
                loss = F.cross_entropy(outputs, targets)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if not tuned:
                running_loss += loss.item()
                correct += (outputs.argmax(1) == targets).sum().item()
                total += len(targets)
            yield


def table(report: dict[str, Any]) -> str:
    """The figures as a person reads them."""
    lines = [
        f"{report['model']}, batch {report['batch_size']}, {report['multiply_adds'] / 1e6:,.1f} M multiply-adds an "
        f"image, {report['images']}",
        f"{report['device']} ({report['hardware']}), ours and tuned in {report['precision']}, tutorial in fp32",
        f"ours with kernels {report['kernels']}",
        "",
        f"{'':10}{'images/s':>10}{'lowest':>10}{'highest':>10}{'epoch s':>10}",
    ]
    for side, result in report["sides"].items():
        rounds, median = result["rounds"], result["median"]
        lines.append(
            f"{side:10}{median:10,.0f}{min(rounds):10,.0f}{max(rounds):10,.0f}{report['num_train'] / median:10.1f}"
        )
    if "ours" in report["sides"]:
        ours = report["sides"]["ours"]["rounds"]
        for side in ("tutorial", "tuned"):
            if side in report["sides"]:
                ratios = [a / b for a, b in zip(ours, report["sides"][side]["rounds"], strict=True)]
                lines.append(
                    f"ours / {side}: {statistics.median(ratios):.2f} (lowest {min(ratios):.2f}, "
                    f"highest {max(ratios):.2f}, of {len(ratios)} rounds side by side)"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
