"""The command line of ``resnet-bench``."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from resnet_train.cli.compose import offline_config
from resnet_train.cli.overrides import merge_overrides
from resnet_train.cli.program import Parser, end_with
from resnet_train.commands.bench.first_step import first_step
from resnet_train.commands.bench.table import table
from resnet_train.errors import ConfigError, RunError

LOOPS = ("tutorial", "tuned", "resnet-train")


def parser() -> argparse.ArgumentParser:
    """The flags of the program."""
    found = Parser(
        prog="resnet-bench",
        description="Compare training loops on this machine. Overrides are those of resnet-train: model=resnet18 ...",
        epilog="example: resnet-bench model=resnet20 --rounds 3 --variant compile=true",
    )
    found.add_argument("overrides", nargs="*", help="e.g. model=resnet18 batch_size=128")
    found.add_argument("--rounds", type=int, default=5, help="rounds of each loop (default 5)")
    found.add_argument("--seconds", type=float, default=8.0, help="length of a round of one loop (default 8)")
    found.add_argument("--loops", default=",".join(LOOPS), help=f"loops to compare (default {','.join(LOOPS)})")
    found.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="OVERRIDES",
        help="resnet-train once more, with these values changed, e.g. 'compile=true'; can be given several times",
    )
    found.add_argument("--json", metavar="FILE", help="write all figures to FILE")
    return found


def split(text: str) -> list[str]:
    """Overrides apart at spaces outside quotes, as shells do; a backslash stands for itself, as in paths of Windows."""
    words = shlex.shlex(text, posix=True)
    words.whitespace_split, words.escape, words.commenters = True, "", ""
    return list(words)


def main() -> None:
    """``resnet-bench``, ``python -m resnet_train.commands.bench.main``."""
    arguments = parser().parse_intermixed_args()
    end_with("resnet-bench", lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Measure and print what the command line asks for."""
    loops = tuple(arguments.loops.split(","))
    if not set(loops) <= set(LOOPS) or arguments.rounds < 1 or arguments.seconds <= 0:
        raise ConfigError(f"expected --loops among {','.join(LOOPS)}, --rounds and --seconds above 0")
    config, overrides, note = offline_config(arguments.overrides)
    variants = {text.strip(): offline_config(merge_overrides(overrides, split(text)))[0] for text in arguments.variant}
    from resnet_train.commands.bench.rounds import measure, tell

    report = measure(config, variants, loops=loops, rounds=arguments.rounds, seconds=arguments.seconds)
    if "resnet-train" in loops:
        tell("starting resnet-train twice, to its first step")
        report["first_step"] = first_step(overrides)
    report["images"] = note
    print(table(report))
    if arguments.json:
        try:
            Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot write {arguments.json}: {error.strerror or error}") from error
    return 0


if __name__ == "__main__":
    main()
