"""Fixtures around the files of a run directory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def seal() -> Callable[[bytes], bytes]:
    """A checkpoint file as version 0.1 wrote it, from the archive that ``torch.save`` makes: what must stay readable.

    The checksum of all before it is the archive's comment, whose length stands in the two bytes before.
    """

    def sealed(archive: bytes) -> bytes:
        assert archive[-22:-18] == b"PK\x05\x06" and archive[-2:] == b"\0\0", "an archive without a comment"
        body = archive[:-2] + (7 + 64).to_bytes(2, "little")
        return body + b"sha256:" + hashlib.sha256(body).hexdigest().encode()

    return sealed
