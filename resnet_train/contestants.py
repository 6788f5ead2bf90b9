"""The training loops that ``resnet-bench`` compares, each in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Generator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from resnet_train import build, environment
from resnet_train.checkpoint import FORMAT, Checkpoints
from resnet_train.config.run import Config
from resnet_train.data.dataset import Dataset, load_dataset
from resnet_train.engine import evaluate, set_products, train_step
from resnet_train.errors import RunError
from resnet_train.limits import copy_bandwidth, matmul_ceiling
from resnet_train.loop import at_rest
from resnet_train.seeding import set_deterministic

# Updates at the start of each round that do not count: they start workers and fill caches, use up the batches that a
# loader prepared while it was another loop's turn, and let the other's workers come to rest.
UNMEASURED = 5
LOOKED_AT = 10  # updates whose phases are timed


class Contestant:
    """One loop, or the measurement of the machine's limits, in a process of its own that sleeps between its turns."""

    def __init__(self, config: Config, side: str, seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_contestant, args=(config, side, seconds, multiprocessing.get_start_method(), theirs)
        )
        self._process.start()
        theirs.close()
        self.threads: int
        self.num_train: int  # images of an epoch
        self.threads, self.num_train = self._receive()

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()

    def round(self) -> Any:
        """Let it run for a while; images per second, or the limits."""
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


def _contestant(config: Config, side: str, seconds: float, start_method: str, pipe: Connection) -> None:
    """The process of a `Contestant`: an answer for each message, until the other end closes."""
    multiprocessing.set_start_method(start_method, force=True)  # for the workers of a DataLoader: as in any program
    device = build.build_device(config.device)
    if side == "limits":
        _answer_limits(device, pipe)
        return
    dataset = load_dataset(config.dataset, seed=config.seed)
    ours = None
    if side == "ours":
        ours = Ours(config, dataset)
        loop = ours.loop()
    else:
        tuned = side == "tuned"
        precision, _ = build.build_precision(config.precision, device) if tuned else ("fp32", "")
        loop = reference(config, dataset, device, precision=precision, tuned=tuned)
    pipe.send((torch.get_num_threads(), len(dataset.train)))
    with contextlib.suppress(EOFError):
        while True:
            if pipe.recv() == "round":
                pipe.send(_round(loop, seconds, config.batch_size, device))
            else:
                pipe.send({} if ours is None else ours.report())
    loop.close()


def _round(loop: Generator[None, None, None], seconds: float, batch_size: int, device: torch.device) -> float:
    for _ in range(UNMEASURED):
        next(loop)
    wait(device)
    begun = time.perf_counter()
    updates = 0
    while time.perf_counter() - begun < seconds:
        next(loop)
        updates += 1
    wait(device)
    return updates * batch_size / (time.perf_counter() - begun)


