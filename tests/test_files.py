"""Data sets from folders, archives and mirrors that misbehave; pictures of all kinds, whole and broken."""

from __future__ import annotations

import hashlib
import io
import logging
import multiprocessing
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from resnet_train.config.dataset import AugmentConfig, Cifar10Config, Cifar100Config, ImageFolderConfig, SyntheticConfig
from resnet_train.data.available import check_available
from resnet_train.data.cifar import CIFAR10, CIFAR100, Archive, load_cifar, obtain, read_batches
from resnet_train.data.files import Files
from resnet_train.data.image_cache import decode
from resnet_train.data.imagefolder import load_imagefolder
from resnet_train.errors import ConfigError

AUGMENT = AugmentConfig(crop_padding=4, crop_mode="zeros", flip=True, cutout=0, mixup=0.0, cutmix=0.0)
COMMON: dict[str, Any] = {
    "train_size": None,
    "val_size": 0,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "augment": AUGMENT,
}


def cifar10(root: Path, *, download: bool = False, mirrors: tuple[str, ...] = ()) -> Cifar10Config:
    return Cifar10Config(name="cifar10", root=str(root), download=download, mirrors=list(mirrors), **COMMON)


def imagefolder(root: Path, *, image_size: int = 8, cache: Path | None = None) -> ImageFolderConfig:
    return ImageFolderConfig(
        name="imagefolder", root=str(root), image_size=image_size, cache=str(cache) if cache else None, **COMMON
    )


def exactly(message: str) -> str:
    """A pattern for the whole message, word for word; ``...`` stands for anything within one line."""
    return f"^{re.escape(message).replace(re.escape('...'), '.*')}$"


# -------------------------------------------------------------------------------------------- a small data set to serve


@dataclass(frozen=True)
class Published:
    """An archive as CIFAR's, but small, and what is in it."""

    archive: Archive
    content: bytes  # the .tar.gz
    files: dict[str, bytes]
    images: np.ndarray  # all training images (N, 32, 32, 3)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def tar_gz(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def published() -> Published:
    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    planes = images.transpose(0, 3, 1, 2).reshape(-1, 3072)
    batches: dict[str, Any] = {
        "data_batch_1": {b"data": planes[:30], b"labels": [index % 3 for index in range(30)]},
        "data_batch_2": {b"data": planes[30:], b"labels": [2] * 20},
        "test_batch": {b"data": planes[:5], b"labels": [0, 1, 2, 0, 1]},
        "batches.meta": {b"label_names": [b"ant", b"bee", b"cow"]},
    }
    files = {name: pickle.dumps(batch, protocol=4) for name, batch in batches.items()}
    content = tar_gz({f"small/{name}": content for name, content in files.items()} | {"small/readme.html": b"read me"})
    sums = {name: md5(content) for name, content in files.items()}
    archive = Archive(
        title="Small",
        filename="small.tar.gz",
        md5=md5(content),
        folder="small",
        train={name: sums[name] for name in ("data_batch_1", "data_batch_2")},
        test={"test_batch": sums["test_batch"]},
        meta={"batches.meta": sums["batches.meta"]},
        label_key=b"labels",
        classes_key=b"label_names",
    )
    return Published(archive, content, files, images)


@dataclass
class Mirror:
    """A server on this machine; the path of an address says how it misbehaves."""

    url: str
    content: bytes
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range header
    completed: list[str] = field(default_factory=list)  # paths of bodies that were sent to their end
    stop: threading.Event = field(default_factory=threading.Event)

    def __call__(self, *paths: str) -> list[str]:
        return [f"{self.url}/{path}" for path in paths]


