"""The run directory: nobody else's, with a log and a configuration that can be read again."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.runs.directory import (
    Invocation,
    check_writable,
    create,
    is_run,
    lock,
    log_file,
    read_config,
    read_invocation,
    write_config,
)

Compose = Callable[..., Config]

# --------------------------------------------------------------------------------------------------------------- create


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    wanted = tmp_path / "2026-01-31" / "12-00-00-resnet20"
    names = [create(wanted).name for _ in range(3)]
    assert names == ["12-00-00-resnet20", "12-00-00-resnet20-2", "12-00-00-resnet20-3"]
    (wanted.parent / "file").touch()
    assert create(wanted.parent / "file").name == "file-2"
    assert all((wanted.parent / name).is_dir() for name in names)


def test_the_path_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert create(Path("outputs") / "run") == tmp_path / "outputs" / "run"


def test_threads_never_share_a_directory(tmp_path: Path) -> None:
    made: list[Path] = []
    barrier = threading.Barrier(8)

    def run() -> None:
        barrier.wait()
        made.extend(create(tmp_path / "runs" / "run") for _ in range(10))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len(set(made)) == 80


@pytest.mark.slow
def test_processes_never_share_a_directory(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from resnet_train.runs.directory import create; "
        "print('ready', flush=True); sys.stdin.readline(); "
        "[print(create(Path(sys.argv[1]))) for _ in range(25)]"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "runs" / "run")]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # all at once, when all have started
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    made = [line for process in processes for line in process.communicate(timeout=60)[0].splitlines()]
    assert len(made) == len(set(made)) == 100


# ---------------------------------------------------------------------------------------------------- not to be written

CANNOT = "; choose another with hydra.run.dir=FOLDER, or make it writable"


def no_folder(tmp_path: Path) -> Path:
    """A path that nobody can make, not even root."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "run"


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    path = no_folder(tmp_path)
    with pytest.raises(ConfigError) as caught:
        create(path / "deeper")
    assert str(caught.value) == f"cannot make the run directory {path}/deeper: Not a directory{CANNOT}"
    for function in (check_writable, lambda directory: log_file(directory).__enter__()):
        with pytest.raises(ConfigError) as caught:
            function(path)
        assert str(caught.value) == f"cannot write to the run directory {path}: Not a directory{CANNOT}"


def test_a_directory_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []


# ------------------------------------------------------------------------------------------------------------------ log

LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    package = logging.getLogger("resnet_train")
    level, handlers = package.level, package.handlers[:]
    yield logging.getLogger("resnet_train.somewhere")
    assert (package.level, package.handlers) == (level, handlers), "left behind"


def test_the_log_has_what_the_package_says_with_times(tmp_path: Path, logger: logging.Logger) -> None:
    logger.warning("before")
    with log_file(tmp_path / "run"):
        logger.info("one: %s", "ü")
        logger.debug("not this")
        logging.getLogger("others").warning("nor this")
    logger.warning("after")
    with log_file(tmp_path / "run"):
        logger.warning("two")
    text = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert re.fullmatch(rf"{LINE}INFO one: ü\n{LINE}WARNING two\n", text)


def test_an_exception_leaves_its_traceback_there_alone(
    tmp_path: Path, logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="too small"), log_file(tmp_path):
        logger.info("begun")
        raise ValueError("too small")
    text = (tmp_path / "train.log").read_text()
    assert re.match(rf"{LINE}INFO begun\n{LINE}ERROR failed: too small\nTraceback \(most recent call last\):\n", text)
    assert text.count("Traceback") == 1
    assert text.rstrip().endswith("ValueError: too small")
    assert caplog.messages == ["begun"]


def test_an_interruption_leaves_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), log_file(tmp_path):
        raise KeyboardInterrupt
    assert (tmp_path / "train.log").read_text() == ""


def test_one_within_another_writes_each_line_once(tmp_path: Path, logger: logging.Logger) -> None:
    """The command line begins the log before the run does; another directory's log is another log."""
    with (
        pytest.raises(ValueError, match="no"),
        log_file(tmp_path / "a"),
        log_file(tmp_path / "b"),
        log_file(tmp_path / "b" / ".." / "a"),
    ):
        logger.info("a line")
        raise ValueError("no")
    for name in ("a", "b"):
        text = (tmp_path / name / "train.log").read_text()
        assert (text.count("a line"), text.count("failed: no")) == (1, 1), name


# -------------------------------------------------------------------------------------------------------- configuration


