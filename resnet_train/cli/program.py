"""How every program beside ``resnet-train`` begins and ends: one line for whatever goes wrong, and an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from resnet_train.cli.main import fail
from resnet_train.cli.streams import make_best_effort
from resnet_train.runs.console import printable


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line, without the usage around it."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: {printable(message)}; {self.prog} --help says more\n")


def end_with(program: str, body: Callable[[], int]) -> NoReturn:
    """Exit with the code that ``body`` returns; 130 after Ctrl-C; 1 or 2 and one line on stderr for an error."""
    make_best_effort()
    try:
        code = body()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except Exception as error:
        code = fail(program, error)
    sys.exit(code)
