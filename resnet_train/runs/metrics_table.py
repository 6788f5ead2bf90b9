"""``metrics.csv``: the numbers of a run, indexed by completed steps."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

from resnet_train.runs.atomic import read_regular, regular_file, sync, write_atomically

logger = logging.getLogger(__name__)

Row = dict[str, float]
# Columns of metrics.csv. Nothing that depends on the clock is among them: two runs of one configuration on one machine
# write the same file, to the byte. What does depend on it (throughput) goes to TensorBoard alone.
COLUMNS = (
    "epoch",
    "lr",
    "loss/train",
    "accuracy/train",
    "gradient_norm",
    "loss/val",
    "accuracy/val",
    "loss/test",
    "accuracy/test",
)
MOST_BYTES = 1 << 30


class MetricsTable:
    """``metrics.csv``: one row for each step at which something was measured, empty cells for what was not."""

    def __init__(self, path: Path, *, from_step: int, measured: dict[int, Row] | None = None) -> None:
        """Open the table of a run that has ``from_step`` completed steps; rows from after that are taken out.

        With ``measured``, the rows that the checkpoint holds, the file is only asked for cells that those do not have.
        """
        self.path = path
        rows = {step: row for step, row in sorted(read_rows(path).items()) if step <= from_step}
        if measured is not None:
            known = {step: row for step, row in measured.items() if step <= from_step}
            lost = len(rows.keys() ^ known.keys()) + sum(
                not _holds(rows[step], known[step]) for step in rows.keys() & known.keys()
            )
            if lost:
                logger.warning("%d rows of %s were lost or corrupt: written anew from the checkpoint", lost, path)
            rows = {step: rows.get(step, {}) | row for step, row in known.items()}
        self.rows = rows
        self.step = max(self.rows, default=-1)  # of the last row
        lines = [",".join(("step", *COLUMNS)), *(line_of(step, row) for step, row in self.rows.items())]
        write_atomically(path, "".join(f"{line}\n" for line in lines))
        self._end = path.stat().st_size
        self._last_row_at = self._end - (len(lines[-1]) + 1)

    @property
    def row(self) -> Row:
        """The last row."""
        return self.rows.get(self.step, {})

    def write(self, step: int, row: Row) -> None:
        """Append a row, or complete the last one if it is of the same step; keys not among `COLUMNS` are left out.

        A row that cannot be written is told in the log, which is not fatal.
        """
        row = self.row | row if step == self.step else row
        line = line_of(step, row).encode() + b"\n"
        start = self._last_row_at if step == self.step else self._end
        try:
            with open(self.path, "r+b", buffering=0, opener=regular_file) as file:
                file.seek(start)
                written = file.write(line)
                if written != len(line) and file.write(line[written:]) != len(line) - written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                file.truncate()  # the row that it completes may have been longer
        except OSError as error:
            # What was written of it is overwritten by the next row, or left out when the run is resumed.
            logger.warning("cannot write the row of step %d to %s: %s; the run continues", step, self.path, error)
            return
        self.step, self.rows[step] = step, row
        self._last_row_at, self._end = start, start + len(line)

    def sync(self) -> None:
        """Wait until the rows are on disk; where that fails, the log says so."""
        try:
            sync(self.path)
        except OSError as error:
            logger.warning("cannot write %s to the disk: %s; the run continues", self.path, error)


def line_of(step: int, row: Row) -> str:
    """A line of the file, without its end."""
    return ",".join((str(step), *(f"{row[column]:.9g}" if column in row else "" for column in COLUMNS)))


def read_rows(path: Path) -> dict[int, Row]:
    """The rows in ``path`` by their steps; corrupt ones are left out, and named in the log."""
    try:
        text = read_regular(path, limit=MOST_BYTES).decode("ascii", errors="replace")
    except FileNotFoundError:
        return {}
    except OSError as error:
        logger.warning("cannot read %s: %s; it is written anew", path, error)
        return {}
    rows: dict[int, Row] = {}
    for line in text.splitlines()[1:]:
        try:
            number, *cells = line.split(",")
            rows[int(number)] = {key: float(cell) for key, cell in zip(COLUMNS, cells, strict=True) if cell}
        except ValueError:
            logger.warning("a row of %s is corrupt and left out: %.80r", path, line)
    return rows


def _holds(row: Row, other: Row) -> bool:
    """Whether ``row`` has all cells of ``other``, as the file shows them."""
    shared = [column for column in COLUMNS if column in other]
    return all(column in row and f"{row[column]:.9g}" == f"{other[column]:.9g}" for column in shared)