@pytest.fixture
def mirror(published: Published, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    mirror = Mirror(f"http://127.0.0.1:{server.server_address[1]}", published.content)
    server.mirror = mirror  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield mirror
    mirror.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        mirror: Mirror = self.server.mirror  # type: ignore[attr-defined]
        wanted = self.headers["Range"]
        mirror.requests.append((self.path, wanted))
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        content, size = mirror.content, len(mirror.content)
        match self.path:
            case "/missing":
                self.send_error(404)
            case "/page":
                self.answer(200, b"<html>Sign in to this network</html>", "text/html; charset=utf-8")
            case "/wrong":
                self.answer(200, b"not the archive" * 1000)
            case "/no-range":
                self.answer(200, content)
            case "/shifted" if start:
                self.answer(206, content[start - 1 :], Content_Range=f"bytes {start - 1}-{size - 1}/{size}")
            case "/middle":
                self.answer(206, content[9:], Content_Range=f"bytes 9-{size - 1}/{size}")
            case "/cut":
                self.answer(200, content, send=size // 2)
            case "/hang":
                self.answer(200, content, send=size // 2)
                mirror.stop.wait(10)
            case "/slow":
                mirror.stop.wait(1)
                self.answer(200, content)
            case _ if start >= size:
                self.answer(416, b"<html>no such range</html>", "text/html", Content_Range=f"bytes */{size}")
            case _ if start:
                self.answer(206, content[start:], Content_Range=f"bytes {start}-{size - 1}/{size}")
            case _:
                self.answer(200, content)

    def answer(
        self, status: int, body: bytes, kind: str = "application/gzip", send: int | None = None, **headers: str
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body[:send])
        if send is None:
            self.server.mirror.completed.append(self.path)  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: Any) -> None:
        pass


def get(published: Published, root: Path, mirrors: list[str]) -> Path:
    return obtain(published.archive, root, mirrors=mirrors, download=True, timeout_seconds=0.5)


def assert_whole(published: Published, folder: Path) -> None:
    """All files are there as published, and nothing but the lock file lies beside their folder."""
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == published.files
    assert {path.name for path in folder.parent.iterdir()} == {"small", "small.tar.gz.lock"}


# ----------------------------------------------------------------------------------------------------- CIFAR as it is


@pytest.fixture(scope="module")
def real(cifar10_root: Path) -> Files:
    return load_cifar(cifar10(cifar10_root))


def test_cifar10_has_5000_and_1000_images_of_each_class(real: Files) -> None:
    assert real.train.images.shape == (50_000, 32, 32, 3)
    assert real.test.images.shape == (10_000, 32, 32, 3)
    for split, count in ((real.train, 5000), (real.test, 1000)):
        assert split.images.dtype == np.uint8
        assert split.images.flags.c_contiguous
        assert split.labels.dtype == np.int64
        assert np.bincount(split.labels).tolist() == [count] * 10
    assert " ".join(real.classes) == "airplane automobile bird cat deer dog frog horse ship truck"


def test_cifar10_is_in_the_order_of_its_files(real: Files) -> None:
    assert real.train.labels[:5].tolist() == [6, 9, 9, 4, 1]
    assert real.test.labels[:5].tolist() == [3, 8, 8, 0, 6]
    # The means of conf/dataset/cifar10.yaml, of red, green and blue: channels are where they belong.
    means = real.train.images.mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=5e-5)


def test_the_tables_are_those_of_torchvision() -> None:
    from torchvision import datasets

    for archive, theirs in ((CIFAR10, datasets.CIFAR10), (CIFAR100, datasets.CIFAR100)):
        assert (archive.filename, archive.md5, archive.folder) == (theirs.filename, theirs.tgz_md5, theirs.base_folder)
        assert list(archive.train.items()) == [tuple(item) for item in theirs.train_list]
        assert list(archive.test.items()) == [tuple(item) for item in theirs.test_list]
        assert archive.meta == {theirs.meta["filename"]: theirs.meta["md5"]}
        assert archive.classes_key == theirs.meta["key"].encode()


def test_root_may_be_the_folder_itself(cifar10_root: Path) -> None:
    folder = cifar10_root / CIFAR10.folder
    assert obtain(CIFAR10, folder, mirrors=(), download=False) == folder


def test_a_flipped_bit_is_found_and_named(cifar10_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / CIFAR10.folder
    folder.mkdir()
    for name in CIFAR10.files:
        (folder / name).symlink_to(cifar10_root / CIFAR10.folder / name)
    original = (folder / "data_batch_1").read_bytes()
    content = original[:20_000_000] + bytes([original[20_000_000] ^ 1]) + original[20_000_001:]
    (folder / "data_batch_1").unlink()
    (folder / "data_batch_1").write_bytes(content)
    message = (
        f"{folder}/data_batch_1: expected MD5 c99cafc152244af753f735de768cd75f, got {md5(content)}: the file is "
        f"damaged; delete it and run again with dataset.download=true, or provide it again"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        load_cifar(cifar10(tmp_path))


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_batches_of_numpy_1_and_2_are_read(published: Published, tmp_path: Path, module: str) -> None:
    def opcode(module: str) -> bytes:  # SHORT_BINUNICODE, as protocol 4 writes names
        return b"\x8c" + bytes([len(module)]) + module.encode()

    files = dict(published.files)
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        for written in ("numpy.core.multiarray", "numpy._core.multiarray"):
            files[name] = files[name].replace(opcode(written), opcode(module))
        # A frame announces its length, which changes with the name; readers do without it.
        assert files[name][2:3] == b"\x95"
        files[name] = files[name][:2] + files[name][11:]
        assert opcode(module) in files[name]
    archive = replace(
        published.archive,
        train={name: md5(files[name]) for name in published.archive.train},
        test={"test_batch": md5(files["test_batch"])},
    )
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    np.testing.assert_array_equal(read_batches(archive, tmp_path).train.images, published.images)


class Bomb:
    """Pickles as a call that would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_runs_nothing_even_if_its_md5_is_expected(published: Published, tmp_path: Path) -> None:
    content = pickle.dumps({b"data": Bomb(tmp_path / "ran"), b"labels": []}, protocol=4)
    for name in published.archive.files:
        (tmp_path / name).write_bytes(content if name == "data_batch_2" else published.files[name])
    archive = replace(published.archive, train=published.archive.train | {"data_batch_2": md5(content)})
    message = (
        f"{tmp_path}/data_batch_2: expected arrays and lists, got a call of posix.mkdir; delete it and get it from the "
        f"data set's own page"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        read_batches(archive, tmp_path)
    assert not (tmp_path / "ran").exists()


# --------------------------------------------------------------------------------------------------- what is available

WAYS = (
    "or name the folder that holds cifar-10-batches-py/ or cifar-10-python.tar.gz with dataset.root=FOLDER or the "
    "environment variable RESNET_TRAIN_DATA, or take dataset=synthetic, which needs no file"
)


def test_missing_data_names_the_three_ways(tmp_path: Path) -> None:
    message = (
        f"dataset.root: expected cifar-10-batches-py/ or cifar-10-python.tar.gz in {tmp_path}, got neither; "
        f"add dataset.download=true, {WAYS}"
    )
    for function in (check_available, load_cifar):
        with pytest.raises(ConfigError, match=exactly(message)):
            function(cifar10(tmp_path))


def test_missing_cifar100_names_its_own_files(tmp_path: Path) -> None:
    dataset = Cifar100Config(name="cifar100", root=str(tmp_path), download=False, mirrors=[], **COMMON)
    message = f"dataset.root: expected cifar-100-python/ or cifar-100-python.tar.gz in {tmp_path}, got neither; ..."
    with pytest.raises(ConfigError, match=exactly(message)):
        check_available(dataset)


def test_a_folder_without_a_batch_names_the_batch(tmp_path: Path) -> None:
    (tmp_path / CIFAR10.folder).mkdir()
    (tmp_path / CIFAR10.folder / "data_batch_1").touch()
    message = (
        f"dataset.root: expected cifar-10-batches-py/ or cifar-10-python.tar.gz in {tmp_path}, got "
        f"cifar-10-batches-py/ without data_batch_2; add dataset.download=true, {WAYS}"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        check_available(cifar10(tmp_path))


def test_download_without_mirrors_is_refused(tmp_path: Path) -> None:
    message = "dataset.root: ... got neither, and no dataset.mirrors to get it from; add dataset.download=true, ..."
    with pytest.raises(ConfigError, match=exactly(message)):
        check_available(cifar10(tmp_path, download=True))


def test_folder_archive_mirror_or_nothing_needed_are_available(tmp_path: Path, cifar10_root: Path) -> None:
    check_available(cifar10(cifar10_root))
    check_available(cifar10(tmp_path / "none", download=True, mirrors=("https://localhost/none",)))
    (tmp_path / CIFAR10.filename).touch()
    check_available(cifar10(tmp_path))
    check_available(SyntheticConfig(name="synthetic", num_classes=2, image_size=8, num_train=2, num_test=2, **COMMON))


def test_a_tilde_in_root_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / CIFAR10.filename).touch()
    check_available(cifar10(Path("~")))


def test_checking_does_not_import_torch() -> None:
    command = "import sys, resnet_train.files; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True, cwd=Path(__file__).parent.parent)


# ------------------------------------------------------------------------------------------------------------- archives


def test_an_archive_is_unpacked_and_stays(published: Published, tmp_path: Path) -> None:
    (tmp_path / "small.tar.gz").write_bytes(published.content)
    folder = obtain(published.archive, tmp_path, mirrors=(), download=False)
    assert folder == tmp_path / "small"
    assert {path.name for path in folder.iterdir()} == set(published.files)  # without the read-me
    assert {path.name for path in tmp_path.iterdir()} == {"small", "small.tar.gz", "small.tar.gz.lock"}
    files = read_batches(published.archive, folder)
    np.testing.assert_array_equal(files.train.images, published.images)
    np.testing.assert_array_equal(files.test.images, published.images[:5])
    assert files.train.labels.tolist() == [index % 3 for index in range(30)] + [2] * 20
    assert files.classes == ("ant", "bee", "cow")


def test_a_deleted_batch_comes_back_from_the_archive(published: Published, tmp_path: Path) -> None:
    (tmp_path / "small.tar.gz").write_bytes(published.content)
    folder = obtain(published.archive, tmp_path, mirrors=(), download=False)
    (folder / "data_batch_2").unlink()
    assert obtain(published.archive, tmp_path, mirrors=(), download=False) == folder
    assert (folder / "data_batch_2").read_bytes() == published.files["data_batch_2"]


def test_a_damaged_archive_is_named_and_left_alone(published: Published, tmp_path: Path) -> None:
    path = tmp_path / "small.tar.gz"
    path.write_bytes(published.content[:-1])
    message = (
        f"{path}: expected MD5 {published.archive.md5}, got {md5(published.content[:-1])}: the file is damaged; "
        f"delete it and run again with dataset.download=true, or provide it again"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        obtain(published.archive, tmp_path, mirrors=(), download=True)
    assert path.read_bytes() == published.content[:-1]


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("small/../../escaped"),
        tarfile.TarInfo("../escaped"),
        tarfile.TarInfo("/tmp/escaped"),
        tarfile.TarInfo("other/data_batch_1"),
        link("small/data_batch_1", tarfile.SYMTYPE),
        link("small/data_batch_1", tarfile.LNKTYPE),
        link("small/data_batch_1", tarfile.FIFOTYPE),
    ],
    ids=lambda member: f"{member.name} {member.type!r}",
)
def test_an_archive_cannot_write_elsewhere(published: Published, tmp_path: Path, member: tarfile.TarInfo) -> None:
    root = tmp_path / "root"
    root.mkdir()
    path = root / "small.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(member)
    archive = replace(published.archive, md5=md5(path.read_bytes()))
    message = (
        f"{path}: expected plain files in small/, got the member {member.name!r}; delete the archive and run again "
        f"with dataset.download=true, or provide it again"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        obtain(archive, root, mirrors=(), download=False)
    assert {path.name for path in root.iterdir()} == {"small.tar.gz", "small.tar.gz.lock"}
    assert list(tmp_path.iterdir()) == [root]


# ------------------------------------------------------------------------------------------------------------- download


def test_a_download_is_unpacked_and_removed(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    assert_whole(published, get(published, tmp_path / "new" / "root", mirror("good")))
    assert mirror.requests == [("/good", None)]
    get(published, tmp_path / "new" / "root", mirror("good"))
    assert len(mirror.requests) == 1


def test_a_file_address_is_a_mirror(published: Published, tmp_path: Path) -> None:
    source = tmp_path / "source.tar.gz"
    source.write_bytes(published.content)
    assert_whole(published, get(published, tmp_path / "root", [source.as_uri()]))


def test_load_cifar_downloads_what_is_missing(mirror: Mirror, tmp_path: Path) -> None:
    dataset = cifar10(tmp_path, download=True, mirrors=tuple(mirror("missing", "wrong")))
    check_available(dataset)
    message = (
        f"dataset.mirrors: expected cifar-10-python.tar.gz from one of 2, got {mirror.url}/missing: HTTP 404 Not Found"
        f"; {mirror.url}/wrong: another file (expected MD5 c58f30108f718f92721af3b95e74349a, got "
        f"{md5(b'not the archive' * 1000)}); try again later, {WAYS}"
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
    published: Published, mirror: Mirror, tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str, reason: str
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
        ("http://localhost:port/", "nonnumeric port: 'port'"),
        ("http://[localhost/", "Invalid IPv6 URL"),
        ("http://127.0.0.1:1/", "[Errno ...] Connection refused"),
        ("file:///none/small.tar.gz", "[Errno 2] No such file or directory: '/none/small.tar.gz'"),
    ],
)
def test_an_address_that_cannot_be_asked_is_named(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, reason: str
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


def test_a_broken_download_is_continued_at_the_next_run(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    half, size = len(published.content) // 2, len(published.content)
    message = (
        f"dataset.mirrors: expected small.tar.gz from one of 1, got {mirror.url}/cut: broke off after {half} of {size} "
        f"bytes; run again, the download goes on where it stopped, or name the folder that holds small/ or "
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
        futures = [
            pool.submit(obtain, published.archive, tmp_path, mirrors=mirror("slow"), download=True) for _ in range(2)
        ]
        assert [future.result() for future in futures] == [tmp_path / "small"] * 2
    assert_whole(published, tmp_path / "small")
    assert mirror.completed == ["/slow"]


def test_the_second_waits_for_the_first(
    published: Published, mirror: Mirror, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    waiting = f"waiting for another process that holds {tmp_path}/small.tar.gz.lock"
    with ThreadPoolExecutor(2) as pool:  # a lock belongs to an open file, so threads are as good as processes
        futures = [
            pool.submit(obtain, published.archive, tmp_path, mirrors=mirror("slow"), download=True) for _ in range(2)
        ]
        while waiting not in caplog.messages and not any(future.done() for future in futures):
            time.sleep(0.01)
        assert mirror.completed == []
        mirror.stop.set()
        assert [future.result() for future in futures] == [tmp_path / "small"] * 2
    assert waiting in caplog.messages
    assert mirror.requests == [("/slow", None)]


def test_a_root_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    root = tmp_path / "file" / "root"
    message = (
        f"dataset.root: expected to read and write files in {root}, got Not a directory ({root}); see to its "
        f"permissions and free space, or add dataset.root=FOLDER"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        load_cifar(cifar10(root, download=True, mirrors=("http://127.0.0.1:1/",)))


# ------------------------------------------------------------------------------------------------ pictures of all kinds


def checker(value: int = 255) -> np.ndarray:
    """Left half black, right half ``value``: 16 rows, 24 columns; the centre square has columns 4 to 19."""
    pixels = np.zeros((16, 24), np.uint8)
    pixels[:, 12:] = value
    return pixels


def grey16(path: Path) -> None:
    Image.fromarray(checker().astype(np.uint16) * 257 // 2).save(path)


def cmyk(path: Path) -> None:
    Image.fromarray(checker(127)).convert("RGB").convert("CMYK").save(path)


def palette_with_transparency(path: Path) -> None:
    """The left half white, and transparent; the right half opaque."""
    picture = Image.fromarray(checker(1))
    picture.putpalette([255, 255, 255, 127, 127, 127])
    picture.save(path, transparency=b"\x00\xff")


def colour_key(path: Path) -> None:
    """The left half white, which is declared transparent; the right half opaque."""
    pixels = np.where(checker() == 0, 255, 127).astype(np.uint8)
    Image.fromarray(pixels).convert("RGB").save(path, transparency=(255, 255, 255))


def with_alpha(path: Path) -> None:
    """White everywhere; the left half transparent, the right half opaque to 127 of 255."""
    white = Image.new("L", (24, 16), 255)
    Image.merge("LA", (white, Image.fromarray(checker(127)))).save(path)


def with_alpha_rgb(path: Path) -> None:
    white = Image.new("L", (24, 16), 255)
    Image.merge("RGBA", (white, white, white, Image.fromarray(checker(127)))).save(path)


def animated(path: Path) -> None:
    frames = [Image.fromarray(checker(value)) for value in (127, 255, 3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


def turned(path: Path) -> None:
    """Stored on its side, with the note that it is to be turned a quarter clockwise."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(checker(127)).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def pgm16(path: Path) -> None:
    path.write_bytes(b"P5 24 16 65535\n" + (checker().astype(np.uint16) * 257 // 2).astype(">u2").tobytes())


def plain(mode: str) -> Any:
    def write(path: Path) -> None:
        Image.fromarray(checker(127)).convert(mode).save(path)

    return write


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("grey.png", plain("L")),
        ("colour.png", plain("RGB")),
        ("colour.bmp", plain("RGB")),
        ("colour.ppm", plain("RGB")),
        ("colour.jpg", plain("RGB")),
        ("grey.jpeg", plain("L")),
        ("colour.webp", plain("RGB")),
        ("colour.tif", plain("RGB")),
        ("palette.gif", plain("P")),
        ("palette.PNG", plain("P")),
        ("transparent-palette.png", palette_with_transparency),
        ("colour-key.png", colour_key),
        ("grey16.png", grey16),
        ("grey16.tiff", grey16),
        ("grey16.ppm", pgm16),
        ("cmyk.jpg", cmyk),
        ("cmyk.tif", cmyk),
        ("alpha.png", with_alpha),
        ("alpha-colour.png", with_alpha_rgb),
        ("animated.gif", animated),
        ("animated.webp", animated),
        ("animated.png", animated),
        ("turned.jpg", turned),
        ("turned.png", turned),
    ],
)
def test_pictures_of_all_kinds_become_rgb(tmp_path: Path, name: str, write: Any) -> None:
    write(tmp_path / name)
    pixels = decode(tmp_path / name, 16)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (16, 16, 3)
    tolerance = 6 if name.endswith(("jpg", "jpeg", "webp")) else 1
    np.testing.assert_allclose(pixels[:, :6], 0, atol=tolerance)
    np.testing.assert_allclose(pixels[:, -6:], 127, atol=tolerance)


def test_black_and_white_is_full_range(tmp_path: Path) -> None:
    Image.fromarray(checker()).convert("1").save(tmp_path / "one-bit.png")
    pixels = decode(tmp_path / "one-bit.png", 16)
    assert pixels[:, :8].max() == 0
    assert pixels[:, 8:].min() == 255


@pytest.mark.parametrize(("width", "height"), [(64, 16), (16, 64), (5, 3), (1, 1), (1, 3000), (3000, 1)])
def test_the_centre_square_is_scaled(tmp_path: Path, width: int, height: int) -> None:
    Image.new("RGB", (width, height), (10, 20, 30)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png", 8), np.full((8, 8, 3), (10, 20, 30)))


def test_shrinking_averages_over_all_pixels(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    np.testing.assert_allclose(decode(tmp_path / "a.png", 8)[:, 1:-1], 127.5, atol=3)


# ------------------------------------------------------------------------------------------------------ broken pictures


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def saved(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.jpg", b"", "an empty file"),
        ("text.png", b"this is not a picture", "something else"),
        ("cut.jpg", saved(NOISE, "JPEG")[:1000], "image file is truncated ..."),
        ("cut.png", saved(NOISE, "PNG")[:1000], "..."),
        ("cut.gif", saved(NOISE, "GIF")[:1000], "..."),
        ("cut.webp", saved(NOISE, "WEBP")[:100], "..."),
        ("cut.tif", saved(NOISE, "TIFF")[:-100], "..."),
        ("short.png", png(8, 8, b"\0" * 20), "..."),
        ("flipped.png", saved(NOISE, "PNG").replace(b"IDAT", b"IDAX"), "..."),
        ("bomb.png", png(50_000, 50_000, b""), "Image size (2500000000 pixels) exceeds limit of ..."),
        ("float.tif", saved(Image.new("F", (8, 8)), "TIFF"), "floating point values, whose range is not known"),
        (
            "deep.tif",
            saved(Image.new("I", (8, 8), 70_000), "TIFF"),
            "integers beyond 16 bits, whose range is not known",
        ),
    ],
)
def test_a_broken_picture_is_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=exactly(f"{path}: expected a picture, got {reason}; repair it or remove it")):
        decode(path, 8)


def test_a_folder_with_the_name_of_a_picture_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=exactly(f"{tmp_path}: expected a picture, got Is a directory; repair it or remove it")
    ):
        decode(tmp_path, 8)


# ---------------------------------------------------------------------------------------------------------- imagefolder

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three classes of one colour each: 3 training pictures (one in a folder of its own), 1 test picture."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    root = tmp_path / "pictures"
    for name, colour in COLOURS.items():
        for path in (f"train/{name}/b.bmp", f"train/{name}/a.png", f"train/{name}/more/c.JPG", f"val/{name}/x.gif"):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 10), colour).save(root / path)
    for hidden in ("train/.DS_Store", "train/red/._a.png", "train/red/Thumbs.db", "train/.trash/d.png"):
        (root / hidden).parent.mkdir(exist_ok=True)
        (root / hidden).write_bytes(b"not a picture")
    (root / "train/red/.hidden").mkdir()
    (root / "train/red/.hidden/e.png").write_bytes(b"not a picture")
    return root


