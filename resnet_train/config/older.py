"""What versions before did where they lacked a key of today: a saved configuration without it means that."""

from __future__ import annotations

from typing import Any

# Of keys whose default is another than the behaviour before them, or differs between options.
FORMER: dict[str, dict[str, Any]] = {
    "dataset": {"channels": 3},  # until 0.2.0: grey images as three equal channels
}
# Of all other keys that change a run: flat, since not every option has each of them.
NEWER: dict[str, Any] = {
    "balanced_sampling": False,
    "class_weights": "none",
    "dataset.labels": None,
    "dataset.test_fraction": 0.2,
    "dataset.val_fraction": 0.0,
    "early_stop.min_delta": 0.0,
    "early_stop.patience": None,
    "freeze": [],
    "max_time": None,
}


def with_former(saved: dict[str, Any]) -> dict[str, Any]:
    """``saved``, a plain nested configuration, with the keys that it lacks as its version behaved."""
    former = {group: values for group, values in FORMER.items() if isinstance(saved.get(group), dict)}
    return saved | {group: values | saved[group] for group, values in former.items()}
