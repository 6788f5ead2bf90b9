"""What the documents name exists, and what exists is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from resnet_train import cli
from resnet_train.config import options_of, register_schema
from resnet_train.explain import known_keys

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
README = (ROOT / "README.md").read_text()
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []
    assert "@@" not in document.read_text(), "a figure that is still to be filled in"


def test_every_key_is_documented_and_exists() -> None:
    rows = re.findall(r"^\| (`.+?) \|", CONFIGURATION, re.M)
    named = {key for row in rows for key in re.findall(r"`([\w.]+)`", row)}
    groups = {"model", "dataset", "dataset.augment", "optim", "schedule", "experiment", "checkpoint"}
    assert named == set(known_keys()) - groups


def test_every_recipe_and_every_file_of_the_source_is_in_the_readme() -> None:
    assert [recipe for recipe in options_of("experiment") if f"`{recipe}`" not in README] == []
    table = README[README.index("## Source") :]
    named = set(re.findall(r"`(\w+\.py)`", table))
    assert named == {path.name for path in (ROOT / "resnet_train").glob("*.py")} - {"__init__.py"}


def commands() -> list[str]:
    """The commands of the documents that start a run, without those that need a run or a folder of the user's."""
    found = []
    for document in DOCUMENTS:
        for line in re.findall(r"^(?: {4})?(?:resnet-train|scripts/train) (.+)$", document.read_text(), re.M):
            words = line.partition(" #")[0].strip()
            if not re.search(r"resume=|--|DIR|WORDS|-m |-sc|trains", words):
                found.append(words)
    return found


@pytest.mark.parametrize("command", commands())
def test_commands_compose(command: str) -> None:
    words = re.findall(r"'(.+?)'|(\S+)", command)
    overrides = [quoted or plain for quoted, plain in words]
    register_schema()
    cli.compose_config(cli.parse(overrides), overrides)
