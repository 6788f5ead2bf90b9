"""The walls: which room may import which, from the source's own imports; sizes; and what must not import torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "resnet_train"
# Imports go down this list only.
FLOORS = (
    "train",
    "commands",
    "inference",
    "training",
    "kernels",
    "cli",
    "models",
    "data",
    "runs",
    "config",
    "seeding",
    "errors",
)
NEVER = {
    "kernels": {"cli", "runs"},
    "cli": {"torch", "torchvision", "models"},
    "models": {"data", "runs"},
    "data": {"models"},
    "runs": {"data"},
    "config": {"torch"},
    "errors": {"torch", "numpy", "hydra", "omegaconf"},
}
WITHOUT_TORCH = ("cli", "config", "data", "runs", "errors", "train")
WITH_TORCH = {"data.augment", "data.balance", "data.dataset", "data.stream", "data.transfer"} | {
    f"runs.{name}" for name in ("checkpoint", "environment", "history", "snapshot", "tensorboard", "weights")
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """``cli.main`` for resnet_train/cli/main.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Everything that a module imports, at its top or in a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_what_lies_in_the_package() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert rooms == {"commands", "inference", "training", "kernels", "cli", "models", "data", "runs", "config"}
    assert {path.name for path in PACKAGE.glob("*.py")} == {
        *("__init__.py", "__main__.py", "train.py", "errors.py", "seeding.py")
    }


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.parent != PACKAGE or path.stem in FLOORS], ids=name_of
)
def test_imports_go_down(path: Path) -> None:
    room, *rest = name_of(path).split(".")
    for imported in imports(path):
        top, _, below = imported.partition(".")
        assert top not in NEVER.get(room, ()), imported
        if top != "resnet_train":
            continue
        other = below.partition(".")[0]
        assert FLOORS.index(other) >= FLOORS.index(room), imported
        assert other not in NEVER.get(room, ()), imported
        if room == other == "commands":
            assert below.split(".")[1] == rest[0], f"{imported}: commands do not import each other"
        assert "experimental" not in below or name_of(path).startswith("kernels."), imported


@pytest.mark.slow
def test_hydras_insides_are_nobodys() -> None:
    for path in MODULES:
        assert not [name for name in imports(path) if name.startswith("hydra._internal")], path


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path).startswith(("cli", "train"))], ids=name_of)
def test_the_command_line_has_no_globals(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Global)]


@pytest.mark.slow
def test_torch_is_imported_by_those_who_compute_alone() -> None:
    names = [name_of(path) for path in MODULES if path != PACKAGE / "__init__.py"]
    light = [name for name in names if name.partition(".")[0] in WITHOUT_TORCH and name not in WITH_TORCH]
    modules = ["resnet_train", *(f"resnet_train.{name}" for name in light)]
    probe = (
        "import importlib, sys\nfor name in sys.argv[1:]:\n"
        "  importlib.import_module(name)\n  assert 'torch' not in sys.modules, name"
    )
    done = subprocess.run([sys.executable, "-c", probe, *modules], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_sizes(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno and node.end_lineno - node.lineno < 60, node.name
    fit = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef) and node.name == "fit"]
    assert all(node.end_lineno and node.end_lineno - node.lineno < 45 for node in fit)


@pytest.mark.slow
@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_text_is_utf8(path: Path) -> None:
    """On Windows, text without a named encoding is in that of the country."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        options = {option.arg for option in node.keywords}
        modes = [one.value for one in node.args[:2] if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        text = (
            name in ("read_text", "write_text", "FileHandler", "_File")
            or options & {"text", "universal_newlines"}
            or (ast.unparse(node.func) == "open" and not any("b" in mode for mode in modes))
            or (name in ("TemporaryFile", "NamedTemporaryFile") and any("b" not in mode for mode in modes))
        )
        assert not text or "encoding" in options, ast.unparse(node)
