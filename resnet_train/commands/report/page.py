"""``resnet-report --html``: one file with tables, curves and evaluations, which opens from the disk and asks nobody.

Plotly's JavaScript, the page's own (``assets/``) and the data are inlined. A Content-Security-Policy lets the browser
run these two scripts alone, by their hashes, and load nothing from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from string import Template

from resnet_train.commands.report.groups import Group
from resnet_train.commands.report.page_data import page_data
from resnet_train.commands.report.records import RunRecord
from resnet_train.errors import ConfigError, RunError
from resnet_train.runs.atomic import write_atomically

ASSETS = Path(__file__).with_name("assets")
SCRIPTS = ("base.js", "tables.js", "curves.js", "evaluations.js", "start.js")  # in this order, as one script


def write_page(groups: Sequence[Group], records: Sequence[RunRecord], path: Path, *, metric: str) -> None:
    """Write the page of ``records``, gathered into ``groups`` (best first by ``metric``), to ``path``, atomically.

    What cannot be read of them is left out, and named on the page. Raises `ConfigError` where plotly is not installed
    or ``path`` has no folder, `RunError` where it cannot be written.
    """
    plotly = plotly_script()
    if not path.parent.is_dir():
        raise ConfigError(f"--html: expected a file in a folder that exists, got {str(path)!r}; make {path.parent}")
    data = json.dumps(page_data(groups, records, metric=metric), allow_nan=False, separators=(",", ":"))
    try:
        write_atomically(path, assemble(data, plotly))
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; choose another file with --html") from error


def plotly_script() -> str:
    """Plotly's JavaScript, from its Python package; raises `ConfigError` where that is not installed."""
    try:
        return str(import_module("plotly.offline").get_plotlyjs())
    except ImportError:
        fix = 'pip install "resnet-train[report]"'
        raise ConfigError(f"--html draws with plotly, which is not installed; {fix}") from None


def assemble(data: str, plotly: str) -> str:
    """The page around ``data``, a JSON text."""
    scripts = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    own = f'(() => {{\n"use strict";\n{scripts}}})();'
    return Template((ASSETS / "page.html").read_text(encoding="utf-8")).substitute(
        policy=f"default-src 'none'; script-src {hash_of(plotly)} {hash_of(own)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'",
        css=(ASSETS / "page.css").read_text(encoding="utf-8"),
        data=data.replace("<", "\\u003c"),  # JSON has it in strings alone: no "</script>" or "<!--" can end the data
        plotly=plotly,
        js=own,
    )


def hash_of(script: str) -> str:
    """The source of an inline script, as a Content-Security-Policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