def _answer_limits(device: torch.device, pipe: Connection) -> None:
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


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Ours:
    """This project's batches and step, built and called as the training loop does."""

    def __init__(self, config: Config, dataset: Dataset) -> None:
        self.plan = plan = build.build_plan(config)
        set_deterministic(config.deterministic)
        set_products(plan.precision)
        self._config, self._device = config, plan.device
        layout = {"channels_last": plan.channels_last}
        self._data = build.build_train_data(config, dataset, plan.device, plan.kernels, **layout)
        self._test = build.build_eval_data(config.dataset, dataset.test, plan.device, **layout)
        self._state = build.build_state(
            config,
            num_classes=len(dataset.classes),
            device=plan.device,
            precision=plan.precision,
            kernels=plan.kernels,
            **layout,
        )
        self._options = build.build_step_options(config, plan.precision)
        self._forward = build.build_forward(self._state, plan)
        self._update = build.build_update(self._state, plan, self._options, self._forward)

    def update(self) -> None:
        """One update."""
        images, labels = self._data.batch(self._state.step)
        self._update(images, labels, lr=self._config.optim.lr)

    def loop(self) -> Generator[None, None, None]:
        """One update for each item."""
        with at_rest():
            while True:
                self.update()
                yield

    def report(self) -> dict[str, Any]:
        """Where the time goes, what evaluation and a checkpoint cost, the most memory in use."""
        return {
            "phases": self.phases(),
            "idle": self.idle(),
            "evaluation": self.evaluation(),
            "checkpoint": self.checkpoint(),
            "peak_memory_bytes": environment.peak_memory_bytes(self._device),
            "choices": dict(self.plan.lines()),
        }

    def phases(self) -> dict[str, float]:
        """Share of the time in data, forward, backward (with the loss), optimizer and the rest.

        The step is the product's own: its phases end where it calls the network and the optimizer. On a GPU each waits
        for the device, which makes the sum longer than an undisturbed step, and the step is not the one of a CUDA
        graph, which has no inside.
        """
        spent = dict.fromkeys(("data", "forward", "backward", "optimizer", "other"), 0.0)
        since = 0.0

        def mark(phase: str) -> None:
            nonlocal since
            wait(self._device)
            now = time.perf_counter()
            spent[phase] += now - since
            since = now

        def forward(images: Tensor) -> Tensor:
            mark("other")
            logits: Tensor = self._forward(images)
            mark("forward")
            return logits

        optimizer = self._state.optimizer
        handles = [
            optimizer.register_step_pre_hook(lambda *_: mark("backward")),
            optimizer.register_step_post_hook(lambda *_: mark("optimizer")),
        ]
        with at_rest():
            for _ in range(LOOKED_AT):
                wait(self._device)
                since = time.perf_counter()
                images, labels = self._data.batch(self._state.step)
                mark("data")
                train_step(
                    self._state, images, labels, lr=self._config.optim.lr, options=self._options, forward=forward
                )
                mark("other")
        for handle in handles:
            handle.remove()
        total = sum(spent.values())
        return {phase: seconds / total for phase, seconds in spent.items()}

    def idle(self) -> float:
        """Share of the time in which the device had nothing to do: of all cores, or of the GPU between kernels."""
        if self._device.type == "cuda":
            activity = torch.profiler.ProfilerActivity
            with torch.profiler.profile(activities=[activity.CPU, activity.CUDA]) as recorded:
                begun = time.perf_counter()
                self._updates()
                seconds = time.perf_counter() - begun
            busy: float = sum(event.self_device_time_total for event in recorded.key_averages()) / 1e6
            return max(0.0, 1 - busy / seconds)
        begun, used = time.perf_counter(), time.process_time()
        self._updates()
        seconds = time.perf_counter() - begun
        return max(0.0, 1 - (time.process_time() - used) / seconds / torch.get_num_threads())

    def _updates(self) -> None:
        with at_rest():
            for _ in range(LOOKED_AT):
                self.update()
            wait(self._device)

    def evaluation(self) -> dict[str, float]:
        """Seconds for all test images."""
        begun = time.perf_counter()
        result = evaluate(self._state.eval_model, self._test, precision=self.plan.precision)
        return {"images": result.count, "seconds": time.perf_counter() - begun}

    def checkpoint(self) -> dict[str, float]:
        """Seconds that training stands still for a checkpoint, seconds until it is on disk, and its size."""
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = Checkpoints(Path(folder), keep=1)
            stops, wholes = [], []
            for step in range(3):
                begun = time.perf_counter()
                checkpoints.begin_save({"format": FORMAT, "state": self._state.state_dict()}, step=step)
                stops.append(time.perf_counter() - begun)
                checkpoints.finish()
                wholes.append(time.perf_counter() - begun)
            size = (Path(folder) / "last.pt").stat().st_size
        return {"stops_seconds": sorted(stops)[1], "written_seconds": sorted(wholes)[1], "bytes": size}


class Pictures(TorchDataset[tuple[Tensor, int]]):
    """PIL image, transform, label: what torchvision.datasets.CIFAR10 does."""

    def __init__(self, pixels: Any, labels: list[int], transform: transforms.Compose) -> None:
        self._pixels, self._labels, self._transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One augmented image."""
        return self._transform(Image.fromarray(self._pixels[index])), self._labels[index]


def reference(
    config: Config, dataset: Dataset, device: torch.device, *, precision: str, tuned: bool
) -> Generator[None, None, None]:
    """The loop of tutorials, as it is or tuned, one update for each item."""
    augment = config.dataset.augment
    transform = transforms.Compose(
        [
            transforms.RandomCrop(dataset.image_size, padding=augment.crop_padding),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(config.dataset.mean, config.dataset.std),
        ]
    )
    loader = DataLoader(
        Pictures(dataset.train.images.numpy(), dataset.train.labels.tolist(), transform),
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
