"""Names that a person gives become paths of images; what is none is counted."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest
from PIL import Image

from resnet_train.data.image_paths import list_images, read_images


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images at three depths, and what else lies in folders."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "A.JPG", "notes.txt", "phone.heic", ".hidden.png", "deep/er/c.webp", "@eaDir/thumb.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_folders_are_listed_sorted_with_what_is_left_out(photos: Path) -> None:
    found = list_images(["photos"])
    assert found.paths == [os.path.join("photos", *name.split("/")) for name in ("A.JPG", "b.png", "deep/er/c.webp")]
    assert found.problems == []
    assert found.notes() == "2 files: .heic 1, .txt 1"
    assert list_images([str(photos / "photos")]).paths == [str(photos / path) for path in found.paths]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("photos/*.png", ["photos/b.png"]),
        ("photos/[Ab]*", ["photos/A.JPG", "photos/b.png"]),
        ("photos/**", ["photos/A.JPG", "photos/b.png", "photos/deep/er/c.webp"]),
        ("photos/**/*.webp", ["photos/deep/er/c.webp"]),
        ("photos/d*", ["photos/deep/er/c.webp"]),
    ],
)
@pytest.mark.usefixtures("photos")
def test_patterns_are_expanded(pattern: str, names: list[str]) -> None:
    assert list_images([pattern]).paths == [name.replace("/", os.sep) for name in names]


def test_a_name_is_taken_as_it_is(photos: Path) -> None:
    for name in ("photo[1].png", "without-ending"):
        (photos / name).touch()
        assert list_images([name]).paths == [name]


def test_what_is_not_there_is_told_and_the_rest_is_found(photos: Path) -> None:
    (photos / "empty").mkdir()
    found = list_images(["nowhere.png", "photos/b.png", "*.gif", "empty"])
    assert found.paths == ["photos/b.png"]
    assert found.problems == [
        "nowhere.png: no such file or folder",
        "*.gif: no image matches this pattern",
        "empty: a folder without images",
    ]


def test_a_link_in_a_circle_does_not_hide_the_rest(photos: Path) -> None:
    (photos / "photos" / "deep" / "loop").symlink_to(photos / "photos")
    found = list_images(["photos"])
    assert len(found.paths) == 3
    assert found.problems == [f"{os.path.join('photos', 'deep', 'loop')}: {os.strerror(errno.ELOOP)}"]


@pytest.mark.usefixtures("photos")
def test_a_folder_can_be_left_out() -> None:
    assert list_images(["photos"], but=Path("photos/deep")).paths == ["photos/A.JPG", "photos/b.png"]
    assert len(list_images(["photos"], but=Path("photos/d")).paths) == 3


# --------------------------------------------------------------------------------------------------- standard input


def stream(content: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(content))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "XBM"])
def test_the_bytes_of_an_image_are_told_by_their_content(kind: str) -> None:
    file = io.BytesIO()
    Image.new("1" if kind == "XBM" else "RGB", (5, 4)).save(file, kind)
    assert read_images(stream(file.getvalue())) == file.getvalue()


@pytest.mark.parametrize(
    ("content", "paths"),
    [
        (b"a.png\nb c.png\n", ["a.png", "b c.png"]),
        (b"a.png\r\n\r\nb.png", ["a.png", "b.png"]),
        (b"a.png\0b\nc.png\0", ["a.png", "b\nc.png"]),
        (b"\xef\xbb\xbfa.png\n", ["a.png"]),
        ("猫.png\n".encode(), ["猫.png"]),
        (b"P1020304.JPG\nBMW.jpg\n", ["P1020304.JPG", "BMW.jpg"]),
        (b"", []),
    ],
)
def test_paths_come_line_by_line_or_between_nuls(content: bytes, paths: list[str]) -> None:
    found = read_images(stream(content))
    assert not isinstance(found, bytes)
    assert list(found) == paths


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")
def test_a_path_that_is_no_text_is_found(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(name, "wb"):
        pass
    found = read_images(stream(name + b"\n"))
    assert not isinstance(found, bytes)
    assert list(map(os.fsencode, found)) == [name]


def test_paths_are_yielded_while_more_are_written() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe, open(writing, "wb", buffering=0) as out:
        out.write(b"a.png\nb.p")
        found = read_images(pipe)
        assert not isinstance(found, bytes)
        assert next(found) == "a.png"
        out.write(b"ng\n")
        assert next(found) == "b.png"
        out.close()
        assert list(found) == []
