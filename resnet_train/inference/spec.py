"""What a trained network takes and gives: kept in every exported file, as text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from resnet_train.cli.overrides import PROGRAM
from resnet_train.errors import ConfigError
from resnet_train.runs.console import shell_quote

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
    raw: bool = False  # of an exported file: normalised float32 (N, C, S, S) in, logits out; else bytes, probabilities

    @property
    def channels(self) -> int:
        """Of the images: 1 (grey) or 3."""
        return len(self.mean)

    @property
    def takes(self) -> str:
        """The input, in words."""
        size, channels, kind = self.image_size, self.channels, "grey" if self.channels == 1 else "RGB"
        if self.raw:
            return f"float32 (N, {channels}, {size}, {size}), {kind} in [0, 1], less mean, divided by std"
        return f"uint8 (N, {size}, {size}, {channels}), {kind}"

    @property
    def gives(self) -> str:
        """The output, in words."""
        return f"float32 (N, {len(self.classes)}), {'logits' if self.raw else 'probabilities'}"

    def to_metadata(self) -> dict[str, str]:
        """Keys and values for the metadata of a file: all of it as JSON, and what people look for by itself."""
        plain = {"format": FORMAT, **asdict(self)}
        shown = ("name", "dataset", "classes", "mean", "std", "image_size", "resize", "accuracy", "command")
        texts = {key: value if isinstance(value := plain[key], str) else json.dumps(value) for key in shown}
        shapes = {"input": self.takes, "output": self.gives}
        return {KEY: json.dumps(plain), **texts, **shapes, "weights_sha256": self.weights_sha256}


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
    texts = (spec.name, spec.dataset, spec.resize, spec.command, spec.weights_sha256, *spec.classes)
    sound = (
        isinstance(spec.model, dict)
        and all(isinstance(text, str) for text in texts)
        and all(type(number) in (int, float) and math.isfinite(number) for number in (*spec.mean, *spec.std))
        and len(spec.mean) == len(spec.std)
        and spec.channels in (1, 3)
        and all(number > 0 for number in spec.std)
        and type(spec.image_size) is int
        and 1 <= spec.image_size <= 4096
        and len(spec.classes) >= 2
        and type(spec.step) is int
        and isinstance(spec.raw, bool)
        and (spec.accuracy is None or (isinstance(spec.accuracy, float) and 0 <= spec.accuracy <= 1))
    )
    if not sound:
        raise ConfigError(f"{path}: its metadata are corrupt; export it again")
    return spec


# Keys whose values are places on somebody's disk or in somebody's network, whatever they look like.
PLACES = {
    "dataset.root": "FOLDER",
    "dataset.cache": "FOLDER",
    "dataset.labels": "FILE",
    "dataset.mirrors": "ADDRESSES",
    "init_from": "WEIGHTS",
    "resume": "RUN",
}


def public_command(flags: Sequence[str], overrides: Sequence[str]) -> str:
    """The command that trained a network, for strangers to read: without the paths of whoever gave it.

    ``dataset.root=/home/me/cats`` becomes ``dataset.root=FOLDER``; every other value that holds a path, ``...``.
    Hydra's own keys say where a run lies, and are left out.
    """
    shown = ["FOLDER" if _is_place(flag) else flag for flag in flags]
    for override in overrides:
        key, equals, value = override.partition("=")
        name = key.lstrip("+~").partition("@")[0]
        if name.startswith("hydra"):
            continue
        if name in PLACES and equals and value != "null":
            value = PLACES[name]
        elif _is_place(value):
            value = "..."
        shown.append(f"{key}{equals}{value}")
    return shell_quote(PROGRAM, *shown)


def _is_place(text: str) -> bool:
    return any(sign in text for sign in "/\\~$")
