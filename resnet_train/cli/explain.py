"""Every way in which a command line can be wrong, in one line: what was expected, what was given, what fixes it."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from resnet_train.cli.overrides import PROGRAM, quoted
from resnet_train.config.checks import nearest_name
from resnet_train.config.dataset import AugmentConfig
from resnet_train.config.expected import ExpectedConfig, ProtocolConfig
from resnet_train.config.run import CheckpointConfig, Config
from resnet_train.config.stopping import EarlyStopConfig
from resnet_train.config.store import SCHEMA, options_of
from resnet_train.errors import ConfigError, RunError
from resnet_train.runs.console import printable, shell_quote

# Nodes of the configuration that are no groups.
NODES = {
    "augment": AugmentConfig,
    "checkpoint": CheckpointConfig,
    "early_stop": EarlyStopConfig,
    "expected": ExpectedConfig,
    "protocol": ProtocolConfig,
}


def is_config_error(error: Exception) -> bool:
    """Whether the request, not the run, was at fault."""
    return isinstance(error, ConfigError | HydraException | OmegaConfBaseException)


def explain(error: Exception) -> str:
    """One line: what was expected, what was given, what fixes it."""
    return printable(_explain(error))


def _explain(error: Exception) -> str:
    match error:
        case ConfigError() | RunError():
            return one_line(str(error))
        case MissingConfigException():
            return _explain_missing(error)
        case OverrideParseException():
            return _explain_unreadable(str(error.override))
        case ConfigCompositionException():
            return _explain_composition(error)
        case OmegaConfBaseException():
            return _explain_value(error)
        case HydraException():
            return one_line(str(error))
        case OSError(filename=str(path), strerror=str(reason)):
            return (
                f"{path}: {reason}; expected to read and write it, look whether another program has it open "
                "(HYDRA_FULL_ERROR=1 shows where)"
            )
        case _:
            text = f"{type(error).__name__}: {one_line(str(error))}"
            return f"{text} (this is not foreseen; HYDRA_FULL_ERROR=1 shows where)"


def _explain_unreadable(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[+~]*[\w./@-]+", key):
        return f"cannot read {override!r}: expected KEY=VALUE, as in epochs=10; {PROGRAM} --help shows what can be set"
    special = dict.fromkeys(character for character in value if not re.match(r"[\w./+%@?|*-]", character, re.ASCII))
    held = " ".join("a space" if character == " " else character for character in special) or "what is special"
    fix = f"{key}={quoted(value)}"
    fix = f'"{fix}"' if not re.search(r'["$`\\]', fix) else shell_quote(fix)
    return f"cannot read {override!r}: its value holds {held}, which needs quotes of its own; write {fix}"


def one_line(text: str) -> str:
    """White space folded, cut to what a person reads."""
    folded = " ".join(text.split())
    return folded if len(folded) <= 1000 else folded[:1000] + " ..."


def unknown_key_message(key: str, composed: DictConfig | None = None) -> str:
    """Name an unknown key, the nearest known one, and how to see them all."""
    if key == "experiment":
        return (
            "experiment: a recipe of your own has to begin with the line # @package _global_, with nothing in front of "
            "it, not even a byte order mark"
        )
    names = known_keys(composed)
    if key in names:
        return f"{key}: keys in YAML do not nest by dots; write {key.replace('.', ': {', 1)}: ...}} there"
    nearest = _nearest_key(key, names)
    hint = f"did you mean {nearest}?" if nearest else f"{PROGRAM} --cfg job shows all keys"
    return f"{key}: no such key; {hint}"


# What other programs call our keys.
ALIASES = {
    "learning_rate": "lr",
    "arch": "model",
    "batchsize": "batch_size",
    "bs": "batch_size",
    "data": "root",
    "gpu": "device",
    "max_epochs": "epochs",
    "num_epochs": "epochs",
    "optimizer": "optim",
    "scheduler": "schedule",
    "wd": "weight_decay",
}


def _nearest_key(key: str, names: list[str]) -> str | None:
    """A key of the same group first, then one that ends in the same word, then whatever looks most like it."""
    parent, _, leaf = key.rpartition(".")
    leaf = ALIASES.get(leaf, leaf)
    ends = {name: name.rpartition(".")[2] for name in names}
    siblings = [end for name, end in ends.items() if name.rpartition(".")[0] == parent]
    if leaf in siblings:
        return ".".join(filter(None, (parent, leaf)))
    if leaf in ends.values():
        return next(name for name, end in ends.items() if end == leaf)
    nearest = nearest_name(leaf, siblings)
    return ".".join(filter(None, (parent, nearest))) if nearest else nearest_name(key, names)


def known_keys(composed: DictConfig | None = None) -> list[str]:
    """Dotted names of everything that can be set: of a composed config, or of the schema with all its options."""

    def names(schema: type, prefix: str) -> list[str]:
        found = []
        for field in fields(schema):
            found.append(prefix + field.name)
            node = NODES.get(field.name)
            if node:
                found += names(node, f"{prefix}{field.name}.")
        return found

    everything = names(Config, "")
    for path, schema in SCHEMA.items():
        group = path.partition("/")[0]
        if composed is not None and OmegaConf.get_type(composed, group) is not schema:
            continue
        everything += names(schema, f"{group}.")
    return list(dict.fromkeys([*everything, "experiment"]))


def _explain_missing(error: MissingConfigException) -> str:
    path = error.missing_cfg_file or ""
    group, _, name = str(path).rpartition("/")
    if not group:
        return f"no config named {path!r}: expected {path}.yaml in conf/ or in the folder given with --config-dir"
    options = list(error.options or options_of(group))
    nearest = nearest_name(name, options)
    hint = f"; did you mean {group}={nearest}?" if nearest else ""
    if group.startswith("hydra/") and name in PLUGINS:
        hint = f"; install it with: pip install {PLUGINS[name]}"
    return f"{group}: expected one of {', '.join(sorted(options, key=natural))}, got {name!r}{hint}"


# Options of hydra/launcher and hydra/sweeper that come with a package; versions that Hydra 1.3 works with.
PLUGINS = {
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
    "ray": "hydra-ray-launcher",
    "optuna": "hydra-optuna-sweeper",
}


def natural(name: str) -> tuple[str, int]:
    """Sort key that puts resnet20 before resnet110."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0)


