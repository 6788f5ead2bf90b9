"""What versions before did where they lacked a key of today: a saved configuration without it means that.

Here stand keys alone whose default is another than the behaviour before them, or differs between options.
"""

from __future__ import annotations

from typing import Any

FORMER: dict[str, dict[str, Any]] = {
    "dataset": {"channels": 3},  # until 0.2.0: grey images as three equal channels
}


def with_former(saved: dict[str, Any]) -> dict[str, Any]:
    """``saved``, a plain nested configuration, with the keys that it lacks as its version behaved."""
    former = {group: values for group, values in FORMER.items() if isinstance(saved.get(group), dict)}
    return saved | {group: values | saved[group] for group, values in former.items()}
