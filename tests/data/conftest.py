"""Configurations of data sets, a small archive, a server for it that misbehaves, and folders of images."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnet_train.config.dataset import (
    AugmentConfig,
    Cifar10Config,
    ImageFolderConfig,
    PublishedConfig,
    SyntheticConfig,
)
from resnet_train.data.cifar import CifarArchive


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture(scope="session")
def common() -> dict[str, Any]:
    """Fields of every data set."""
    return {
        "channels": 3,
        "train_size": None,
        "val_size": 0,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.3],
        "augment": AugmentConfig(crop_padding=4, crop_mode="zeros", flip=True, cutout=0, mixup=0.0, cutmix=0.0),
    }


@pytest.fixture(scope="session")
def cifar10(common: dict[str, Any]) -> Callable[..., Cifar10Config]:
    """Configurations of CIFAR-10, by default without a download."""

    def config(root: Path, *, download: bool = False, mirrors: tuple[str, ...] = ()) -> Cifar10Config:
        return Cifar10Config(name="cifar10", root=str(root), download=download, mirrors=list(mirrors), **common)

    return config


@pytest.fixture(scope="session")
def dataset(common: dict[str, Any]) -> Callable[..., Any]:
    """A configuration of any class of published files, by default without a download."""

    def config(kind: type[PublishedConfig], root: Path, **values: Any) -> Any:
        fields = {"name": kind.NAME, "root": str(root), "download": False, "mirrors": [], **common, **values}
        return kind(**fields)

    return config


@pytest.fixture(scope="session")
def imagefolder(common: dict[str, Any]) -> Callable[..., ImageFolderConfig]:
    """Configurations of folders of images."""

    def config(
        root: Path,
        *,
        image_size: int = 8,
        cache: Path | None = None,
        labels: Path | None = None,
        val_fraction: float = 0.0,
        test_fraction: float = 0.2,
        val_size: int = 0,
    ) -> ImageFolderConfig:
        return ImageFolderConfig(
            name="imagefolder",
            root=str(root),
            image_size=image_size,
            cache=str(cache) if cache else None,
            labels=str(labels) if labels else None,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            **common | {"val_size": val_size},
        )

    return config


@pytest.fixture(scope="session")
def synthetic(common: dict[str, Any]) -> SyntheticConfig:
    """60 training and 20 test images of 8 pixels in 4 classes."""
    return SyntheticConfig(name="synthetic", num_classes=4, image_size=8, num_train=60, num_test=20, **common)


@pytest.fixture(scope="session")
def exactly() -> Callable[[str], str]:
    """A pattern for a whole message, word for word; ``...`` stands for anything within one line."""
    return lambda message: f"^{re.escape(message).replace(re.escape('...'), '.*')}$"


@pytest.fixture(scope="session")
def ways() -> str:
    """What to do where CIFAR-10 is missing and cannot be downloaded."""
    return (
        "or name the folder that holds cifar-10-batches-py/ or cifar-10-python.tar.gz with dataset.root=FOLDER or the "
        "environment variable RESNET_TRAIN_DATA, or take dataset=synthetic, which needs no file"
    )


@dataclass(frozen=True)
class Published:
    """An archive as CIFAR's, but small, and what is in it."""

    archive: CifarArchive
    content: bytes  # the .tar.gz
    files: dict[str, bytes]
    images: np.ndarray  # all training images (N, 32, 32, 3)


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
    archive = CifarArchive(
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
    """A server on this machine; the first part of a path says how it misbehaves, the rest which file is meant."""

    url: str
    content: bytes  # of a path of one part
    files: dict[str, bytes] = field(default_factory=dict)
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
        behaviour, _, name = self.path.partition("?")[0].removeprefix("/").partition("/")
        content = mirror.files[name] if name else mirror.content
        size = len(content)
        match behaviour:
            case "missing":
                self.send_error(404)
            case "page":
                self.answer(200, b"<html>Sign in to this network</html>", "text/html; charset=utf-8")
            case "wrong":
                self.answer(200, b"not the archive" * 1000)
            case "no-range":
                self.answer(200, content)
            case "shifted" if start:
                self.answer(206, content[start - 1 :], Content_Range=f"bytes {start - 1}-{size - 1}/{size}")
            case "middle":
                self.answer(206, content[9:], Content_Range=f"bytes 9-{size - 1}/{size}")
            case "cut":
                self.answer(200, content, send=size // 2)
            case "hang":
                self.answer(200, content, send=size // 2)
                mirror.stop.wait(10)
            case "slow":
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


@pytest.fixture(scope="session")
def colours() -> dict[str, tuple[int, int, int]]:
    """The classes of ``root``, and the colour of all their images."""
    return {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colours: dict[str, tuple[int, int, int]]) -> Path:
    """Three classes of one colour each: 3 training images (one in a folder of its own), 1 test image."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    root = tmp_path / "photos"
    for name, colour in colours.items():
        for path in (f"train/{name}/b.bmp", f"train/{name}/a.png", f"train/{name}/more/c.JPG", f"val/{name}/x.gif"):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 10), colour).save(root / path)
    for hidden in ("train/.DS_Store", "train/red/._a.png", "train/red/Thumbs.db", "train/.trash/d.png"):
        (root / hidden).parent.mkdir(exist_ok=True)
        (root / hidden).write_bytes(b"not an image")
    (root / "train/red/.hidden").mkdir()
    (root / "train/red/.hidden/e.png").write_bytes(b"not an image")
    return root