def cache_file(root: Path, split: str = "train") -> Path:
    (path,) = (root / ".resnet-train-cache").glob(f"{split}-*.npy")
    return path


def test_classes_and_pictures_are_sorted(root: Path) -> None:
    check_available(imagefolder(root))
    files = load_imagefolder(imagefolder(root))
    assert files.classes == ("blue", "green", "red")
    assert files.train.labels.dtype == np.int64
    assert files.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert files.test.labels.tolist() == [0, 1, 2]
    for split in (files.train, files.test):
        assert split.images.dtype == np.uint8
        assert split.images.shape == (len(split.labels), 8, 8, 3)
        expected = np.array([COLOURS[files.classes[label]] for label in split.labels])[:, None, None]
        np.testing.assert_allclose(split.images.astype(int), np.broadcast_to(expected, split.images.shape), atol=2)


def test_test_stands_in_for_val(root: Path) -> None:
    (root / "val").rename(root / "test")
    assert len(load_imagefolder(imagefolder(root)).test.labels) == 3


def test_pictures_are_decoded_once(root: Path) -> None:
    first = load_imagefolder(imagefolder(root))
    inode = cache_file(root).stat().st_ino
    picture = root / "train/red/a.png"
    before = picture.stat()
    picture.write_bytes(b"x" * before.st_size)  # would fail if it were read again
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = load_imagefolder(imagefolder(root))
    assert cache_file(root).stat().st_ino == inode
    assert isinstance(second.train.images, np.memmap)
    assert not second.train.images.flags.writeable
    np.testing.assert_array_equal(first.train.images, second.train.images)


