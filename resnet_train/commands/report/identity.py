"""Which runs are of one configuration: those that agree in every key that changes results, but for the seed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from resnet_train.cli.overrides import key_of
from resnet_train.commands.report.records import RunRecord
from resnet_train.runs.resume import CHANGEABLE

# What changes no result, or no more than rounding, as at resume; the length of a run and its precision do.
FREE = (CHANGEABLE - {"epochs", "steps", "precision"}) | {"seed"}
# Among those, what one may want to compare: it tells runs apart where overrides give it and it differs.
ON_REQUEST = frozenset({"channels_last", "compile", "deterministic", "device", "graph", "kernels"})


def identity(flat: dict[str, Any], requested: Collection[str] = ()) -> dict[str, str]:
    """What makes a configuration, given by dotted keys, what it is; ``requested`` as in `requested_keys`.

    A key without a value is left out: a run of an earlier version may not have it.
    """
    free = FREE - set(requested)
    if flat.get("dataset.val_size"):
        free -= {"eval_every"}  # the best checkpoint is chosen at evaluations
    if flat.get("dataset.name") == "imagefolder":
        free -= {"dataset.root", "dataset.labels"}
    return {key: text_of(value) for key, value in flat.items() if key not in free and value is not None}


def effective(record: RunRecord) -> dict[str, Any]:
    """The configuration by dotted keys, with the precision that was used where ``auto`` was asked for."""
    return record.flat | ({"precision": record.precision} if record.precision else {})


def requested_keys(records: Iterable[RunRecord]) -> set[str]:
    """Keys of ON_REQUEST that overrides give and in which ``records`` differ."""
    records = list(records)
    given = {key_of(override) for record in records for override in record.overrides} & ON_REQUEST
    return {key for key in given if len({text_of(record.flat.get(key)) for record in records}) > 1}


def text_of(value: Any) -> str:
    """A value as overrides write it: ``null``, ``true``, ``[1,2]``."""
    if isinstance(value, list):
        return f"[{','.join(map(text_of, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
