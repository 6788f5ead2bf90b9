"""Downloads from mirrors that misbehave: continued, verified, done once."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from resnet_train.config.dataset import Cifar10Config
from resnet_train.data.archive import obtain
from resnet_train.data.available import check_available
from resnet_train.data.cifar import load_cifar
from resnet_train.data.published import Source
from resnet_train.errors import ConfigError
from tests.data.conftest import Mirror, Published


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def get(published: Published, root: Path, mirrors: list[str]) -> Path:
    return obtain(published.archive, Source(root, True, mirrors, timeout_seconds=0.5))


def assert_whole(published: Published, folder: Path) -> None:
    """All files are there as published, and nothing but the lock file lies beside their folder."""
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == published.files
    assert {path.name for path in folder.parent.iterdir()} == {"small", "small.tar.gz.lock"}


def test_a_download_is_unpacked_and_removed(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    assert_whole(published, get(published, tmp_path / "new" / "root", mirror("good")))
    assert mirror.requests == [("/good", None)]
    get(published, tmp_path / "new" / "root", mirror("good"))
    assert len(mirror.requests) == 1


def test_a_file_address_is_a_mirror(published: Published, tmp_path: Path) -> None:
    source = tmp_path / "source.tar.gz"
    source.write_bytes(published.content)
    assert_whole(published, get(published, tmp_path / "root", [source.as_uri()]))


def test_load_cifar_downloads_what_is_missing(
    mirror: Mirror, tmp_path: Path, cifar10: Callable[..., Cifar10Config], ways: str, exactly: Callable[[str], str]
) -> None:
    dataset = cifar10(tmp_path, download=True, mirrors=tuple(mirror("missing", "wrong")))
    check_available(dataset)
    message = (
        f"dataset.mirrors: expected cifar-10-python.tar.gz from one of 2, got {mirror.url}/missing: HTTP 404 Not Found"
        f"; {mirror.url}/wrong: another file (expected MD5 c58f30108f718f92721af3b95e74349a, got "
        f"{md5(b'not the archive' * 1000)}); try again later, {ways}"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        load_cifar(dataset)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing", "HTTP 404 Not Found"),
        ("page", "a web page"),
        ("wrong", "another file (expected MD5 ..., got ...)"),
        ("middle", "a piece from the middle"),
    ],
)
def test_a_useless_mirror_is_skipped_with_a_warning(
    published: Published,
    mirror: Mirror,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    path: str,
    reason: str,
    exactly: Callable[[str], str],
) -> None:
    assert_whole(published, get(published, tmp_path, mirror(path, "good")))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert re.match(exactly(f"no Small from {mirror.url}/{path}: {reason}"), warning)
    assert mirror.requests[-1] == ("/good", None)  # nothing of the useless bytes was kept


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://localhost/small.tar.gz", "not an address that begins with http, https or file"),
        ("small.tar.gz", "not an address that begins with http, https or file"),
        ("http://localhost:port/small.tar.gz", "nonnumeric port: 'port'"),
        ("http://[localhost/small.tar.gz", "Invalid IPv6 URL"),
        ("http://127.0.0.1:1/small.tar.gz", "[Errno ...] Connection refused"),
        ("file:///none/small.tar.gz", "[Errno 2] No such file or directory: '/none/small.tar.gz'"),
    ],
)
def test_an_address_that_cannot_be_asked_is_named(
    published: Published,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    reason: str,
    exactly: Callable[[str], str],
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    message = f"dataset.mirrors: expected small.tar.gz from one of 1, got {url}: {reason}; try again later, ..."
    with pytest.raises(ConfigError, match=exactly(message)):
        get(published, tmp_path, [url])


@pytest.mark.parametrize(
    ("path", "reason"), [("cut", "broke off after {half} of {size} bytes"), ("hang", "no answer for 0.5 s")]
)
def test_a_broken_download_is_continued_at_the_next_mirror(
    published: Published, mirror: Mirror, tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str, reason: str
) -> None:
    assert_whole(published, get(published, tmp_path, mirror(path, "good")))
    size = len(published.content)
    assert mirror.requests == [(f"/{path}", None), ("/good", f"bytes={size // 2}-")]
    warning = f"no Small from {mirror.url}/{path}: {reason.format(half=size // 2, size=size)}"
    assert warning in [record.getMessage() for record in caplog.records]


def test_a_broken_download_is_continued_at_the_next_run(
    published: Published, mirror: Mirror, tmp_path: Path, exactly: Callable[[str], str]
) -> None:
    half, size = len(published.content) // 2, len(published.content)
    message = (
        f"dataset.mirrors: expected small.tar.gz from one of 1, got {mirror.url}/cut: broke off after {half} of {size} "
        f"bytes; run again, the download continues where it stopped, or name the folder that holds small/ or "
        f"small.tar.gz with dataset.root=FOLDER or the environment variable RESNET_TRAIN_DATA, or take "
        f"dataset=synthetic, which needs no file"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        get(published, tmp_path, mirror("cut"))
    assert (tmp_path / "small.tar.gz.part").read_bytes() == published.content[:half]
    assert_whole(published, get(published, tmp_path, mirror("good")))
    assert mirror.requests[-1] == ("/good", f"bytes={half}-")


@pytest.mark.parametrize(
    ("path", "requests"),
    [
        ("no-range", 1),  # 200 instead of 206
        ("shifted", 2),  # 206 with another piece than asked for
    ],
)
def test_a_server_without_ranges_starts_over(
    published: Published, mirror: Mirror, tmp_path: Path, path: str, requests: int
) -> None:
    (tmp_path / "small.tar.gz.part").write_bytes(published.content[:1000])
    assert_whole(published, get(published, tmp_path, mirror(path)))
    assert mirror.requests == [(f"/{path}", "bytes=1000-"), (f"/{path}", None)][:requests]


def test_a_page_does_not_overwrite_what_was_downloaded(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "small.tar.gz.part").write_bytes(published.content[:1000])
    assert_whole(published, get(published, tmp_path, mirror("page", "good")))
    assert mirror.requests[-1] == ("/good", "bytes=1000-")


@pytest.mark.parametrize("longer", [0, 1])
def test_a_part_beyond_the_end_starts_over(published: Published, mirror: Mirror, tmp_path: Path, longer: int) -> None:
    size = len(published.content)
    (tmp_path / "small.tar.gz.part").write_bytes(b"x" * (size + longer))
    assert_whole(published, get(published, tmp_path, mirror("good")))
    assert mirror.requests == [("/good", f"bytes={size + longer}-"), ("/good", None)]  # 416 to the first


def test_wrong_bytes_before_the_continuation_start_over_once(
    published: Published, mirror: Mirror, tmp_path: Path
) -> None:
    (tmp_path / "small.tar.gz.part").write_bytes(b"x" * 1000)
    assert_whole(published, get(published, tmp_path, mirror("good")))
    assert mirror.requests == [("/good", "bytes=1000-"), ("/good", None)]


def test_a_whole_part_needs_no_mirror(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "small.tar.gz.part").write_bytes(published.content)
    assert_whole(published, get(published, tmp_path, mirror("missing")))
    assert mirror.requests == []


@pytest.mark.slow
def test_two_processes_download_once(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(obtain, published.archive, Source(tmp_path, True, mirror("slow"))) for _ in range(2)]
        assert [future.result() for future in futures] == [tmp_path / "small"] * 2
    assert_whole(published, tmp_path / "small")
    assert mirror.completed == ["/slow"]


def test_the_second_waits_for_the_first(
    published: Published, mirror: Mirror, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    waiting = re.compile(
        rf"waiting for (process {os.getpid()} on .+|another process), which holds {tmp_path}/small.tar.gz.lock"
    )

    def waits() -> bool:
        return any(map(waiting.fullmatch, caplog.messages))

    with ThreadPoolExecutor(2) as pool:  # a lock belongs to an open file, so threads are as good as processes
        futures = [pool.submit(obtain, published.archive, Source(tmp_path, True, mirror("slow"))) for _ in range(2)]
        while not waits() and not any(future.done() for future in futures):
            time.sleep(0.01)
        assert mirror.completed == []
        mirror.stop.set()
        assert [future.result() for future in futures] == [tmp_path / "small"] * 2
    assert waits()
    assert mirror.requests == [("/slow", None)]
