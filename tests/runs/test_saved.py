"""What a run directory says: the checkpoint before its copies, and nothing that a stranger wrote is believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_train.config.run import Config
from resnet_train.runs.checkpoint import write_checkpoint
from resnet_train.runs.checkpoint_file import FORMAT
from resnet_train.runs.directory import Invocation, is_run, read_config, write_config
from resnet_train.runs.saved import broken_copies, saved_config, saved_invocation

Compose = Callable[..., Config]


def save(directory: Path, step: int, **content: Any) -> Path:
    (directory / "checkpoints").mkdir(exist_ok=True)
    path = directory / "checkpoints" / f"step-{step:08d}.pt"
    write_checkpoint(path, {"format": FORMAT, "weights": torch.ones(3), **content})
    return path


def test_the_newest_whole_checkpoint_knows_the_configuration(tiny: Compose, tmp_path: Path) -> None:
    config = tiny()
    assert saved_config(tmp_path) is None
    write_config(config, tmp_path)
    assert saved_config(tmp_path) == asdict(config), "no checkpoint yet"
    for step in (9, 10):
        path = save(tmp_path, step, config=asdict(replace(config, seed=step)))
        assert saved_config(tmp_path) == asdict(replace(config, seed=step))
    path.write_bytes(path.read_bytes()[:-1])
    assert saved_config(tmp_path) == asdict(replace(config, seed=9))
    (tmp_path / "config.yaml").unlink()
    assert saved_config(tmp_path) == asdict(replace(config, seed=9))
    assert is_run(tmp_path)


@pytest.mark.parametrize("text", ["", "a: [", "&a [*a]", "[" * 5000, "a: &x [1]\nb: *x", "1: 2", "a: {1: 2}"])
def test_without_a_checkpoint_a_corrupt_copy_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert saved_config(tmp_path) is None


@pytest.mark.parametrize("config", [None, [], {1: 2}, {"a": [{2: 3}]}])
def test_a_checkpoint_that_lacks_one_leaves_it_to_the_copy(tiny: Compose, tmp_path: Path, config: Any) -> None:
    write_config(tiny(), tmp_path)
    save(tmp_path, 1, config=config)
    assert saved_config(tmp_path) == asdict(tiny())


def test_the_overrides_are_in_both(tmp_path: Path) -> None:
    kept = Invocation(["--config-dir", "mine"], ["seed=1"])
    assert saved_invocation(tmp_path) == Invocation([], [])
    save(tmp_path, 1, invocation=asdict(kept))
    for text in (None, "", "{", '{"flags": [], "overrides": []}'):
        if text is not None:
            (tmp_path / "invocation.json").write_text(text)
        assert saved_invocation(tmp_path) == kept
    Invocation([], ["seed=2"]).write(tmp_path)
    assert saved_invocation(tmp_path) == Invocation([], ["seed=2"])
    save(tmp_path, 2, invocation={"flags": 1, "overrides": None})
    (tmp_path / "invocation.json").unlink()
    assert saved_invocation(tmp_path) == Invocation([], [])


@pytest.mark.slow
def test_what_is_corrupt_or_missing_is_named(tiny: Compose, tmp_path: Path) -> None:
    content = {"invocation": {"flags": [], "overrides": ["seed=1"]}}

    def found(content: dict[str, Any]) -> list[str]:
        return [text.removeprefix(f"{tmp_path}/") for _, text in broken_copies(tmp_path, content)]

    anew = "written anew from the checkpoint"
    assert found({}) == [f"config.yaml was missing: {anew}"]
    assert found(content) == [f"config.yaml was missing: {anew}", f"invocation.json was missing: {anew}"]
    write_config(tiny(), tmp_path)
    Invocation([], ["seed=1"]).write(tmp_path)
    assert found(content) == []
    (tmp_path / "summary.json").write_text("{")
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "invocation.json").unlink()
    (tmp_path / "invocation.json").symlink_to("elsewhere")
    assert found(content) == [
        f"config.yaml was corrupt: {anew}",
        f"invocation.json was corrupt: {anew}",
        "summary.json was corrupt or old: written anew at the end of the run",
    ]
    write_config(tiny("seed=1"), tmp_path)
    content["config"] = asdict(tiny("resume_force=true"))
    assert found(content)[0] == f"config.yaml was corrupt or old: {anew}"
    write_config(tiny(), tmp_path)
    assert "config.yaml" not in found(content)[0]


@pytest.mark.slow
def test_a_copy_that_is_a_link_is_not_read(tiny: Compose, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write_config(tiny(), tmp_path)
    (tmp_path / "run" / "config.yaml").symlink_to(tmp_path / "config.yaml")
    assert read_config(tmp_path) is not None
    assert saved_config(tmp_path / "run") is None
