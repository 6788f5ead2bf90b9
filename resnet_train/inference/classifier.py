"""A trained network to ask: ``resnet_train.load("outputs/...").predict(["cat.png"])``.

Whatever the network lies in (a run, a checkpoint, a file of ``resnet-export``), it takes bytes ``(N, S, S, C)`` and
gives logits ``(N, classes)``: that is the seam, `Network`.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from resnet_train.data.augment import normalise
from resnet_train.data.decode import decode, squared, undecodable
from resnet_train.errors import ConfigError, RunError
from resnet_train.inference.spec import Spec
from resnet_train.inference.stream import Source, answers, pace
from resnet_train.models.count import layers
from resnet_train.training.memory import eval_batch_size
from resnet_train.training.plan import Plan
from resnet_train.training.step import at_least_float, autocast

if TYPE_CHECKING:
    from PIL import Image

    Picture = str | Path | bytes | NDArray[np.uint8] | Image.Image


class Network(Protocol):
    """A network by whatever runtime."""

    def __call__(self, images: Tensor) -> Tensor:
        """Logits or log-probabilities float32 ``(N, classes)`` on the CPU, of uint8 images ``(N, S, S, C)``."""
        ...


class TorchNetwork:
    """A network in PyTorch, on any device, in any precision."""

    def __init__(self, model: nn.Module, spec: Spec, plan: Plan) -> None:
        self.model, self.plan = model, plan
        self.layout = torch.channels_last if plan.channels_last else torch.contiguous_format
        self.device = plan.device
        self.mean, self.std = (torch.tensor(values, device=plan.device) for values in (spec.mean, spec.std))

    @torch.inference_mode()  # of the thread that calls
    def __call__(self, images: Tensor) -> Tensor:
        """See `Network`."""
        normalised = normalise(images.to(self.plan.device), self.mean, self.std).contiguous(memory_format=self.layout)
        with autocast(self.plan.device, self.plan.precision):
            logits = self.model(normalised)
        return at_least_float(logits).cpu()


@dataclass(frozen=True)
class Prediction:
    """The answer for one image."""

    probabilities: tuple[float, ...]  # of the classes, in their order
    classes: tuple[str, ...] = field(repr=False)

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.classes[self.index]

    @property
    def index(self) -> int:
        """Number of the likeliest class; the first of equal ones."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)

    @property
    def confidence(self) -> float:
        """Probability of the likeliest class."""
        return max(self.probabilities)

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The likeliest classes with their probabilities, the first ``count``."""
        order = sorted(range(len(self.classes)), key=lambda index: -self.probabilities[index])
        return [(self.classes[index], self.probabilities[index]) for index in order[:count]]

    def __str__(self) -> str:
        return f"{self.label} {100 * self.confidence:.2f} %"


class Classifier:
    """A trained network, with its classes and the way in which images are prepared for it."""

    def __init__(self, network: Network, spec: Spec, *, batch_size: int, origin: str, runs_on: str) -> None:
        """``origin`` and ``runs_on`` say in words where the weights come from, and what computes."""
        self.network, self.spec, self.batch_size = network, spec, batch_size
        self.origin, self.runs_on = origin, runs_on

    def __repr__(self) -> str:
        return f"<Classifier {self.origin}: {len(self.classes)} classes, {self.image_size}x{self.image_size} pixels>"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the outputs."""
        return self.spec.classes

    @property
    def image_size(self) -> int:
        """Height and width in pixels that images are brought to."""
        return self.spec.image_size

    def logits(self, images: Tensor) -> Tensor:
        """Logits or log-probabilities float32 ``(N, classes)`` of uint8 images ``(N, S, S, C)``, a batch at a time."""
        return torch.cat([self.network(batch) for batch in images.split(self.batch_size)])

    def answer(self, images: Tensor) -> list[Prediction]:
        """Predictions for uint8 images ``(N, S, S, C)``; raises `RunError` for a network whose training diverged."""
        probabilities = self.logits(images).double().softmax(1)
        if not probabilities.isfinite().all():
            raise RunError(f"{self.origin}: expected probabilities from the network, got NaN: its training diverged")
        return [Prediction(tuple(row), self.classes) for row in probabilities.tolist()]

    def predict(self, images: Iterable[Picture]) -> list[Prediction]:
        """Predictions for images of any size: paths, bytes of files, Pillow images, arrays ``(H, W)`` or ``(H, W, 3)``.

        Raises `ConfigError` that names the first one which cannot be read.
        """
        found: list[Prediction] = []
        for answer in self.stream(images):
            if isinstance(answer, ConfigError):
                raise answer
            found.append(answer)
        return found

    def stream(self, images: Iterable[Picture]) -> Generator[Prediction | ConfigError, None, None]:
        """A prediction for each of any number of images, in their order, or the error of one that cannot be read.

        Images are taken as they are needed, and files are read on threads: a generator of a million paths takes no
        more memory than one of a hundred.
        """
        if isinstance(images, str | Path | bytes):
            raise ConfigError(f"predict: expected a list of images, got one {type(images).__name__}; put it into [...]")
        # A network of another runtime says nothing of its device: it has threads of its own.
        device: torch.device | None = getattr(self.network, "device", None)
        return answers(
            (self._source(number, image) for number, image in enumerate(images)),
            read=lambda path: decode(Path(path), self.image_size, channels=self.spec.channels),
            compute=lambda pixels: self.answer(stacked(pixels)),
            pace=pace(self.batch_size, device),
        )

    def _source(self, number: int, image: Picture) -> Source:
        """A path for the threads; what is in memory as pixels at once, so that no large image waits for its turn."""
        if isinstance(image, str | Path):
            return image
        try:
            return prepared(image, self.image_size, channels=self.spec.channels, number=number)
        except ConfigError as error:
            return error


def prepared(
    image: bytes | NDArray[np.uint8] | Image.Image, image_size: int, *, channels: int, number: int
) -> NDArray[np.uint8]:
    """An image in memory as the network was trained on: ``(image_size, image_size, channels)``.

    Raises `ConfigError` that names it by its ``number``.
    """
    from PIL import Image

    try:
        if isinstance(image, bytes):
            with Image.open(io.BytesIO(image)) as opened:
                return squared(opened, image_size, channels=channels)
        held = image if isinstance(image, Image.Image) else Image.fromarray(image)
        return squared(held, image_size, channels=channels)
    except Exception as error:  # decoders of corrupt files raise nearly anything
        kinds = "a path, the bytes of an image file, a Pillow image or an array of uint8"
        got = f"{type(image).__name__}: {undecodable(error)}"
        raise ConfigError(f"image {number}: expected {kinds}, got {got}") from error


def stacked(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Images ``(S, S, C)`` as one tensor ``(N, S, S, C)``."""
    return torch.from_numpy(np.stack(images))


def torch_classifier(model: nn.Module, spec: Spec, plan: Plan, *, origin: str) -> Classifier:
    """A network of PyTorch as a classifier."""
    return Classifier(
        TorchNetwork(model, spec, plan),
        spec,
        batch_size=eval_batch_size(layers(model, spec.image_size), plan.device),
        origin=origin,
        runs_on=f"{plan.device} in {plan.precision}, {plan.backend.name} kernels",
    )
