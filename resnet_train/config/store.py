"""Where Hydra meets the dataclasses, and the YAML files of ``conf/``: the only module of this room that knows Hydra."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from resnet_train.config.dataset import (
    Cifar10Config,
    Cifar100Config,
    EuroSATConfig,
    FashionMNISTConfig,
    ImageFolderConfig,
    ImagenetteConfig,
    KMNISTConfig,
    MedMNISTConfig,
    MNISTConfig,
    STL10Config,
    SVHNConfig,
    SyntheticConfig,
    TinyImageNetConfig,
)
from resnet_train.config.medmnist import SUBSETS
from resnet_train.config.model import CifarResNetConfig, ResNetConfig
from resnet_train.config.optim import AdamWConfig, SGDConfig
from resnet_train.config.run import Config
from resnet_train.config.schedule import ConstantConfig, CosineConfig, LinearConfig, MultiStepConfig
from resnet_train.errors import ConfigError

SCHEMA: dict[str, type] = {
    "model/cifar_resnet": CifarResNetConfig,
    "model/resnet": ResNetConfig,
    "dataset/cifar10": Cifar10Config,
    "dataset/cifar100": Cifar100Config,
    "dataset/eurosat": EuroSATConfig,
    "dataset/fashion_mnist": FashionMNISTConfig,
    "dataset/imagefolder": ImageFolderConfig,
    "dataset/imagenette": ImagenetteConfig,
    "dataset/kmnist": KMNISTConfig,
    "dataset/medmnist": MedMNISTConfig,
    "dataset/mnist": MNISTConfig,
    "dataset/stl10": STL10Config,
    "dataset/svhn": SVHNConfig,
    "dataset/synthetic": SyntheticConfig,
    "dataset/tiny_imagenet": TinyImageNetConfig,
    "optim/sgd": SGDConfig,
    "optim/adamw": AdamWConfig,
    "schedule/cosine": CosineConfig,
    "schedule/linear": LinearConfig,
    "schedule/multistep": MultiStepConfig,
    "schedule/constant": ConstantConfig,
}


def register_schema() -> None:
    """Make the dataclasses known to Hydra as ``schema/...``, which the YAML files name first in their defaults."""
    store = ConfigStore.instance()
    if "schema" in store.repo and OmegaConf.has_resolver("medmnist_channels"):
        return
    OmegaConf.register_new_resolver("job_id", job_id, replace=True)
    OmegaConf.register_new_resolver("job_name", job_name, replace=True)
    OmegaConf.register_new_resolver("each", each, replace=True)
    OmegaConf.register_new_resolver("medmnist_channels", medmnist_channels, replace=True)
    store.store(group="schema", name="train", node=Config)
    for path, node in SCHEMA.items():
        group, name = path.split("/")
        store.store(group=f"schema/{group}", name=name, node=node)


def each(value: float, channels: int) -> list[float]:
    """``value`` for each of the channels: ``${each:0.2860,${.channels}}``."""
    return [float(value)] * (1 if channels == 1 else 3)


def medmnist_channels(subset: str) -> int:
    """Channels of a subset of MedMNIST as it was published; 3 for one that there is not, which is refused later."""
    return SUBSETS[subset].channels if subset in SUBSETS else 3


def job_id(overrides: str) -> str:
    """Eight hexadecimal digits that tell a sweep's jobs apart by their overrides, whatever their number or order."""
    return hashlib.sha256(overrides.encode()).hexdigest()[:8]


def job_name(name: str, overrides: Sequence[str], dirname: str, folder: str, keys: str) -> str:
    """``quick-lr=0.1,seed=2-1f0e7c55``: the folder of a sweep's job, with the overrides of ``keys`` that tell it apart.

    The digest alone says which job it is. A folder that ends in it is that job's, however a sweep called it before.
    """
    digest = job_id(dirname)
    earlier = [path.name for path in Path(folder).glob(f"*-{digest}")]
    if earlier:
        return min(earlier)
    values = {key: value for key, _, value in (override.lstrip("+~").partition("=") for override in overrides)}
    shown = [f"{key.rpartition('.')[2]}={values[key]}" for key in keys.split() if key in values]
    label = re.sub(r"[^\w.=,+-]+", "-", ",".join(shown), flags=re.ASCII)[:60].rstrip(".,-")
    return "-".join(filter(None, (name, label, digest)))


def unknown_keys(node: Any, schema: Any, prefix: str = "") -> list[str]:
    """Dotted keys of a composed config that its schema does not have: what ``+key=value`` smuggles in."""
    unknown = []
    known = {field.name for field in fields(schema)} if is_dataclass(schema) else set()
    for key in node:
        if key not in known:
            unknown.append(f"{prefix}{key}")
            continue
        child = node._get_node(key)
        object_type = child._metadata.object_type if child is not None else None
        if is_dataclass(object_type):
            unknown += unknown_keys(child, object_type, f"{prefix}{key}.")
    return unknown


def config_folder() -> Path:
    """``conf/`` beside the package in a checkout, inside the package where it was installed from a wheel."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"expected conf/train.yaml in or beside {package}, found neither; install resnet-train again")


def options_of(group: str) -> list[str]:
    """Options of a config group, from the YAML files."""
    folder = config_folder() / group
    return sorted(path.stem for path in folder.glob("*.yaml")) if folder.is_dir() else []
