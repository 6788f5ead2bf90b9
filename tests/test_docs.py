"""The documents say what the code does: keys, defaults, recipes, modules, links and commands are compared with it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from resnet_train import cli
from resnet_train.config.run import Config
from resnet_train.config.store import options_of, register_schema
from resnet_train.explain import known_keys
from resnet_train.resume import CHANGEABLE

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
GROUPS = ("model", "dataset", "optim", "schedule", "experiment")
# One option for each set of values that the files of a group can hold.
OPTIONS = {
    "": ("model=resnet20",),
    "model": ("model=resnet20", "model=plain20", "model=resnet18", "model=plain18"),
    "dataset": ("dataset=cifar10", "dataset=cifar100", "dataset=imagefolder", "dataset=synthetic"),
    "optim": ("optim=sgd", "optim=adamw"),
    "schedule": ("schedule=cosine", "schedule=linear", "schedule=multistep", "schedule=constant"),
}


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows of a Markdown text."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def literals(cell: str) -> list[Any]:
    return [yaml.safe_load(literal) for literal in re.findall(r"`([^`]+)`", cell)]


def key_rows() -> dict[str, list[str]]:
    """Rows of docs/configuration.md whose first cell is a key and which have a type, a meaning, a range, a default."""
    return {row[0].strip("`"): row for row in rows(text_of("docs/configuration.md")) if len(row) == 5 and "`" in row[0]}


# -------------------------------------------------------------------------------------------------------- configuration


def test_every_key_is_documented_and_every_documented_key_exists() -> None:
    known = known_keys()
    nodes = {key for key in known if any(other.startswith(f"{key}.") for other in known)}
    assert set(key_rows()) == set(known) - nodes - set(GROUPS)


def test_every_option_is_documented() -> None:
    table = {row[0].strip("`"): row for row in rows(text_of("docs/configuration.md")) if len(row) == 3}
    for group in ("model", "dataset", "optim", "schedule"):
        assert set(literals(table[group][1])) == set(options_of(group))


@pytest.mark.parametrize("group", OPTIONS)
def test_documented_defaults(group: str, compose: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESNET_TRAIN_DATA", raising=False)
    table = {key: literals(row[4]) for key, row in key_rows().items()}
    seen: dict[str, list[Any]] = {}
    for option in OPTIONS[group]:
        config = compose(option, *(["dataset.root=pictures"] if option == "dataset=imagefolder" else []))
        for key, documented in table.items():
            parent, _, _ = key.partition(".")
            if (parent if parent in GROUPS else "") != group or key in ("name", "model.name") or not documented:
                continue
            if key == "dataset.root" and option == "dataset=imagefolder":
                continue
            node: Any = config
            for name in key.split("."):
                node = getattr(node, name, ...)
            if node is not ...:
                assert node in documented, f"{key} with {option}"
                seen.setdefault(key, []).append(node)
    for key, values in seen.items():
        assert all(literal in values for literal in table[key]), f"{key}: no option has one of {table[key]}"


def test_what_may_change_when_a_run_goes_on() -> None:
    listed = text_of("docs/runs.md").partition("## Going on")[2].partition("Each such change")[0]
    named = {key for row in rows(listed) for key in literals(row[0])}
    assert named | {"resume"} == CHANGEABLE


# --------------------------------------------------------------------------------------------------------------- README


def test_the_layout_names_every_module() -> None:
    listed = [row[0].strip("`") for row in rows(text_of("README.md").partition("## Source")[2])]
    listed = [name for name in listed if name.endswith(".py")]
    modules = {path.name for path in (ROOT / "resnet_train").glob("*.py")} - {"__init__.py"}
    assert len(listed) == len(set(listed))
    assert set(listed) == modules


def test_every_recipe_is_listed() -> None:
    listed = rows(text_of("README.md").partition("## Recipes")[2].partition("\n## ")[0])[1:]
    assert [row[0].strip("`") for row in listed if row[0].strip("`") not in options_of("experiment")] == []
    assert {row[0].strip("`") for row in listed} == set(options_of("experiment"))


# ------------------------------------------------------------------------------------------------------------ all files


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert "@@" not in text, "a figure that is still to be filled in"
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in {slug(heading) for heading in re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)}


def commands() -> list[str]:
    """Lines of code blocks that begin with resnet-train and can be composed without a run of the reader's own."""
    found = {
        line.replace("scripts/train", "resnet-train", 1)
        for document in DOCUMENTS
        for block in blocks(document.read_text(), "bash")
        for line in block.splitlines()
        if line.startswith(("resnet-train", "scripts/train"))
    }
    return sorted(line for line in found if "resume=" not in line and not re.search(r"<\w", line))


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the YAML files which the documents tell their readers to write."""
    folder = tmp_path_factory.mktemp("reader")
    for document in DOCUMENTS:
        for name, block in re.findall(
            r"`([\w/.-]+\.yaml)`:\n\n```yaml\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL
        ):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block)
    return folder


@pytest.mark.parametrize("command", commands())
def test_commands_compose(command: str, readers_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(readers_folder)
    monkeypatch.setenv("HOME", "/home/reader")
    _, *words = shlex.split(os.path.expandvars(command), comments=True)
    register_schema()
    request = cli.parse(words)
    if request.help:
        return
    if request.multirun:
        cli.take_sweep_words(request)
    combinations = cli.expand(request.overrides) if request.multirun else [request.overrides]
    for combination in {tuple(combinations[0]), tuple(combinations[-1])}:
        cli.compose_config(request, combination)


def test_the_documents_hold_commands() -> None:
    assert len(commands()) > 20
