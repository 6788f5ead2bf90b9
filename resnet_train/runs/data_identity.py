"""What tells one data set from another, wherever it lies: kept in each checkpoint, compared when a run is resumed."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from resnet_train.config.dataset import ImageFolderConfig
from resnet_train.config.run import Config
from resnet_train.errors import ConfigError

NAME_LENGTH, CONTENT_LENGTH = 12, 8  # hexadecimal digits of an image's name and of its content; they serve to count
SHOWN = 5  # differences in a message
ROLES = "val/ chooses the best checkpoint and test/ is scored now; versions before took val/ for test, and not test/"


@dataclass(frozen=True)
class DataIdentity:
    """Classes, numbers and contents of a data set, in plain types."""

    classes: tuple[str, ...]  # in label order
    images: dict[str, int]  # split, as the data set has it: number of images
    digest: str  # of all that the images are made of: published sums, names and contents, or parameters
    entries: dict[str, str] = field(default_factory=dict)  # train/cats: the digits of its images, sorted

    def plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self) | {"classes": list(self.classes)}


def identify(
    classes: Sequence[str],
    images: Mapping[str, int],
    source: str,
    named: Mapping[str, Mapping[str, bytes]] | None = None,
) -> DataIdentity:
    """The identity of a data set.

    ``source`` says where its images come from, where that is enough; else ``named`` has the content's sum of each image
    by its name, for each split and class (``train/cats``). Their order does not matter.
    """
    digest = hashlib.sha256(repr((source, sorted(images.items()), tuple(classes))).encode(errors="surrogatepass"))
    entries: dict[str, str] = {}
    for place, sums in sorted((named or {}).items()):
        digests: list[str] = []
        for name in sorted(sums):
            named_by = hashlib.sha256(name.encode(errors="surrogatepass")).digest()
            digest.update(named_by + sums[name])
            digests.append(named_by.hex()[:NAME_LENGTH] + sums[name].hex()[:CONTENT_LENGTH])
        digest.update(place.encode(errors="surrogatepass"))
        entries[place] = "".join(sorted(digests))
    return DataIdentity(tuple(classes), dict(images), digest.hexdigest(), entries)


def check_same_data(content: Mapping[str, Any], data: DataIdentity, config: Config, directory: Path) -> list[str]:
    """What tells ``data`` from those of the checkpoint ``content``.

    Raises `ConfigError` that says so, unless ``resume_force=true``.
    """
    dataset = config.dataset
    if "data" in content:
        found = differences(content["data"], data)
    else:
        classes = content.get("classes", data.classes)
        named = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
        found = class_differences(classes if named else (), data.classes)
        if isinstance(dataset, ImageFolderConfig) and (dataset.val_size or dataset.train_size is not None):
            found.append("version 0.1.0 drew the images that are held out in another way: some would be trained on")
        if isinstance(dataset, ImageFolderConfig) and "val" in data.images:
            found.append(ROLES)
    if found and not config.resume_force:
        table = " and their table with dataset.labels=FILE" * bool(getattr(dataset, "labels", None))
        raise ConfigError(
            f"resume: the data are not those of the run in {directory}: {'; '.join(found[:SHOWN])}"
            + (f"; and {len(found) - SHOWN:,} more" if len(found) > SHOWN else "")
            + f". Bring them back, name their folder with dataset.root=FOLDER{table}, or start a new run"
        )
    return found


def differences(saved: Any, found: DataIdentity) -> list[str]:
    """What tells the data of a checkpoint (`DataIdentity.plain`) from those that were found; empty if nothing does."""
    if not _is_plain(saved):
        return ["what the checkpoint says of its data is corrupt"]
    if saved["digest"] == found.digest:
        return []
    before = saved.get("images")
    val = _of(found.entries, "val")
    if val and isinstance(before, dict) and "val" not in before and _of(saved["entries"], "test") == val:
        return [ROLES]
    texts = class_differences(saved["classes"], found.classes)
    shared = set(saved["classes"]) & set(found.classes)
    for place in sorted(saved["entries"].keys() | found.entries.keys()):
        if place.partition("/")[2] in shared:
            text = counted(_images(saved["entries"].get(place)), _images(found.entries.get(place)))
            texts += [f"{place}: {text}"] if text else []
    return texts or ["other images"]


def _is_plain(saved: Any) -> bool:
    """Whether this is of `DataIdentity.plain`: a checkpoint may come from a stranger."""
    return (
        isinstance(saved, dict)
        and isinstance(saved.get("digest"), str)
        and isinstance(saved.get("classes"), list)
        and all(isinstance(name, str) for name in saved["classes"])
        and isinstance(saved.get("entries"), dict)
        and all(isinstance(part, str) for item in saved["entries"].items() for part in item)
    )


def class_differences(saved: Sequence[str], found: Sequence[str]) -> list[str]:
    """How the classes of two data sets differ; names are compared in Unicode's composed form."""
    before, now = ([unicodedata.normalize("NFC", name) for name in names] for names in (saved, found))
    if before == now:
        return []
    gone, new = ([name for name in one if name not in set(other)] for one, other in ((before, now), (now, before)))
    texts = [f"{listed(names)} {what}" for names, what in ((gone, "gone"), (new, "new")) if names]
    return [f"classes: {', '.join(texts) or 'in another order'}"]


def listed(names: Sequence[str]) -> str:
    """``cats, dogs and 3 more``."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _of(entries: Mapping[str, str], split: str) -> dict[str, str]:
    """The entries of one split, by class."""
    return {place.partition("/")[2]: entry for place, entry in entries.items() if place.startswith(f"{split}/")}


def _images(entry: str | None) -> dict[str, str]:
    """Digits of the content by digits of the name."""
    length = NAME_LENGTH + CONTENT_LENGTH
    pieces = [entry[start : start + length] for start in range(0, len(entry), length)] if entry else []
    return {piece[:NAME_LENGTH]: piece[NAME_LENGTH:] for piece in pieces}


def counted(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """How many images of one class were added, removed and changed; empty where none was."""
    kinds = {
        "added": len(now.keys() - before.keys()),
        "removed": len(before.keys() - now.keys()),
        "changed": sum(before[name] != now[name] for name in before.keys() & now.keys()),
    }
    return ", ".join(f"{number:,} {kind}" for kind, number in kinds.items() if number)
