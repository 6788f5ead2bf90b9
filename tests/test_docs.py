"""The documents say what the code does: keys, defaults, recipes, rooms, links, commands, snippets, names of tests."""

from __future__ import annotations

import os
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from resnet_train import run
from resnet_train.cli.compose import compose as compose_request
from resnet_train.cli.compose import started
from resnet_train.cli.explain import known_keys
from resnet_train.cli.overrides import parse
from resnet_train.cli.sweep import expand, take_sweep_options
from resnet_train.config.run import Config
from resnet_train.config.store import options_of
from resnet_train.runs.resume import CHANGEABLE
from tests.conftest import Shell

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "resnet_train", ROOT / "tests"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
READMES = ("README.md", "README.zh-CN.md")
GROUPS = ("model", "dataset", "optim", "schedule", "experiment")
# One option for each set of values that the files of a group can hold.
OPTIONS = {
    "": ("model=resnet20",),
    "model": ("model=resnet20", "model=plain20", "model=resnet18", "model=plain18"),
    "dataset": (
        "dataset=cifar10",
        "dataset=cifar100",
        *("dataset=mnist", "dataset=fashion_mnist", "dataset=kmnist", "dataset=medmnist"),
        *("dataset=svhn", "dataset=stl10", "dataset=tiny_imagenet", "dataset=imagenette", "dataset=eurosat"),
        "dataset=imagefolder",
        "dataset=synthetic",
    ),
    "optim": ("optim=sgd", "optim=adamw"),
    "schedule": ("schedule=cosine", "schedule=linear", "schedule=multistep", "schedule=constant"),
}


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


def section(document: str, heading: str) -> str:
    """The text below ``## heading``, up to the next heading of that level."""
    _, found, rest = text_of(document).partition(f"\n## {heading}\n")
    assert found, f"{document} has no section {heading!r}"
    return rest.partition("\n## ")[0]


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
    table = {row[0].strip("`"): row for row in rows(section("docs/configuration.md", "Groups"))}
    for group in ("model", "dataset", "optim", "schedule"):
        assert set(literals(table[group][1])) == set(options_of(group))