def test_a_changed_picture_is_decoded_again(root: Path) -> None:
    load_imagefolder(imagefolder(root))
    Image.new("RGB", (12, 10), (9, 9, 9)).save(root / "train/red/b.bmp")
    os.utime(root / "train/red/b.bmp", ns=(1, 1))
    assert load_imagefolder(imagefolder(root)).train.images[7].max() == 9


def test_each_image_size_has_its_own_cache(root: Path) -> None:
    assert load_imagefolder(imagefolder(root)).train.images.shape == (9, 8, 8, 3)
    assert load_imagefolder(imagefolder(root, image_size=5)).train.images.shape == (9, 5, 5, 3)
    assert len(list((root / ".resnet-train-cache").glob("*.npy"))) == 4


def write_array(array: np.ndarray) -> Any:
    def write(path: Path) -> None:
        np.save(path, array)

    return write


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:20]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\0" * 5000),
        write_array(np.zeros((9, 8, 8), np.uint8)),
        write_array(np.zeros((9, 8, 8, 3), np.float32)),
        write_array(np.zeros((9, 8, 8, 3), np.uint8, order="F")),
    ],
    ids=["short", "header", "empty", "zeros", "shape", "dtype", "order"],
)
def test_a_damaged_cache_is_rebuilt(root: Path, caplog: pytest.LogCaptureFixture, damage: Any) -> None:
    expected = load_imagefolder(imagefolder(root)).train.images.copy()
    path = cache_file(root)
    damage(path)
    np.testing.assert_array_equal(load_imagefolder(imagefolder(root)).train.images, expected)
    assert caplog.messages == [f"{path} is damaged; decoding the pictures again"]
    assert np.load(path).shape == (9, 8, 8, 3)


