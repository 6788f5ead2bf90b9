"""Writes a checkpoint file with its checksum on the way: no byte of it is copied in between.

The thread that writes keeps the interpreter from the one that trains while Python copies bytes, not while a file is
written or a checksum computed.
"""

from __future__ import annotations

import hashlib
from typing import BinaryIO

from resnet_train.runs.checkpoint_file import CHECKSUM_LENGTH, END_LENGTH, PREFIX, is_bare_end


class SealingWriter:
    """What ``torch.save`` is given in place of ``file``; `seal` ends it as `checkpoint_file` describes.

    An ``OSError`` is kept until then, since torch would put an error of its own in its place.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()
        self._held = b""  # the last bytes so far: those at the end are changed
        self._error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write all but the last bytes."""
        if len(data) > END_LENGTH:
            self._pass_on(self._held)
            self._pass_on(data[:-END_LENGTH])
            self._held = bytes(data[-END_LENGTH:])
        else:
            joined = self._held + bytes(data)
            self._pass_on(joined[:-END_LENGTH])
            self._held = joined[-END_LENGTH:]
        return len(data)

    def flush(self) -> None:
        """Nothing: there are bytes that must not be written yet."""

    def seal(self) -> None:
        """Write the end, with the checksum of all that stands before it as the archive's comment; raises ``OSError``.

        Call it once, when ``torch.save`` has returned.
        """
        assert is_bare_end(self._held), "expected a ZIP archive without a comment"
        self._pass_on(self._held[:-2] + CHECKSUM_LENGTH.to_bytes(2, "little"))
        if self._error is not None:
            raise self._error
        self._file.write(PREFIX + self._hash.hexdigest().encode())

    def _pass_on(self, data: bytes | memoryview) -> None:
        try:
            if self._error is None:
                self._file.write(data)
                self._hash.update(data)
        except OSError as error:
            self._error = error