@pytest.mark.slow
def test_a_configuration_is_read_as_it_was_written(tiny: Compose, tmp_path: Path) -> None:
    """Names that YAML could take for something else, very small numbers, nothing at all, lists."""
    assert read_config(tmp_path) is None
    config = tiny("optim.lr=1e-5", "optim.weight_decay=1e-30", "eval_every='3 steps'")
    for name in ("resnet20", "null", "true", "no", "1e5", "0x10", "2026-01-31", "12", "1.0", "1_000"):
        write_config(replace(config, name=name), tmp_path)
        assert read_config(tmp_path) == asdict(replace(config, name=name)), name
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.slow
def test_what_concerns_one_session_alone_is_not_kept(tiny: Compose, tmp_path: Path) -> None:
    config = tiny("resume_force=true")
    config.resume = "outputs/a"
    write_config(config, tmp_path)
    assert read_config(tmp_path) == asdict(tiny())


def test_a_recipe_comes_back_too(compose: Compose, tmp_path: Path) -> None:
    config = compose("experiment=he2015_resnet110", "dataset.root='/a: b # c'")
    write_config(config, tmp_path)
    assert config.expected is not None
    assert read_config(tmp_path) == asdict(config) | {"expected": None}  # which is the recipe's, not the run's


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "expected the keys of a configuration, got NoneType"),
        (b"- 1\n- 2\n", "expected the keys of a configuration, got list"),
        (b"resnet20", "expected the keys of a configuration, got str"),
        (b"a: [1, 2\n", "while parsing a flow sequence .*; restore it"),
        (b"a: b: c", "mapping values are not allowed .*; restore it"),
        (b"a: \xff", ".*can't decode byte 0xff.*; restore it"),
        (b"a: !!python/object/apply:os.getcwd []", "could not determine a constructor .*; restore it"),
    ],
)
def test_a_corrupt_configuration(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))} is corrupt: {message}$") as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- invocation


def test_an_invocation_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_invocation(tmp_path) == Invocation([], []), "a run from Python has none"
    invocation = Invocation(["--config-dir", "/a b"], ["optim.lr=0.1", "name='ü \"quoted\"'"])
    invocation.write(tmp_path)
    assert read_invocation(tmp_path) == invocation
    Invocation([], []).write(tmp_path)
    assert read_invocation(tmp_path) == Invocation([], [])
    (tmp_path / "invocation.json").write_text('{"flags": [], "overrides": ["seed=1"]}')
    assert read_invocation(tmp_path) == Invocation([], ["seed=1"]), "of a version without sweeps' keys"
    assert [path.name for path in tmp_path.iterdir()] == ["invocation.json"]


@pytest.mark.parametrize(
    ("swept", "expected"), [([], ["seed=1", "+optim.lr=0.1", "epochs=2"]), (["optim.lr", "model"], ["+optim.lr=0.1"])]
)
def test_overrides_that_tell_a_run_from_others(swept: list[str], expected: list[str]) -> None:
    assert Invocation([], ["seed=1", "+optim.lr=0.1", "epochs=2"], swept).distinguishing == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ('{"flags": [], "overri', "Unterminated string starting at: line 1 column 15 (char 14)"),
        ("[]", ".*must be a mapping, not list"),
        ('{"flags": []}', ".*missing 1 required positional argument: 'overrides'"),
        ('{"flags": [], "overrides": [], "more": 1}', ".*got an unexpected keyword argument 'more'"),
        ('{"flags": [], "overrides": [1]}', "expected lists of overrides"),
        ('{"flags": "--x", "overrides": []}', "expected lists of overrides"),
        (b"\xff\xfe", ".*can't decode byte 0xff.*"),
    ],
)
def test_a_corrupt_invocation(tmp_path: Path, text: str | bytes, reason: str) -> None:
    path = tmp_path / "invocation.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    expected = reason if reason.startswith(".*") else re.escape(reason)
    with pytest.raises(
        ConfigError, match=rf"^{re.escape(str(path))} is corrupt: {expected}; nothing but tables needs it$"
    ):
        read_invocation(tmp_path)


def test_a_run_has_a_configuration_or_an_invocation(tiny: Compose, tmp_path: Path) -> None:
    for name in ("from Python", "from a shell", "neither"):
        (tmp_path / name).mkdir()
    write_config(tiny(), tmp_path / "from Python")
    Invocation([], []).write(tmp_path / "from a shell")
    assert [is_run(tmp_path / name) for name in ("from Python", "from a shell", "neither")] == [True, True, False]


def test_a_lock_is_given_back(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            lock(tmp_path),
            pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on "),
            lock(tmp_path),
        ):
            pass
    with pytest.raises(ValueError, match="inside"), lock(tmp_path):
        raise ValueError("inside")
    with lock(tmp_path):
        pass