def test_the_cache_may_lie_elsewhere(root: Path, tmp_path: Path) -> None:
    load_imagefolder(imagefolder(root, cache=tmp_path / "cache"))
    assert not (root / ".resnet-train-cache").exists()
    assert len(list((tmp_path / "cache").glob("pictures-*/*.npy"))) == 2


def test_data_sets_that_share_a_cache_stay_apart(root: Path, tmp_path: Path) -> None:
    """The same names, sizes and times, but other pixels."""
    other = tmp_path / "other" / "pictures"
    for path in root.rglob("*.*"):
        if path.is_file():
            copy = other / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".bmp":
                Image.new("RGB", (12, 10), (7, 7, 7)).save(copy)
            else:
                copy.write_bytes(path.read_bytes())
            os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
            assert copy.stat().st_size == path.stat().st_size
    load_imagefolder(imagefolder(root, cache=tmp_path / "cache"))
    images = load_imagefolder(imagefolder(other, cache=tmp_path / "cache")).train.images
    assert images[1].max() == 7


def test_a_cache_that_cannot_be_written_moves_to_the_users_own(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / ".resnet-train-cache").touch()  # a file, where a folder would have to be
    assert load_imagefolder(imagefolder(root)).train.images.shape == (9, 8, 8, 3)
    assert len(list((tmp_path / "xdg/resnet-train").glob("pictures-*/*.npy"))) == 2
    assert caplog.messages[0] == f"decoded pictures cannot be kept in {root}/.resnet-train-cache (File exists)"
    caplog.clear()
    load_imagefolder(imagefolder(root))
    assert caplog.messages == []  # found at once


