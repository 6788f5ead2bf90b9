"""Arguments of a command line, taken apart; overrides, merged and quoted."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resnet_train.config.paths import expanded
from resnet_train.errors import ConfigError

PROGRAM = "resnet-train"
FLAGS = ("--multirun", "--cfg", "--resolve", "--package", "--config-dir", "--config-name", "--help", "--version")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


@dataclass(frozen=True)
class Request:
    """A command line, taken apart."""

    overrides: tuple[str, ...]
    config_name: str = "train"
    config_path: Path | None = None  # a folder that takes the place of conf/
    config_dir: Path | None = None  # a folder beside conf/
    multirun: bool = False
    help: bool = False
    version: bool = False
    show: str | None = None  # job, hydra, all: which part of the configuration to print
    resolve: bool = False
    package: str | None = None  # the node to print; None: all of it
    info: bool = False  # Hydra prints what it knows
    passed_on: bool = False  # Hydra answers alone: completion, --hydra-help

    @property
    def flags(self) -> list[str]:
        """Those that take part in what a run is made of, to be told with its command."""
        named = (("--config-path", self.config_path), ("--config-dir", self.config_dir))
        found = [word for flag, folder in named if folder is not None for word in (flag, str(folder))]
        return [*found, "--config-name", self.config_name] if self.config_name != "train" else found

    def with_overrides(self, overrides: Sequence[str]) -> Request:
        """The same request with other overrides."""
        return replace(self, overrides=tuple(overrides))


class _Parser(argparse.ArgumentParser):
    """Errors become a `ConfigError`, not a usage text."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{message}; {PROGRAM} --help lists what there is")


def _parser() -> argparse.ArgumentParser:
    """Hydra 1.3's flags, with those that make no sense here left out."""
    parser = _Parser(add_help=False, prog=PROGRAM)
    for flags in (("--help", "-h"), ("--run", "-r"), ("--multirun", "-m"), ("--shell-completion", "-sc")):
        parser.add_argument(*flags, action="store_true")
    for flag in ("--hydra-help", "--version", "--resolve"):
        parser.add_argument(flag, action="store_true")
    for flags in (("--package", "-p"), ("--config-path", "-cp"), ("--config-name", "-cn"), ("--config-dir", "-cd")):
        parser.add_argument(*flags)
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=INFO)
    parser.add_argument("--experimental-rerun")
    parser.add_argument("overrides", nargs="*")
    return parser


def parse(arguments: Sequence[str]) -> Request:
    """Split a command line into flags and overrides; raises `ConfigError` for flags that are unknown or contradict."""
    found, unknown = _parser().parse_known_intermixed_args(list(arguments))  # flags may stand anywhere
    if unknown:
        flag, _, value = unknown[0].partition("=")
        raise ConfigError(
            f"{flag}: no such flag; values are given as KEY=VALUE, as in {flag.lstrip('-')}={value or '...'}, and "
            f"{PROGRAM} --help lists what there is"
        )
    if found.hydra_help and found.overrides:
        raise ConfigError(f"--hydra-help: expected nothing beside it, got {' '.join(found.overrides)}")
    if found.experimental_rerun:
        raise ConfigError(
            "--experimental-rerun: it unpickles a file, which can run code; expected resume=RUN to continue a run"
        )
    if found.cfg and found.multirun:
        raise ConfigError("--cfg shows the configuration of one run; expected no -m and no lists of values beside it")
    modes = {
        "--run": found.run,
        "--multirun": found.multirun,
        "--cfg": found.cfg,
        "--info": found.info is not None,
        "--shell-completion": found.shell_completion,
    }
    chosen = [flag for flag, given in modes.items() if given]
    if len(chosen) > 1:
        raise ConfigError(f"expected one of {', '.join(modes)}, got {' and '.join(chosen)}")
    if found.resolve and not found.cfg:
        raise ConfigError("--resolve shows a configuration as it will be used; expected --cfg job beside it")
    return Request(
        overrides=tuple(
            quote_path(override, lists=found.multirun) for override in found.overrides if override != "experiment=null"
        ),
        config_name=found.config_name or "train",
        config_path=_folder("--config-path", found.config_path),
        config_dir=_folder("--config-dir", found.config_dir),
        multirun=found.multirun,
        help=found.help,
        version=found.version,
        show=found.cfg,
        resolve=found.resolve,
        package=found.package,
        info=found.info is not None,
        passed_on=found.hydra_help or found.shell_completion,
    )


def _folder(flag: str, value: str | None) -> Path | None:
    if value is None:
        return None
    if not Path(value).is_dir():
        raise ConfigError(f"{flag}: expected a folder of YAML files, got {value!r}, which is none")
    return Path(value).absolute()


def key_of(override: str) -> str:
    """``optim.lr`` for ``+optim.lr=0.1``."""
    return override.lstrip("+~").partition("=")[0]


def value_of(override: str) -> str:
    """``0.1`` for ``+optim.lr=0.1``."""
    return override.partition("=")[2]


def values_of(overrides: Sequence[str], key: str) -> list[str]:
    """All values that ``overrides`` give to ``key``, in their order."""
    return [value_of(override) for override in overrides if key_of(override) == key]


def without(overrides: Sequence[str], *keys: str) -> list[str]:
    """The overrides of all other keys."""
    return [override for override in overrides if key_of(override) not in keys]


def merge_overrides(earlier: Sequence[str], later: Sequence[str]) -> list[str]:
    """Both, one after the other; of two for one key the later one stays."""
    merged: dict[str, str] = {}
    for override in (*earlier, *later):
        merged.pop(key_of(override), None)
        merged[key_of(override)] = override
    return list(merged.values())


PATHS = ("dataset.root", "dataset.cache", "dataset.labels", "resume", "init_from", "hydra.run.dir", "hydra.sweep.dir")


def quote_path(override: str, *, lists: bool = False) -> str:
    """``dataset.root='/home/me/my data'`` for ``dataset.root=~/my data``: shells take the user's own quotes away.

    Values of other keys, quoted ones, with ``lists`` those with a comma, and what refers to other values stay as they
    are.
    """
    key, _, value = override.partition("=")
    if value == "~" or value.startswith(("~/", f"~{os.sep}")):
        return f"{key}={quoted(expanded(key, value))}"
    plain = not value.startswith(("'", '"')) and not re.search(r"[,\[\]{}()$]" if lists else r"[\[\]{}()$]", value)
    is_special = re.search(r"[^\w./:+-]", value, re.ASCII) is not None
    return f"{key}={quoted(value)}" if key in PATHS and plain and is_special else override


def quoted(path: Path | str) -> str:
    """A path as a value in Hydra's grammar."""
    # Hydra's grammar: a backslash is one, but in front of a quote, of ${, and of the end it escapes.
    return (
        "'"
        + re.sub(r"(\\*)('|\$\{|$)", lambda found: found[1] * 2 + ("\\" + found[2] if found[2] else ""), str(path))
        + "'"
    )


def unquoted(value: str) -> str:
    """A value of Hydra's grammar as a path, where it is a plain or a quoted word."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return re.sub(
            rf"(\\*)({value[0]}|\$\{{|$)", lambda found: found[1][: len(found[1]) // 2] + found[2], value[1:-1]
        )
    return value
