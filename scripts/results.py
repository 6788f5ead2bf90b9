"""Keep finished runs in docs/results, and write its tables anew.

python scripts/results.py docs/results/runs/MACHINE/DAY RUN...   # copy runs there, then write the tables
python scripts/results.py                                         # only write the tables

What the report reads is kept: configuration, invocation, summary, metrics. Where run and data set lay says nothing to
others and is taken out. A table stands below a line ``<!-- resnet-report FOLDER -->``.
"""

import json
import re
import sys
from pathlib import Path

import yaml

from resnet_train.cli.overrides import key_of
from resnet_train.cli.program import end_with
from resnet_train.commands.report.files import as_markdown
from resnet_train.commands.report.main import read
from resnet_train.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "docs" / "results" / "README.md"
PLACES = ("dataset.root", "hydra.run.dir")
FILES = ("summary.json", "invocation.json", "config.yaml", "metrics.csv")


def check(run: Path, folder: Path) -> None:
    """Raise `ConfigError` before anything is copied."""
    if not folder.is_relative_to(ROOT / "docs" / "results" / "runs"):
        raise ConfigError(f"expected a folder below docs/results/runs first, got {folder}; then the runs")
    if missing := [name for name in FILES if not (run / name).is_file()]:
        raise ConfigError(f"{run}: expected the directory of a finished run, got none of {', '.join(missing)}")
    if (status := json.loads((run / "summary.json").read_text())["status"]) != "finished":
        raise ConfigError(f"{run}: expected a finished run, got one that is {status}; resume it")
    if (folder / run.name).exists():
        raise ConfigError(f"{folder / run.name}: expected a new run, got one that is kept already; remove that first")


def keep(run: Path, folder: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    kept = folder / run.name
    kept.mkdir(parents=True)
    summary["directory"] = kept.relative_to(ROOT).as_posix()
    words = summary["command"].split(" ")
    summary["command"] = " ".join(word for word in words if key_of(word) not in PLACES)
    invocation = json.loads((run / "invocation.json").read_text())
    invocation["overrides"] = [one for one in invocation["overrides"] if key_of(one) not in PLACES]
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["dataset"]["root"] = "data"
    (kept / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    (kept / "invocation.json").write_text(json.dumps(invocation, indent=2) + "\n")
    (kept / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (kept / "metrics.csv").write_bytes((run / "metrics.csv").read_bytes())


def written(text: str) -> str:
    """The document with every table as the report writes it now."""

    def block(found: re.Match[str]) -> str:
        return f"{found[1]}\n{as_markdown(read([str(ROOT / found[2])], 'accuracy'))}\n<!-- end -->"

    return re.sub(r"(<!-- resnet-report (\S+) -->\n).*?<!-- end -->", block, text, flags=re.DOTALL)


def main() -> int:
    if len(sys.argv) > 1:
        folder, runs = Path(sys.argv[1]).resolve(), [Path(name) for name in sys.argv[2:]]
        for run in runs:
            check(run, folder)
        for run in runs:
            keep(run, folder)
    TABLES.write_text(written(TABLES.read_text()))
    return 0


if __name__ == "__main__":
    end_with("results", main)
