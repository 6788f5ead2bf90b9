"""The run directory: made once, shared by no two runs, with its configuration and a log of its own."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from resnet_train.config.paths import with_absolute_paths
from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.runs.atomic import read_regular, regular_file, sync_folder, temporary_beside, write_atomically
from resnet_train.runs.checkpoint_file import numbered
from resnet_train.runs.lock import Held, Lock, hold

LOG = "train.log"
LOCK = ".lock"
CONFIG = "config.yaml"
INVOCATION = "invocation.json"
# Keys of one session alone, and what a recipe expects; with the values that stand for them in what is saved.
NOT_SAVED = {"resume": None, "resume_force": False, "summary": False, "find_lr": False, "expected": None}
MOST_CONFIG_BYTES, MOST_CONFIG_LEVELS = 1 << 20, 50  # of config.yaml, which may have come from a stranger
_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it

_package_logger = logging.getLogger("resnet_train")


def create(wanted: Path) -> Path:
    """Make ``wanted``, or, if it exists, the first of ``wanted-2``, ``wanted-3``, ... that does not; absolute.

    Two runs that start in the same second get two directories: making a directory succeeds for one of them only.
    Raises `ConfigError` where it cannot be made.
    """
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
            try:
                path.mkdir()
                sync_folder(path.parent)
                return path.absolute()
            except FileExistsError:
                number += 1
    except OSError as error:
        raise ConfigError(
            f"cannot make the run directory {wanted}: {error.strerror or error}; choose another with "
            f"hydra.run.dir=FOLDER, or make it writable"
        ) from error


def is_foreign(directory: Path) -> bool:
    """Whether somebody else's files lie in ``directory``, not only what a run leaves that ends before it begins."""
    early = {LOCK, LOG, INVOCATION}
    return directory.is_dir() and any(path.name not in early for path in directory.iterdir())


def _unwritable(directory: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot write to the run directory {directory}: {error.strerror or error}; choose another with "
        f"hydra.run.dir=FOLDER, or make it writable"
    )


class _File(logging.FileHandler):
    """A log that cannot be written is not fatal: it is said once on stderr."""

    told = False

    def _open(self) -> TextIOWrapper:
        """Open the file, which must not be a link."""
        return TextIOWrapper(open(self.baseFilename, "ab", opener=regular_file), encoding=self.encoding)

    def handleError(self, record: logging.LogRecord) -> None:
        """Called where a record could not be written."""
        if isinstance(sys.exc_info()[1], OSError):
            if not self.told:
                print(f"cannot write {self.baseFilename}: {sys.exc_info()[1]}; the run continues", file=sys.stderr)
            self.told = True
        else:
            super().handleError(record)


@contextmanager
def lock(directory: Path, *, kind: str = "run") -> Iterator[Lock]:
    """Keep every other process out of ``directory``; raises `ConfigError` that names the one which is in it.

    ``kind``: run or sweep, whose directory it is.

    The operating system gives the lock back when a process ends, however it ends.
    """
    with ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(hold(directory / LOCK))
        except Held as holder:
            raise ConfigError(
                f"the {kind} directory {directory} is in use by {holder}; wait for it, stop it, or choose another "
                f"directory with hydra.{kind}.dir=FOLDER"
            ) from None
        except OSError as error:
            raise _unwritable(directory, error) from error
        yield held


@contextmanager
def log_file(directory: Path) -> Iterator[None]:
    """Write the package's log, with times, to ``train.log`` too; an exception leaves its traceback there.

    Within another one for the same directory it does nothing, so that each line is written once.
    """
    path = os.path.abspath(directory / LOG)
    if any(getattr(handler, "baseFilename", None) == path for handler in _package_logger.handlers):
        yield
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handler = _File(path, encoding="utf-8")
    except OSError as error:
        raise _unwritable(directory, error) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = _package_logger.level
    _package_logger.addHandler(handler)
    _package_logger.setLevel(logging.INFO)
    try:
        yield
    except Exception as error:
        record = _package_logger.makeRecord(
            _package_logger.name, logging.ERROR, __file__, 0, f"failed: {error}\n{traceback.format_exc()}", (), None
        )
        handler.handle(record)  # to the file only: the console gets one line, from whoever catches this
        raise
    finally:
        _package_logger.removeHandler(handler)
        _package_logger.setLevel(level)
        with suppress(OSError):  # what it could not write was told
            handler.close()


