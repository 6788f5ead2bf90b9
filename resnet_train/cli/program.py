"""How every program beside ``resnet-train`` ends: with an exit code, and one line for whatever goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from resnet_train.cli.main import fail
from resnet_train.cli.streams import make_best_effort


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
