"""From overrides to a `Config`: the one place that composes with Hydra, by its public interface.

A configuration is composed once: new ones from ``conf/``, saved ones from the resolved configuration in the run
directory, which is read as data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from resnet_train.cli.explain import natural, unknown_key_message
from resnet_train.cli.overrides import PROGRAM, Request, key_of, parse, quoted, unquoted, values_of, without
from resnet_train.config.dataset import CifarConfig
from resnet_train.config.older import with_former
from resnet_train.config.run import Config
from resnet_train.config.store import SCHEMA, config_folder, options_of, register_schema, unknown_keys
from resnet_train.data.available import check_available
from resnet_train.errors import ConfigError
from resnet_train.runs.console import shell_quote
from resnet_train.runs.directory import NOT_SAVED
from resnet_train.runs.resume import find_directory
from resnet_train.runs.saved import saved_config

GROUPS = ("model", "dataset", "optim", "schedule")
VERSION_BASE = "1.3"  # of Hydra's behaviour


@dataclass(frozen=True)
class Composed:
    """A configuration: typed and checked, and as Hydra composed it."""

    config: Config
    node: DictConfig
    hydra: DictConfig  # Hydra's own part: where runs go, launchers, sweepers


def load_config(overrides: Sequence[str] = ()) -> Config:
    """The configuration that ``resnet-train`` makes of the same overrides, e.g. ``["model=resnet18", "epochs=30"]``.

    With ``resume=RUN`` that of the saved run, with the other overrides laid over it; `run` continues there then.
    Raises `ConfigError` for keys, types and values that cannot be; Hydra's errors pass through.
    """
    request = parse(list(overrides))
    asked = values_of(request.overrides, "resume")
    if not asked or asked[-1] == "null":
        return compose(request).config
    directory = find_directory(unquoted(asked[-1]))
    request = request.with_overrides(without(request.overrides, "resume"))
    saved = saved_config(directory)
    config = (compose(request) if saved is None else compose_saved(request, saved)).config
    config.resume = str(directory)
    return config


@contextmanager
def started(request: Request) -> Iterator[list[str]]:
    """Hydra, set up for ``request``, and as it was before afterwards; yields overrides that it needs besides."""
    register_schema()
    main, beside = request.config_path or config_folder(), request.config_dir
    if beside is not None and (beside / f"{request.config_name}.yaml").is_file():
        main, beside = beside, main  # Hydra looks for the main file in the first folder only
    theirs = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(main), job_name=PROGRAM, version_base=VERSION_BASE):
            yield [f"hydra.searchpath=[{quoted(f'file://{beside}')}]"] if beside is not None else []
    finally:
        GlobalHydra.instance().hydra = theirs


def compose(request: Request, overrides: Sequence[str] | None = None) -> Composed:
    """Compose and check what ``request`` asks for, or the same with other ``overrides``; raises `ConfigError`."""
    return _compose(request, request.config_name, request.overrides if overrides is None else overrides)


def _compose(request: Request, name: str, overrides: Sequence[str]) -> Composed:
    with started(request) as others:
        try:
            node = hydra.compose(name, overrides=[*others, *overrides], return_hydra_config=True)
        except (ConfigError, HydraException, OmegaConfBaseException):
            raise
        except Exception as error:  # Hydra's parser meets some overrides with a bare ValueError or AssertionError
            empty = [key_of(override) for override in overrides if override.endswith("=null")]
            if "Got NoneType" in str(error) and empty:
                options = ", ".join(sorted(options_of(empty[0]), key=natural))
                raise ConfigError(f"{empty[0]}: expected one of {options}, got null") from error
            raise ConfigError(f"cannot make sense of {shell_quote(*overrides)}: {error}") from error
    with read_write(node), open_dict(node):
        hydra_node = node.pop("hydra")
    return Composed(to_config(node), node, hydra_node)


def to_config(composed: DictConfig) -> Config:
    """Convert what Hydra composed, once; raises `ConfigError` for unknown keys and values out of range."""
    if OmegaConf.get_type(composed) is not Config:
        raise ConfigError("the primary config lacks the schema; begin its defaults with: - schema/train@_here_")
    unknown = unknown_keys(composed, Config)
    if unknown:
        raise ConfigError(unknown_key_message(unknown[0], composed))
    for group in filter(options_of, map(str, composed)):
        if not OmegaConf.is_interpolation(composed, group) and composed[group] is None:
            raise ConfigError(f"{group}: expected one of {', '.join(sorted(options_of(group), key=natural))}, got null")
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, ConfigError):
            raise cause from None
        raise
    assert isinstance(config, Config)
    return config


# ------------------------------------------------------------------------------------------------------ saved runs


def compose_saved(request: Request, saved: dict[str, Any]) -> Composed:
    """Lay the overrides of ``request`` over a saved, resolved configuration.

    What is saved is data: nothing in it is interpolated, nothing of it reaches Hydra but values of the schema. A group
    that the overrides name (``schedule=constant``) comes from ``conf/``, and so does everything with ``experiment=``.
    Keys that the saved run does not know yet have their default, or what stands in `config.older`. Raises `ConfigError`
    for keys it should not have.
    """
    given = {key_of(override) for override in request.overrides}
    if "experiment" in given:
        return compose(request)
    saved = with_former(saved)
    unknown = sorted(saved.keys() - {field.name for field in fields(Config)})
    if unknown:
        raise ConfigError(f"resume: the saved configuration has the key {unknown[0]!r}, which this version lacks")
    options = {group: _saved_option(group, saved) for group in GROUPS if group not in given}
    values = {key: value for key, value in saved.items() if key not in given & set(GROUPS)}
    values |= NOT_SAVED  # those of the session that saved it, not of this one
    defaults: list[Any] = ["schema/train@_here_"]
    defaults += [{f"schema/{group}@{group}": option} for group, option in options.items()]
    defaults += [{group: "???"} for group in GROUPS if group in given]  # the overrides say which
    name = f"{PROGRAM}-saved"
    register_schema()
    content = {"defaults": [*defaults, "_self_"], **_with_defaults(request, _as_data(values), options)}
    ConfigStore.instance().store(name=name, node=content)
    return _compose(request, name, request.overrides)


def _saved_option(group: str, saved: dict[str, Any]) -> str:
    """Which class of the schema a saved group is of."""
    values = saved.get(group)
    if not isinstance(values, dict):
        raise ConfigError(f"resume: the saved configuration lacks {group}; restore config.yaml from a backup")
    option = "resnet" if "stem" in values else "cifar_resnet"
    if group != "model":
        option = str(values.get("name"))
    if f"{group}/{option}" not in SCHEMA:
        raise ConfigError(f"resume: the saved configuration has {group}={option}, which this version lacks")
    return option


def _with_defaults(request: Request, values: dict[str, Any], options: dict[str, str]) -> dict[str, Any]:
    """``values`` with the defaults of the keys that came into being after they were saved."""
    schema: dict[str, type] = {group: SCHEMA[f"{group}/{option}"] for group, option in options.items()}
    complete = {field.name for field in fields(Config)} - set(GROUPS) <= values.keys() and all(
        {field.name for field in fields(node)} <= values[group].keys() for group, node in schema.items()
    )
    if complete:
        return values
    choices = {"model": {"resnet": "resnet18", "cifar_resnet": "resnet20"}}
    overrides = [f"{group}={choices.get(group, {}).get(option, option)}" for group, option in options.items()]
    overrides += [override for override in request.overrides if key_of(override) in GROUPS]
    with started(Request(())):
        defaults = OmegaConf.to_container(hydra.compose("train", overrides=overrides), resolve=False)
    assert isinstance(defaults, dict)
    merged = OmegaConf.merge({key: defaults[key] for key in defaults if key in options or key not in GROUPS}, values)
    plain = OmegaConf.to_container(merged, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _as_data(value: Any) -> Any:
    """Escape every ``${``, so that OmegaConf gives back the very strings that were saved."""
    match value:
        case dict():
            return {key: _as_data(inner) for key, inner in value.items()}
        case list():
            return [_as_data(inner) for inner in value]
        case str():  # backslashes in front of it would escape the escape: double them
            return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", value)
        case _:
            return value


# --------------------------------------------------------------------------------------------------------- offline


def offline_config(overrides: Sequence[str]) -> tuple[Config, list[str], str]:
    """Compose as resnet-train does; without CIFAR at hand, synthetic images of the same shape take its place.

    Returns the configuration, the overrides that make it, and a few words on the images.
    """
    request = parse(list(overrides))
    config = compose(request).config
    if not isinstance(config.dataset, CifarConfig):
        return config, list(request.overrides), config.dataset.name
    try:
        config.dataset.download = False
        check_available(config.dataset)
        return config, list(request.overrides), config.dataset.name
    except ConfigError:
        kept = [override for override in request.overrides if not key_of(override).startswith("dataset")]
        shape = ["dataset=synthetic", "dataset.num_train=50000", "dataset.num_test=10", "dataset.image_size=32"]
        classes = 10 if config.dataset.name == "cifar10" else 100
        chosen = [*without(kept), *shape, "dataset.augment.flip=true", f"dataset.num_classes={classes}"]
        note = "synthetic images of the same shape, since CIFAR is not at hand"
        return compose(request.with_overrides(chosen)).config, chosen, note