def test_no_place_for_the_cache_is_one_line(root: Path, tmp_path: Path) -> None:
    (tmp_path / "xdg").touch()
    message = (
        f"dataset.cache: expected a folder for the decoded pictures that can be written, got {tmp_path}/xdg/c/... (Not "
        f"a directory), {tmp_path}/xdg/resnet-train/... (Not a directory); add dataset.cache=FOLDER"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        load_imagefolder(imagefolder(root, cache=tmp_path / "xdg" / "c"))


def test_a_broken_picture_leaves_no_cache(root: Path) -> None:
    (root / "train/green/b.bmp").write_bytes(b"")
    message = f"{root}/train/green/b.bmp: expected a picture, got an empty file; repair it or remove it"
    with pytest.raises(ConfigError, match=exactly(message)):
        load_imagefolder(imagefolder(root))
    assert [path.name for path in (root / ".resnet-train-cache").iterdir()] == [".lock"]


def test_folders_of_the_split_must_exist(root: Path) -> None:
    def message(got: str) -> str:
        return exactly(
            f"dataset.root: expected train/ and val/ (or test/) with one folder a class in {root}, got {got}; "
            f"add dataset.root=FOLDER"
        )

    (root / "val").rename(root / "validation")
    with pytest.raises(ConfigError, match=message("neither val/ nor test/")):
        check_available(imagefolder(root))
    (root / "train").rename(root / "training")
    with pytest.raises(ConfigError, match=message("no train/")):
        check_available(imagefolder(root))
    root.rename(root.with_name("moved"))
    with pytest.raises(ConfigError, match=message("no such folder")):
        load_imagefolder(imagefolder(root))


@pytest.mark.parametrize(("kept", "got"), [((), "none"), (("red",), "red")])
def test_two_classes_are_the_least(root: Path, kept: tuple[str, ...], got: str) -> None:
    for name in set(COLOURS) - set(kept):
        (root / "train" / name).rename(root / "train" / f".{name}")
    message = f"{root}/train: expected two or more folders, one a class, got {got}; put the pictures into them"
    with pytest.raises(ConfigError, match=exactly(message)):
        check_available(imagefolder(root))


def test_a_class_that_train_lacks_is_refused(root: Path) -> None:
    (root / "val/green").rename(root / "val/Green")
    message = (
        f"{root}/val/Green: expected one of the 3 classes of train/, got 'Green'; rename or remove the folder, or add "
        f"the class to train/"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        load_imagefolder(imagefolder(root))


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_class_is_refused(root: Path, split: str) -> None:
    for path in (root / split / "red").glob("?.*"):
        path.unlink()
    if split == "train":
        (root / "train/red/more/c.JPG").unlink()
    message = (
        f"{root}/{split}/red: expected pictures (.bmp, .gif, .jpeg, .jpg, .png, .ppm, .tif, .tiff, .webp), got none; "
        f"add some or remove the folder"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        load_imagefolder(imagefolder(root))


def test_val_without_classes_is_refused(root: Path) -> None:
    for name in COLOURS:
        (root / "val" / name).rename(root / "val" / f".{name}")
    message = f"{root}/val: expected one folder a class, as in train/, got none; put the pictures into them"
    with pytest.raises(ConfigError, match=exactly(message)):
        load_imagefolder(imagefolder(root))


def test_links_are_followed(root: Path, tmp_path: Path) -> None:
    (root / "train/red/more").rename(tmp_path / "more")
    (root / "train/red/more").symlink_to(tmp_path / "more")
    (root / "train/blue").rename(tmp_path / "blue")
    (root / "train/blue").symlink_to(tmp_path / "blue")
    assert len(load_imagefolder(imagefolder(root)).train.labels) == 9


def test_a_link_back_to_where_it_lies_is_refused(root: Path) -> None:
    (root / "train/red/more/again").symlink_to(root / "train/red")
    message = (
        f"dataset.root: expected to read and write files in {root}, got Too many levels of symbolic links "
        f"({root}/train/red/more/again); see to its permissions and free space, or add dataset.root=FOLDER"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        load_imagefolder(imagefolder(root))
