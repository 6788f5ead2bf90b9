"""Bring a file of known MD5 from the first mirror that delivers it, and continue a download that broke off."""

from __future__ import annotations

import http.client
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from resnet_train.data.files import md5_of, one_line

logger = logging.getLogger(__name__)

CHUNK = 1 << 16  # bytes read at most at a time: the progress bar moves, and CIFAR's 170 MB are 2,600 reads


class MirrorError(Exception):
    """A mirror did not deliver; the message says why, shortly."""


def fetch_from_mirrors(mirrors: Sequence[str], part: Path, md5: str, *, title: str, timeout_seconds: float) -> None:
    """Bring the file, verified, to ``part`` from the first mirror that delivers it.

    What an earlier mirror or run left in ``part`` is continued: the MD5 at the end proves that all mirrors sent pieces
    of the same file. Raises `MirrorError` with all reasons if no mirror delivers; ``part`` then keeps what came.
    """
    if part.is_file() and md5_of(part) == md5:
        return
    reasons = []
    for url in mirrors:
        logger.info("downloading %s from %s", title, url)
        try:
            fetch_verified(url, part, md5, timeout_seconds=timeout_seconds)
            return
        except MirrorError as error:
            logger.warning("no %s from %s: %s", title, url, error)
            reasons.append(f"{url}: {error}")
    raise MirrorError("; ".join(reasons))


def fetch_verified(url: str, part: Path, md5: str, *, timeout_seconds: float) -> None:
    """Bring ``url`` to ``part`` and check it; raises `MirrorError`, and removes ``part`` if all came and is wrong."""
    continued = fetch(url, part, timeout_seconds=timeout_seconds)
    got = md5_of(part)
    if got == md5:
        return
    part.unlink()
    if not continued:
        raise MirrorError(f"another file (expected MD5 {md5}, got {got})")
    # Perhaps only the bytes that lay there before are wrong: once more, from the start.
    fetch_verified(url, part, md5, timeout_seconds=timeout_seconds)


def fetch(url: str, part: Path, *, timeout_seconds: float) -> bool:
    """Bring ``url`` to ``part``, continuing what lies there; return whether it was continued.

    Raises `MirrorError` if the server refuses or breaks off, in which case ``part`` keeps what came.
    """
    offset = part.stat().st_size if part.is_file() else 0
    with request(url, offset, timeout_seconds=timeout_seconds) as response:
        start = first_byte(response)
        if start in (0, offset):
            if response.headers.get_content_type() == "text/html":  # before it overwrites what lies there
                raise MirrorError("a web page")
            save(response, part, start, timeout_seconds=timeout_seconds)
            return start > 0
    if offset == 0:
        raise MirrorError("a piece from the middle")
    part.unlink()  # longer than the file on the server, or the server sent another piece: from the start
    return fetch(url, part, timeout_seconds=timeout_seconds)


def first_byte(response: Any) -> int:
    """Position in the file of the first byte of the body; -1 if it is none of the file's."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        return int(match[1]) if match else -1
    # 200: a server that does not know ranges sends the whole file. A file:// address has no status.
    return -1 if response.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE else 0


def request(url: str, offset: int, *, timeout_seconds: float) -> Any:
    """Ask for ``url`` from byte ``offset`` on, and return the response; 416, nothing from there on, is an answer too.

    Raises `MirrorError` for any other refusal, and where nobody answers.
    """
    headers = {"User-Agent": "resnet-train"} | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        if urlsplit(url).scheme not in ("http", "https", "file"):
            raise MirrorError("not an address that begins with http, https or file")
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout_seconds)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            return error
        error.close()
        raise MirrorError(f"HTTP {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MirrorError(reason(error, timeout_seconds)) from error


def save(response: Any, part: Path, start: int, *, timeout_seconds: float) -> None:
    """Write the body to ``part`` from byte ``start`` on, under a progress bar; raises `MirrorError` if it is cut short.

    An ``OSError`` of the disk passes through: it is not the mirror's fault.
    """
    length = response.headers.get("Content-Length") or ""
    total = start + int(length) if length.isdecimal() else None
    received = start
    with (
        part.open("ab" if start else "wb") as file,
        tqdm(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True, disable=None) as bar,
    ):
        for chunk in chunks(response, timeout_seconds):
            file.write(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    if total is not None and received < total:
        raise MirrorError(f"broke off after {received} of {total} bytes")


def chunks(response: Any, timeout_seconds: float) -> Iterator[bytes]:
    """The body, as it arrives; raises `MirrorError` when the connection fails."""
    try:
        while chunk := response.read1(CHUNK):  # read would wait for a full chunk, and lose a part of one
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise MirrorError(reason(error, timeout_seconds)) from error


def reason(error: Exception, timeout_seconds: float) -> str:
    """Why the network failed, in a few words."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer for {timeout_seconds:g} s"
    return one_line(cause)