@pytest.mark.slow
@pytest.mark.parametrize("group", OPTIONS)
def test_documented_defaults(group: str, compose: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESNET_TRAIN_DATA", raising=False)
    monkeypatch.delenv("RESNET_TRAIN_FASHION_MNIST", raising=False)
    table = {key: literals(row[4]) for key, row in key_rows().items()}
    seen: dict[str, list[Any]] = {}
    for option in OPTIONS[group]:
        config = compose(option, *(["dataset.root=images"] if option == "dataset=imagefolder" else []))
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


def test_what_may_change_when_a_run_is_resumed() -> None:
    listed = section("docs/runs.md", "Resume").partition("Each such change")[0]
    named = {key for row in rows(listed) for key in literals(row[0])}
    assert named | {"resume"} == CHANGEABLE


# --------------------------------------------------------------------------------------------------------------- README


def test_the_layout_names_every_room() -> None:
    listed = [row[0].strip("`") for row in rows(section("README.md", "Source"))[1:]]
    rooms = [f"{path.name}/" for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()]
    assert sorted(listed) == sorted(["train.py", *rooms])


def test_every_recipe_is_listed() -> None:
    listed = [row[0].strip("`") for row in rows(section("README.md", "Recipes"))[1:]]
    assert sorted(listed) == sorted(options_of("experiment"))


# -------------------------------------------------------------------------------------------------------- README.zh-CN


def code_of(document: str) -> list[tuple[str, list[str]]]:
    """Its code blocks, each with its language, without comments."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text_of(document), re.MULTILINE | re.DOTALL)
    return [(language, [re.sub(r"\s*# .*$", "", line) for line in code.splitlines()]) for language, code in found]


def test_the_chinese_readme_has_the_same_code() -> None:
    assert code_of("README.md") == code_of("README.zh-CN.md")
    assert len(code_of("README.md")) > 10


def test_the_chinese_readme_is_complete() -> None:
    """Headings, links, tables, and in each row of a table its figures and code."""
    one, other = (re.sub(r"^```.*?^```", "", text_of(name), flags=re.MULTILINE | re.DOTALL) for name in READMES)
    assert re.findall(r"^#+(?= )", one, re.MULTILINE) == re.findall(r"^#+(?= )", other, re.MULTILINE)
    links = [sorted(re.findall(r"\]\(([^)\s]+)\)", text)) for text in (one, other)]
    assert [link for link in links[0] if link not in READMES] == [link for link in links[1] if link not in READMES]
    tables = [re.findall(r"^\|.*", text, re.MULTILINE) for text in (one, other)]
    assert [line.count("|") for line in tables[0]] == [line.count("|") for line in tables[1]]
    figures_and_code = re.compile(r"`[^`]+`|\d[\d.,]*\d|\d")
    for pair in zip(rows(one), rows(other), strict=True):
        assert len({str([sorted(figures_and_code.findall(cell)) for cell in row]) for row in pair}) == 1, pair


# --------------------------------------------------------------------------------------------------------- docs/results


@pytest.mark.slow
def test_results_are_what_the_report_writes() -> None:
    """Over the files of the runs, which lie there without checkpoints and without places on a machine."""
    text = text_of("docs/results/README.md")
    assert text.count("<!-- resnet-report ") >= 2
    assert runpy.run_path(str(ROOT / "scripts" / "results.py"))["written"](text) == text
    cells = {cell.strip() for line in text.splitlines() if line.startswith("| ") for cell in line.split("|")}
    assert set(re.findall(r"Test accuracy ([\d.]+(?: ± [\d.]+)?) %", text)) <= cells, "rounded in two ways"
    for path in ROOT.glob("docs/results/runs/*/*/*/*"):
        assert path.name in ("config.yaml", "invocation.json", "summary.json", "metrics.csv")
        assert not re.search(r"/(tmp|home|root|work)/", path.read_text()), path


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


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/performance.md"])
def test_named_files_exist(document: str) -> None:
    """``conf/model/resnet44.yaml`` from the root of the checkout, ``csrc/batch.cpp`` somewhere in the package."""
    names = re.findall(r"`([\w/.]+\.(?:py|cpp|yaml))`", text_of(document))
    assert names
    for name in names:
        assert (ROOT / name).is_file() or [*PACKAGE.glob(f"**/{name}"), *TESTS.glob(f"**/{name}")], name


def test_named_tests_exist() -> None:
    found: set[str] = set()
    for path in TESTS.rglob("test_*.py"):
        relative = path.relative_to(TESTS).as_posix()
        found |= {path.name, relative, f"tests/{relative}"}
        found |= set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        named = re.findall(r"`((?:[\w/]+/)?test_\w+(?:\.py)?)`|(tests/[\w/]+\.py)", document.read_text())
        assert {name for pair in named for name in pair if name} <= found, document


def lines_of_code(*programs: str) -> list[str]:
    """Lines of shell code that begin with one of ``programs``, those that are continued in one piece."""
    return sorted(
        {
            line
            for document in DOCUMENTS
            for block in blocks(document.read_text(), "bash")
            for line in re.sub(r"\\\n *", "", block).splitlines()
            if line.startswith(programs)
        }
    )


def commands() -> list[str]:
    """Those that can be composed without a run, images or plugins of the reader's own."""
    lines = [
        line.replace("scripts/train", "resnet-train", 1) for line in lines_of_code("resnet-train", "scripts/train")
    ]
    return [line for line in lines if not re.search(r"resume=|hydra/|<\w", line)]


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


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_commands_compose(command: str, readers_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(readers_folder)
    monkeypatch.setenv("HOME", "/home/reader")
    _, *arguments = shlex.split(os.path.expandvars(command), comments=True)
    request = parse(arguments)
    if request.help:
        return
    jobs = [list(request.overrides)]
    if request.multirun:
        _, request = take_sweep_options(request)
        with started(request):
            jobs = list(expand(request.overrides))
    for job in (jobs[0], jobs[-1])[: len(jobs)]:
        compose_request(request, job)


def test_the_documents_hold_commands() -> None:
    assert len(commands()) > 20


def test_flags_of_the_other_commands_exist() -> None:
    known = set(re.findall(r'"(--[\w-]+)"', "".join(path.read_text() for path in PACKAGE.glob("commands/**/*.py"))))
    programs = ("resnet-bench", "resnet-verify", "resnet-eval", "resnet-predict", "resnet-export", "resnet-report")
    lines = [*lines_of_code(*programs), (ROOT / "scripts/torture").read_text()]
    flags = {flag for line in lines for flag in re.findall(r"(?<=\s)--[\w-]+", line)}
    assert {"--variant", "--kills"} <= flags <= known


@pytest.mark.slow
def test_the_commands_for_trained_networks_run(tmp_path: Path, shell: Shell) -> None:
    """Those of docs/commands.md, in their order; its reader has a few photos."""
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (40 + number, 30), "red").save(tmp_path / "photos" / f"{number}.png")
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "photo.png")
    lines = "".join(blocks(text_of("docs/commands.md"), "bash")).splitlines()
    assert len(lines) > 2
    for line in lines:
        if "|" in line:
            code, _, err = shell.call("-euo", "pipefail", "-c", line, program=("bash",))
        else:
            program, *arguments = shlex.split(line)
            code, _, err = shell.call(*arguments, program=program)
        assert code == 0, f"{line}\n{err}"


# ------------------------------------------------------------------------------------------------------------- snippets


def snippets() -> list[Any]:
    """The Python code of the documents, once each, with the last place where it stands."""
    places = {
        block: f"{document.relative_to(ROOT)}-{number}"
        for document in DOCUMENTS
        for number, block in enumerate(blocks(document.read_text(), "python"), 1)
    }
    return [pytest.param(block, id=place) for block, place in places.items()]


@pytest.mark.slow
@pytest.mark.parametrize("snippet", snippets())
def test_python_snippets_run(
    snippet: str, tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for directory in re.findall(r'"(outputs/[\w/-]+?)/checkpoints/', snippet):  # a run of the reader's own
        run(tiny("epochs=null", "steps=1"), directory=tmp_path / directory)
    if "photo.png" in snippet:
        run(tiny("epochs=null", "steps=1"), directory=tmp_path / "outputs" / "demo")
        Image.new("RGB", (40, 30), "red").save("photo.png")
    exec(compile(snippet, "snippet", "exec"), {"__name__": "snippet"})
