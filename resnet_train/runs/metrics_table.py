"""``metrics.csv``: the numbers of a run, indexed by completed steps."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

from resnet_train.runs.atomic import write_atomically

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


class MetricsTable:
    """``metrics.csv``: one row for each step at which something was measured, empty cells for what was not."""

    def __init__(self, path: Path, *, from_step: int) -> None:
        """Open the table of a run that has ``from_step`` completed steps; rows from after that are taken out."""
        self.path = path
        self.step = -1  # of the last row
        self.row: Row = {}  # the last row
        rows = [",".join(("step", *COLUMNS))]
        if path.exists():
            for line in path.read_text(encoding="ascii", errors="replace").splitlines()[1:]:
                try:
                    number, *cells = line.split(",")
                    step = int(number)
                    row = {key: float(cell) for key, cell in zip(COLUMNS, cells, strict=True) if cell}
                except ValueError:
                    logger.warning("a row of %s is corrupt and left out: %.80r", path, line)
                    continue
                if step <= from_step:
                    rows.append(line)
                    self.step, self.row = step, row
        write_atomically(path, "".join(f"{row}\n" for row in rows))
        self._end = path.stat().st_size
        self._last_row_at = self._end - (len(rows[-1]) + 1)

    def write(self, step: int, row: Row) -> None:
        """Append a row, or complete the last one if it is of the same step; keys not among `COLUMNS` are left out.

        A row that cannot be written is told in the log, which is not fatal.
        """
        row = self.row | row if step == self.step else row
        cells = (f"{row[column]:.9g}" if column in row else "" for column in COLUMNS)
        line = ",".join((str(step), *cells)).encode() + b"\n"
        start = self._last_row_at if step == self.step else self._end
        try:
            with open(self.path, "r+b", buffering=0) as file:
                file.seek(start)
                written = file.write(line)
                if written != len(line) and file.write(line[written:]) != len(line) - written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                file.truncate()  # the row that it completes may have been longer
        except OSError as error:
            # What was written of it is overwritten by the next row, or left out when the run is resumed.
            logger.warning("cannot write the row of step %d to %s: %s; the run continues", step, self.path, error)
            return
        self.step, self.row = step, row
        self._last_row_at, self._end = start, start + len(line)