def lasting(config: Config) -> dict[str, Any]:
    """``config`` as it is saved: plain, with absolute paths, and without what concerns one session or its recipe alone.

    A change is forced once, not whenever the run is resumed. What a recipe expects is asked of the recipe.
    """
    return with_absolute_paths(asdict(config)) | NOT_SAVED


def write_config(config: Config, directory: Path) -> None:
    """Write the resolved configuration as ``config.yaml``, atomically: a copy, to be read, of what checkpoints hold."""
    write_atomically(directory / CONFIG, OmegaConf.to_yaml(lasting(config)))


def read_config(directory: Path) -> dict[str, Any] | None:
    """The configuration in ``config.yaml``, plain; None where there is none.

    Raises `ConfigError` where it is not what `write_config` wrote. Whoever resumes asks `saved.saved_config`.
    """
    path = directory / CONFIG
    try:
        text = read_regular(path, limit=MOST_CONFIG_BYTES).decode("utf-8")
        check_harmless(text)
        plain = yaml.load(text, Loader=_LOADER)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is corrupt: {' '.join(str(error).split())[:200]}; restore it") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{path} is corrupt: expected the keys of a configuration, got {type(plain).__name__}")
    return plain


def check_harmless(text: str) -> None:
    """Raise ``ValueError`` for YAML that would take gigabytes or minutes: aliases of aliases, thousands of levels."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > MOST_CONFIG_LEVELS:
            raise ValueError(f"expected no aliases, and at most {MOST_CONFIG_LEVELS} levels")


@dataclass(frozen=True)
class Invocation:
    """The overrides that started a run, for tables of runs; nothing else needs them."""

    flags: list[str]  # --config-dir and the like
    overrides: list[str]
    swept: list[str] = field(default_factory=list)  # keys in which the jobs of its sweep differ

    @property
    def distinguishing(self) -> list[str]:
        """The overrides that tell the run from others: of a job of a sweep those of the swept keys, else all."""
        swept = set(self.swept)
        return [one for one in self.overrides if not swept or one.lstrip("+~").partition("=")[0] in swept]

    def write(self, directory: Path) -> None:
        """Write ``invocation.json`` atomically."""
        write_atomically(directory / INVOCATION, json.dumps(asdict(self), indent=2) + "\n")


def read_invocation(directory: Path) -> Invocation:
    """The overrides that started the run in ``directory``; empty where none were kept.

    Raises `ConfigError` where ``invocation.json`` is not what `Invocation.write` wrote.
    """
    path = directory / INVOCATION
    try:
        return invocation_of(json.loads(read_regular(path).decode("utf-8")))
    except FileNotFoundError:
        return Invocation([], [])
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is corrupt: {str(error).splitlines()[0]}; nothing but tables needs it") from None


def invocation_of(plain: Any) -> Invocation:
    """The invocation in plain types; raises ``ValueError`` or ``TypeError`` for anything else."""
    invocation = Invocation(**plain)
    lists = (invocation.flags, invocation.overrides, invocation.swept)
    if not all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in lists):
        raise ValueError("expected lists of overrides")
    return invocation


def is_run(directory: Path) -> bool:
    """Whether a run was once started in ``directory``."""
    return any((directory / name).is_file() for name in (CONFIG, INVOCATION)) or bool(
        numbered(directory / "checkpoints")
    )


def check_writable(directory: Path) -> None:
    """Raise `ConfigError` where ``directory`` cannot be made or written to."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = temporary_beside(directory / "probe")
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise _unwritable(directory, error) from error