def _explain_composition(error: ConfigCompositionException) -> str:
    cause = error.__cause__ or error.__context__  # the latter where a YAML file is at fault
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        key = str(cause.full_key)
        if key.startswith("hydra."):
            return f"{key}: no such key of Hydra's; {PROGRAM} --cfg hydra shows all of them"
        return _other_option_hint(key, cause) or unknown_key_message(key)
    if isinstance(cause, OmegaConfBaseException):
        return _explain_value(cause)
    text = one_line(str(error))
    sweep = "{}: expected one value, got {}; to sweep over them put -m in front"
    for pattern, words in (
        (r"Ambiguous value for argument '(.*?)=(.*?)'", sweep),
        (r"Sweep parameters '(.*?)=(.*)' requires", sweep),
        (r"Multiple values for (\S+?)\. .*?: (\S+)'", "{0}: expected one option; write {0}={1} once, without a +"),
        (r"Could not append .* at '(.*?)'\..*?prefix: '(.*?)'", "{}: it is there already; leave the + out, as in {}"),
    ):
        found = re.match(pattern, text)
        if found:
            return words.format(*found.groups())
    return text


def _other_option_hint(key: str, cause: OmegaConfBaseException) -> str | None:
    """``optim.momentum`` with optim=adamw: the key exists, but in another option of the group."""
    group, _, leaf = key.partition(".")
    owners = [
        path.partition("/")[2]
        for path, schema in SCHEMA.items()
        if path.startswith(f"{group}/") and leaf in {field.name for field in fields(schema)}
    ]
    current = cause.object_type
    name = getattr(current, "NAME", None)
    if not owners or not is_dataclass(current) or current is Config:
        return None
    if group == "model":
        family = {"cifar_resnet": "the 6n+2 networks", "resnet": "resnet18 to resnet152 and their plain counterparts"}
        return f"{key}: only {' and '.join(family[owner] for owner in owners)} have it; remove it or change model"
    return f"{key}: {group}={name} has no such key, {group}={owners[0]} has; remove it or change {group}"


def _explain_value(error: OmegaConfBaseException) -> str:
    key, message = str(error.full_key or ""), one_line(str(error)).partition(" full_key:")[0]
    kinds = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "a word"}
    got = message.partition("Value '")[2].partition("'")[0]
    if isinstance(error, MissingMandatoryValue):
        return f"{key or message}: expected a value, got none; give it as {key}=VALUE"
    if isinstance(error, InterpolationResolutionError):
        return f"{key}: {message}; quote a $ that is meant as such"
    for kind, words in kinds.items():
        if f"could not be converted to {kind}" in message or f"is not a valid {kind.lower()[:4]} " in message:
            return f"{key}: expected {words}, got {got!r}"
    missing = re.search(r"missing \d+ required positional arguments?: '(\w+)'", message)
    if missing:
        return f"{missing[1]}: every run needs a value here, it cannot be removed; set {missing[1]}=VALUE"
    if "does not support deletion" in message:
        return f"{key}: every run needs a value here, it cannot be removed; set {key}=VALUE"
    if "is not a ListConfig" in message:
        return f"{key}: expected a list, got a single value; write {key}=[VALUE]"
    if "is not Optional" in message:
        return f"{key}: expected a value, got null"
    if "Invalid type assigned" in message or "is not a subclass of" in message:
        got = message.rpartition("value: ")[2]
        if not key:  # a whole group, given as a value in somebody's YAML
            return f"expected a group of keys, got {got!r} in its place; name an option, as in optim=sgd"
        return f"{key}: expected a group of keys, got {got!r}; set {key}.KEY=VALUE"
    return f"{key}: {message}" if key else message
