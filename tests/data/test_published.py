"""Single files that were published: found, downloaded once, under the names that mirrors have for them."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resnet_train.data.published import PublishedFile, Source, address_of, check_file_obtainable, obtain_file
from resnet_train.errors import ConfigError
from tests.data.conftest import Mirror

CONTENT = b"digits" * 1000
FILE = PublishedFile("Digits", "digits.bin", hashlib.md5(CONTENT).hexdigest(), "digits/raw")


def test_addresses_of_folders_and_of_the_file_itself() -> None:
    assert address_of("https://localhost/folder/", "a.gz") == "https://localhost/folder/a.gz"
    assert address_of("https://localhost/folder/b.gz?download=1", "a.gz") == "https://localhost/folder/b.gz?download=1"


@pytest.mark.slow
def test_the_second_waits_for_the_first(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["digits.bin"] = CONTENT
    source = Source(tmp_path, True, mirror("slow/"))
    with ThreadPoolExecutor(2) as pool:
        paths = [one.result() for one in [pool.submit(obtain_file, FILE, source) for _ in range(2)]]
    assert paths == [tmp_path / "digits/raw/digits.bin"] * 2
    assert paths[0].read_bytes() == CONTENT
    assert len(mirror.requests) == 1


def test_where_it_is_looked_for(tmp_path: Path) -> None:
    other = tmp_path / "other"
    source = Source(tmp_path / "root", False, (), others=(other,))
    places = (
        other / "digits",
        other / "digits.bin",
        tmp_path / "root/digits.bin",
        tmp_path / "root/digits/raw/digits.bin",
    )
    for place in places:  # from the last that is looked at to the first
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        assert obtain_file(FILE, source, also=("digits",)) == place


@pytest.mark.parametrize(("download", "got"), [(False, "got none;"), (True, "got none, and no dataset.mirrors to get")])
def test_where_it_cannot_be_had(tmp_path: Path, download: bool, got: str) -> None:
    with pytest.raises(ConfigError, match=rf"dataset\.root: expected digits\.bin in .*, {got}"):
        check_file_obtainable(FILE, Source(tmp_path, download, ()))


def test_a_wrong_file_of_a_mirror_is_not_kept(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["digits.bin"] = CONTENT
    with pytest.raises(ConfigError, match=r"another file \(expected MD5 .*; try again later, or name the folder"):
        obtain_file(FILE, Source(tmp_path, True, mirror("wrong/")))
    assert not [path for path in (tmp_path / "digits/raw").iterdir() if path.suffix != ".lock"]
