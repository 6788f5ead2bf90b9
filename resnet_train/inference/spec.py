"""What a trained network takes and gives: kept in every exported file, as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from resnet_train.errors import ConfigError

KEY = "resnet-train"  # of the whole, in a file's metadata
FORMAT = 1
RESIZE = "upright, the largest square of the centre, bicubic with averaging"  # `data.decode`


@dataclass(frozen=True)
class Spec:
    """Input, output and origin of a trained network."""

    name: str  # of the run
    model: dict[str, Any]  # the configuration's group
    dataset: str
    classes: tuple[str, ...]  # in the order of the outputs
    image_size: int  # height and width in pixels
    mean: tuple[float, ...]  # per channel, of values in [0, 1]
    std: tuple[float, ...]
    resize: str = RESIZE
    step: int = 0  # completed when the weights were as they are
    accuracy: float | None = None  # in [0, 1], on the test images, as the run's summary has it
    command: str = ""  # that trained it
    weights_sha256: str = ""  # `runs.weights.digest_of`
    raw: bool = False  # of an exported file: normalised float32 (N, C, H, W) in, logits out; else bytes, probabilities

    @property
    def channels(self) -> int:
        """Of the images: 1 (grey) or 3."""
        return len(self.mean)

    def to_metadata(self) -> dict[str, str]:
        """Keys and values for the metadata of a file: all of it as JSON, and what people look for by itself."""
        plain = {"format": FORMAT, **asdict(self)}
        shown = ("name", "dataset", "classes", "mean", "std", "image_size", "resize", "accuracy", "command")
        texts = {key: value if isinstance(value := plain[key], str) else json.dumps(value) for key in shown}
        return {KEY: json.dumps(plain), **texts, "channels": str(self.channels), "weights_sha256": self.weights_sha256}


def from_metadata(metadata: Mapping[str, str], *, path: object) -> Spec:
    """What a file says of itself; raises `ConfigError` where that is nothing, or nothing that this version knows.

    The file may come from a stranger: nothing but the types of the fields is believed.
    """
    if KEY not in metadata:
        raise ConfigError(f"{path}: expected a file that resnet-export wrote, got one without its metadata")
    try:
        plain = json.loads(metadata[KEY])
        if plain.pop("format") != FORMAT:
            raise ConfigError(f"{path}: its metadata are of another version of resnet-train; export it again")
        for key in ("classes", "mean", "std"):
            plain[key] = tuple(plain[key])
        spec = Spec(**plain)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: its metadata are corrupt; export it again") from error
    numbers = (*spec.mean, *spec.std)
    sound = (
        isinstance(spec.model, dict)
        and all(isinstance(text, str) for text in (spec.name, spec.dataset, spec.resize, spec.command, *spec.classes))
        and all(isinstance(number, int | float) for number in numbers)
        and len(spec.mean) == len(spec.std)
        and spec.channels in (1, 3)
        and type(spec.image_size) is int
        and 1 <= spec.image_size <= 4096
        and len(spec.classes) >= 2
        and isinstance(spec.raw, bool)
        and (spec.accuracy is None or isinstance(spec.accuracy, float))
    )
    if not sound:
        raise ConfigError(f"{path}: its metadata are corrupt; export it again")
    return spec
