"""Labels from a CSV file: its columns, splits and lines, and images that are not as it says."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from resnet_train.config.dataset import ImageFolderConfig
from resnet_train.data.available import check_available, num_classes
from resnet_train.data.imagefolder import load_imagefolder
from resnet_train.errors import ConfigError

Make = Callable[..., ImageFolderConfig]


@pytest.fixture
def flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty images in one folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    (tmp_path / "photos/more").mkdir(parents=True)
    for number in range(40):
        folder = "photos/more" if number % 4 == 0 else "photos"
        Image.new("RGB", (8, 8), (6 * number, 0, 90)).save(tmp_path / folder / f"{number}.png")
    return tmp_path / "photos"


def rows(splits: tuple[str, ...] = ()) -> list[str]:
    """A line for each image of ``flat``: even ones are cats."""
    paths = (f"more/{number}.png" if number % 4 == 0 else f"{number}.png" for number in range(40))
    lines = [f"{path},{('cats', 'dogs')[number % 2]}" for number, path in enumerate(paths)]
    return [f"{line},{splits[number // 2 % len(splits)]}" if splits else line for number, line in enumerate(lines)]


def write(root: Path, lines: list[str], header: str = "path,label") -> Path:
    path = root / "labels.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def test_images_without_splits_are_split_by_their_paths(flat: Path, imagefolder: Make) -> None:
    config = imagefolder(flat, labels=write(flat, rows()), val_fraction=0.3, test_fraction=0.3)
    check_available(config)
    assert num_classes(config) == 2
    files = load_imagefolder(config)
    assert files.classes == ("cats", "dogs")
    assert files.taken == (
        "labels.csv has no splits: by a hash of each path 0.3 of the images are test images, 0.3 choose the best "
        "checkpoint"
    )
    before = [set(paths) for paths in (files.train_paths, files.val_paths, files.test_paths)]
    assert sum(map(len, before)) == len(set().union(*before)) == 40
    for path, label in zip(files.train_paths, files.train.labels, strict=True):
        assert label == int(Path(path).stem) % 2
    Image.new("RGB", (8, 8)).save(flat / "new.png")
    write(flat, ["./new.png,dogs", *rows()])
    after = load_imagefolder(config)
    now = [set(paths) - {"new.png"} for paths in (after.train_paths, after.val_paths, after.test_paths)]
    assert now == before
    assert after.identity != files.identity


def test_the_splits_of_the_table_are_taken(flat: Path, imagefolder: Make) -> None:
    table = write(flat, rows(("train", "Validation", "train", "test")), "path,label,split")
    files = load_imagefolder(imagefolder(flat, labels=table))
    assert files.identity.images == {"train": 20, "val": 10, "test": 10}
    assert files.taken == "of labels.csv, val chooses the best checkpoint, test is scored once"
    assert files.val_paths[:2] == ("10.png", "18.png")
    with pytest.raises(ConfigError, match=r"dataset\.val_size: expected 0 where labels\.csv has val and test, got 2$"):
        check_available(imagefolder(flat, labels=table, val_size=2))
    with pytest.raises(ConfigError, match=r"dataset\.val_fraction: expected 0 where labels\.csv has splits, got 0\.1;"):
        check_available(imagefolder(flat, labels=table, val_fraction=0.1))
    alone = load_imagefolder(
        imagefolder(flat, labels=write(flat, rows(("train", "val")), "path,label,split"), val_size=2)
    )
    assert (alone.val, len(alone.test.labels), alone.taken) == (None, 20, "test images are val of labels.csv")


def test_other_columns_blank_lines_and_excel_do_no_harm(flat: Path, imagefolder: Make) -> None:
    lines = [f"{number},{line}" for number, line in enumerate(rows())]
    table = write(flat, [*lines, "", ",,,,"], "\ufeffnumber, Path ,LABEL")
    table.write_bytes(table.read_bytes().replace(b"\n", b"\r\n"))
    files = load_imagefolder(imagefolder(flat, labels=table))
    assert len(files.train.labels) + len(files.test.labels) == 40


def changed_text(old: str, new: str) -> Callable[[str, Path], str]:
    return lambda text, _: text.replace(old, new)


OTHER_HANDS = {
    "semicolons": (changed_text(",", ";"), "utf-8"),
    "tabs": (changed_text(",", "\t"), "utf-8"),
    "backslashes": (changed_text("more/", ".\\more\\"), "utf-8"),
    "spaces": (changed_text(",", " , "), "utf-8"),
    "old Mac": (changed_text("\n", "\r"), "utf-8"),
    "PowerShell": (changed_text("", ""), "utf-16"),
    "paths in full": (lambda text, root: text.replace("\n", f"\n{root}/", 40), "utf-8"),
    "capitals": (changed_text("path,label", "Path,Label"), "utf-8-sig"),
    "blank lines": (changed_text("\n", "\n\n\n"), "utf-8"),
    "quotes": (lambda text, _: "".join('"' + line.replace(",", '","') + '"\n' for line in text.splitlines()), "utf-8"),
}


@pytest.mark.parametrize("name", OTHER_HANDS)
def test_tables_of_other_hands_say_the_same(flat: Path, imagefolder: Make, name: str) -> None:
    table = write(flat, rows())
    config = imagefolder(flat, labels=table)
    before = load_imagefolder(config)
    change, encoding = OTHER_HANDS[name]
    text = change(table.read_text(encoding="utf-8"), flat)
    assert name == "PowerShell" or text.encode(encoding) != table.read_bytes()
    table.write_bytes(text.encode(encoding))
    after = load_imagefolder(config)
    assert after.identity == before.identity
    assert (after.train_paths, after.test_paths, after.taken) == (before.train_paths, before.test_paths, before.taken)


def test_a_root_that_is_a_link_takes_paths_in_full(flat: Path, imagefolder: Make, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(flat, target_is_directory=True)
    table = write(flat, [f"{tmp_path / 'link' / rows()[0]}", f"{flat / rows()[1]}", *rows()[2:]])
    files = load_imagefolder(imagefolder(tmp_path / "link", labels=table))
    assert set(files.train_paths + files.test_paths) == {line.partition(",")[0] for line in rows()}


def test_commas_quotes_and_spaces_in_names(flat: Path, imagefolder: Make) -> None:
    names = ["a, b.png", 'the "c".png', "d e.png"]
    for name in names:
        Image.new("RGB", (8, 8)).save(flat / name)
    quoted = ['"a, b.png","small, grey"', '"the ""c"".png",cats', "d e.png,cats"]
    table = write(flat, [*rows(), *quoted, '2 .png,"small, grey"'])
    Image.new("RGB", (8, 8)).save(flat / "2 .png")
    files = load_imagefolder(imagefolder(flat, labels=table, test_fraction=0.81))
    assert files.classes == ("cats", "dogs", "small, grey")
    assert {*names, "2 .png"} <= {*files.train_paths, *files.test_paths}


def test_what_is_not_read_is_counted(flat: Path, imagefolder: Make) -> None:
    (flat / "1.heic").touch()
    files = load_imagefolder(imagefolder(flat, labels=write(flat, [*rows()[:-3], "1.heic,cats"])))
    assert files.left_out == "4 files: without a label 3, .heic 1"


def test_same_names_in_and_beside_a_folder_of_the_label_are_two_images(flat: Path, imagefolder: Make) -> None:
    (flat / "more").rename(flat / "cats")
    (flat / "cats/1.png").write_bytes((flat / "2.png").read_bytes())
    lines = [line.replace("more/", "cats/").replace("1.png,dogs", "1.png,cats") for line in rows()]
    first = load_imagefolder(imagefolder(flat, labels=write(flat, lines))).identity
    second = load_imagefolder(imagefolder(flat, labels=write(flat, [*lines, "cats/1.png,cats"]))).identity
    assert sum(map(len, second.entries.values())) == sum(map(len, first.entries.values())) + 20


def test_an_accent_from_elsewhere_is_found(flat: Path, imagefolder: Make) -> None:
    Image.new("RGB", (8, 8)).save(flat / (unicodedata.normalize("NFD", "é") + ".png"))
    files = load_imagefolder(imagefolder(flat, labels=write(flat, [*rows(), "é.png,cats"])))
    assert len(files.train.labels) + len(files.test.labels) == 41
    assert files.left_out == ""


GOOD = ["1.png,dogs", "2.png,cats"]
BELOW = "the path of a file below dataset.root, which is "
WRONG = [
    ("file;label", GOOD, ": expected a first line that names the columns, path,label or path,label,split, got 'file,l"),
    (GOOD[0], GOOD[1:], ": expected a first line that names the columns, path,label or path,label,split, got '1.png,d"),
    ("path,label,label", GOOD, ": expected a first line that names the columns, path,label or path,label,split, got"),
    ("path,label", [], ": expected a line for each image, got none below the first line"),
    ("path,label", [*GOOD, "3.png,"], ", line 4: expected a path and a label, got '3.png,'; fill it in, or remove the"),
    ("path,label", [*GOOD, "3.png"], ", line 4: expected a path and a label, got '3.png'"),
    ("path,label", [*GOOD, ",cats"], ", line 4: expected a path and a label, got ',cats'"),
    ("path,label", ["a,b.png,cats", *GOOD], ", line 2: expected 2 values, as the first line has, got 3, 'a,b.png,cats"),
    ("path,label", [*GOOD, '"3.png,cats', "4.png,dogs"], ", line 4: expected values in CSV, got one that is quoted wr"),
    ("path,label", [GOOD[0], '2.png,"ca', 'ts"'], ", line 3: expected a path and a label of one line each, got '2.png"),
    ("path,label", [*GOOD, "../3.png,a"], f", line 4: expected {BELOW}ROOT, got '../3.png'; write it relative to that"),
    ("path,label", [*GOOD, "/a/3.png,a"], f", line 4: expected {BELOW}ROOT, got '/a/3.png'"),
    ("path,label", [*GOOD, r"C:\a\3.png,a"], f", line 4: expected {BELOW}ROOT, got 'C:\\\\a\\\\3.png'"),
    ("path,label", [*GOOD, r".\1.png,cats"], ", line 4: expected each path once, got '1.png' as in line 2; remove one"),
    (
        "path,label",
        GOOD[:1],
        ": expected training images of two or more labels, got 'dogs' alone; add images of anothe",
    ),
    ("path,label,split", GOOD, ", line 2: expected the split train, val or test, got ''; without the column, a hash"),
    ("path,label,split", ["1.png,a,dev"], ", line 2: expected the split train, val or test, got 'dev'"),
    ("path,label,split", ["1.png,a,train", "2.png,b,train"], ": expected the splits train and test (or val), got trai"),
    ("path,label,split", ["1.png,a,train", "2.png,b,test"], ": expected training images of two or more labels, got"),
    (
        "path,label,split",
        ["1.png,a,train", "2.png,b,train", "3.png,c,test"],
        ": expected labels that training images have, got 'c'; move some of their images to train, or remove them",
    ),
]


@pytest.mark.parametrize(("header", "lines", "message"), WRONG, ids=range(len(WRONG)))
def test_tables_that_are_wrong(flat: Path, imagefolder: Make, header: str, lines: list[str], message: str) -> None:
    table = write(flat, lines, header)
    with pytest.raises(ConfigError) as caught:
        check_available(imagefolder(flat, labels=table))
    assert str(caught.value).startswith(f"{table}{message.replace('ROOT', str(flat))}")
    assert "\n" not in str(caught.value)


def test_files_that_are_no_table(flat: Path, imagefolder: Make, tmp_path: Path) -> None:
    table = write(flat, rows())
    with pytest.raises(ConfigError, match=rf"got No such file or directory; add dataset\.labels={table}$"):
        check_available(imagefolder(flat, labels=tmp_path / "labels.csv"))
    with pytest.raises(ConfigError, match=r"^dataset\.labels: expected .*, got Is a directory; add dataset\.labels="):
        check_available(imagefolder(flat, labels=flat))
    for content, line, byte in (
        (b"path,label\n\xe9.png,cats\n", 2, "e9"),
        ("path,label\n1.png,\u72d7\n".encode("gbk"), 2, "b9"),  # Excel's CSV in China
        ((flat / "1.png").read_bytes(), 1, "89"),
        ("path,label\n1.png,cats\n".encode("utf-16")[:-1], 2, "0a"),
    ):
        table.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            check_available(imagefolder(flat, labels=table))
        assert str(caught.value) == (
            f"{table}, line {line}: expected text in UTF-8, got the byte 0x{byte}; save the table as CSV in UTF-8 (in "
            f"Excel: CSV UTF-8)"
        )


def test_images_that_are_not_there(flat: Path, imagefolder: Make, tmp_path: Path) -> None:
    lines = [*rows(), *(f"gone/{number}.png,cats" for number in range(7))]
    with pytest.raises(ConfigError) as caught:
        load_imagefolder(imagefolder(flat, labels=write(flat, lines)))
    assert str(caught.value) == (
        f"{flat / 'labels.csv'}: expected paths of files below {flat}, got 7 of 47 that are not there: gone/0.png "
        f"(line 42), gone/1.png (line 43), gone/2.png (line 44), gone/3.png (line 45), gone/4.png (line 46) and 2 "
        f"more; correct the table, or name the folder of the images with dataset.root=FOLDER"
    )
    table = write(flat, rows())
    with pytest.raises(ConfigError, match=rf"got 40 of 40 that .*; correct the table, or add dataset\.root={flat}$"):
        load_imagefolder(imagefolder(tmp_path, labels=table))


def test_images_of_formats_that_are_not_read_are_missed_where_they_are_needed(flat: Path, imagefolder: Make) -> None:
    (flat / "1.svg").touch()
    cats_and_dogs = ["1.png,a,train", "2.png,b,train"]
    for split, others in (("test", []), ("val", ["3.png,a,test"])):
        table = write(flat, [*cats_and_dogs, *others, f"1.svg,a,{split}"], "path,label,split")
        message = (
            rf"expected {split} images of each class, by labels\.csv, got none of 'a' \(\d images?\), 'b' \(1 image\)"
        )
        with pytest.raises(ConfigError, match=message + " in a format that is read; convert them, or change the rows$"):
            load_imagefolder(imagefolder(flat, labels=table))
