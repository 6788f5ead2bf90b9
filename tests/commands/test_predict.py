"""``resnet-predict``, as people call it: by files, folders, patterns and pipes."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import resnet_train
from resnet_train.commands import predict
from resnet_train.errors import ConfigError
from tests.conftest import Shell

Predict = Callable[..., tuple[int, str, str]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images of noise in two folders, and a text."""
    folder = tmp_path / "photos"
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(noise):
        path = folder / f"{number % 2}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "notes.txt").touch()
    return folder


@pytest.fixture
def call(tiny_run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Predict:
    """Exit code, standard output and standard error of the program's body, beside ``photos/``."""
    monkeypatch.chdir(photos.parent)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = predict.run(predict.parser().parse_intermixed_args([str(tiny_run), *arguments]), sys.stdout)
        return code, *capfd.readouterr()

    return run


@pytest.mark.slow
def test_a_table_for_people(call: Predict, tiny_run: Path) -> None:
    code, out, err = call("photos", "--top", "2")
    head, *rows = out.splitlines()
    assert code == 0
    assert head.split() == ["image", "class", "%", "class", "%"]
    assert len(rows) == 12
    model = resnet_train.load(tiny_run)
    for row in rows:
        name = row.split()[0]
        (expected,) = model.predict([name])
        assert row.startswith(f"{name}  {expected.label} {100 * expected.confidence:5.1f}  ")
    first, second, third = err.splitlines()
    assert first == "resnet-predict: left out 1 file: .txt 1"
    assert second == f"resnet-predict: {model.origin}, {model.runs_on}"
    assert third.startswith("resnet-predict: 12 images in 0.") and " a second): " in third


def test_csv_and_json_say_the_same(call: Predict, photos: Path) -> None:
    _, out, _ = call("photos/**", "--csv", "-", "--top", "7", "--all")
    table = list(csv.DictReader(io.StringIO(out)))
    _, out, _ = call("photos/0", "photos/1", "--json", "--all")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in lines] == [row["image"] for row in table]
    for row, line in zip(table, lines, strict=True):
        assert (row["label"], float(row["confidence"])) == (line["label"], line["confidence"])
        assert [float(value) for name, value in row.items() if name.startswith("p(")] == line["probabilities"]
        assert [one["label"] for one in line["top"]] == [row["label"], row["label_2"], row["label_3"]]
    assert call("photos", "--csv", "found.csv")[:2] == (0, "")
    written = list(csv.DictReader((photos.parent / "found.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["image"] for row in written] == [row["image"] for row in table]


@pytest.mark.slow
def test_images_are_sorted_into_folders(call: Predict, photos: Path) -> None:
    _, out, _ = call("photos", "--sort-into", "photos/sorted", "--json")
    found = {line["image"]: line for line in map(json.loads, out.splitlines())}
    sorted_files = {str(path.relative_to(photos.parent)) for path in (photos / "sorted").rglob("*.png")}
    assert {line["file"] for line in found.values()} == sorted_files
    assert len(sorted_files) == 12
    for name, line in found.items():
        assert Path(line["file"]).parts[2] == line["label"].replace("/", "_")
        assert Path(line["file"]).read_bytes() == Path(name).read_bytes()
    code, out, err = call("photos", "--sort-into", "photos/sorted")
    assert (code, out) == (0, "")
    assert "12 images" in err, "what is sorted already is not looked at"
    assert len(list((photos / "sorted").rglob("*.png"))) == 12
    call("photos/0", "photos/1", "--sort-into", "moved", "--move")
    assert [path.name for path in photos.rglob("*.png") if "sorted" not in path.parts] == []
    assert len(list((photos.parent / "moved").rglob("*.png"))) == 12


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(call: Predict, photos: Path) -> None:
    (photos / "0" / "05-cut.png").write_bytes((photos / "0" / "00.png").read_bytes()[:100])
    (photos / "phone.heic").touch()
    code, out, err = call("nowhere.png", "photos/0", "photos/phone.heic", "--json")
    assert code == 1
    assert [json.loads(line)["image"] for line in out.splitlines()] == [f"photos/0/{n:02}.png" for n in range(0, 12, 2)]
    lines = err.splitlines()
    assert lines[0] == "resnet-predict: nowhere.png: no such file or folder"
    assert lines[2].startswith("resnet-predict: photos/0/05-cut.png: expected an image, got ")
    assert lines[3] == "resnet-predict: photos/phone.heic: expected an image, got an empty file"
    assert lines[4].endswith("; 2 could not be read")
    assert call("photos/1", "nowhere.png")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.png",), "expected images, got none: nowhere.png: no such file or folder"),
        (("photos/notes.txt/",), "expected images, got none: photos/notes.txt/: no such file or folder"),
        (("photos/*.gif",), "expected images, got none: photos/*.gif: no image matches this pattern"),
        (("photos", "--top", "0"), "--top: expected a number above 0, got 0"),
        (("photos", "--csv", "photos/0/00.png"), "--csv: expected - or a file that ends in .csv, got photos/0/00.png"),
        (("photos", "--csv", "no/where.csv"), "--csv: cannot write no/where.csv: No such file or directory"),
        (("photos", "--csv", "-", "--json"), "--csv - and --json: expected one of them, since there is one ..."),
        (("photos", "--all"), "--all: expected --csv or --json with it; for people --top 10 shows more classes"),
        (("photos", "--link"), "--link: expected --sort-into DIR with it"),
        (("photos", "--device", "cuda:99"), "device: expected one of this machine's ..."),
        (("photos", "--checkpoint", "best"), "--checkpoint: expected ..."),
    ],
)
def test_wrong_requests(arguments: tuple[str, ...], message: str, call: Predict) -> None:
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    start, dots, _ = message.partition("...")
    assert str(caught.value).startswith(start) if dots else str(caught.value) == message


# -------------------------------------------------------------------------------------------------------- processes


def start(shell: Shell, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
    pipes = {
        "env": shell.environment(),
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    } | options
    command = (sys.executable, "-m", "resnet_train.commands.predict", *arguments)
    return subprocess.Popen(command, cwd=shell.folder, **pipes)  # type: ignore[call-overload]


@pytest.mark.slow
def test_questions_are_answered_without_torch(shell: Shell, tiny_run: Path) -> None:
    (shell.folder / "torch.py").write_text("raise AssertionError('torch is imported')")
    for arguments, code, text in (
        (("--help",), 0, "example"),
        ((str(tiny_run),), 2, "the following arguments are required: IMAGE"),
        (("nowhere", "a.png"), 2, "expected a run directory, a checkpoint or an exported file, got 'nowhere'"),
        ((str(tiny_run), "a.png"), 2, "resnet-predict: expected images, got none: a.png: no such file or folder\n"),
    ):
        found, out, err = shell.call(*arguments, program=(sys.executable, "-m", "resnet_train.commands.predict"))
        assert (found, text in out + err) == (code, True), out + err


@pytest.mark.slow
def test_an_image_or_paths_on_standard_input(shell: Shell, tiny_run: Path, photos: Path) -> None:
    out, err = start(shell, str(tiny_run), "-", "--json").communicate((photos / "0" / "02.png").read_bytes())
    alone = json.loads(out)
    assert alone.pop("image") == "-", err
    paths = [str(path) for path in sorted(photos.rglob("*.png"))]
    process = start(shell, str(tiny_run), "photos/1/01.png", "-", "--json")
    out, err = process.communicate("\0".join([*paths, "gone.png"]).encode())
    found = [json.loads(line) for line in out.splitlines()]
    assert [line.pop("image") for line in found] == ["photos/1/01.png", *paths]
    assert [line["label"] for line in found][2] == alone["label"]
    assert process.returncode == 1
    assert b"resnet-predict: gone.png: expected an image, got No such file or directory\n" in err


@pytest.mark.slow
def test_results_come_as_they_are_found_and_ctrl_c_leaves_whole_lines(
    shell: Shell, tiny_run: Path, photos: Path
) -> None:
    paths = "".join(f"{path}\n" for path in photos.rglob("*.png")).encode()
    with start(shell, str(tiny_run), "-", "--json") as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(paths * 20)
        process.stdin.flush()
        first = process.stdout.readline()  # while standard input is open
        process.send_signal(signal.SIGINT)
        rest, err = process.stdout.read(), process.stderr.read()
    assert process.returncode == 130
    assert err.endswith(b"\ninterrupted\n")
    assert all(json.loads(line)["label"] for line in (first + rest).splitlines())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="by the shell")
@pytest.mark.usefixtures("photos")
def test_a_reader_that_leaves_and_a_full_disk(shell: Shell, tiny_run: Path) -> None:
    program = f"'{sys.executable}' -m resnet_train.commands.predict '{tiny_run}' photos --json"
    command = f"{program} 2>err | head -1; echo ${{PIPESTATUS[0]}}; {program} >/dev/full; echo $?"
    done = subprocess.run(["bash", "-c", command], cwd=shell.folder, capture_output=True, env=shell.environment())
    line, quiet, full = done.stdout.splitlines()
    assert json.loads(line)["image"] == "photos/0/00.png"
    assert (quiet, full) == (b"0", b"1")
    assert len((shell.folder / "err").read_bytes().splitlines()) <= 3
    last = b"resnet-predict: standard output: cannot write the results: No space left on device"
    assert done.stderr.splitlines()[-1] == last


@pytest.mark.slow
def test_on_a_terminal_rows_fit_and_a_bar_shows_what_is_left(shell: Shell, tiny_run: Path, photos: Path) -> None:
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    name = f"{'very/' * 20}long.png"
    (shell.folder / name).parent.mkdir(parents=True)
    (photos / "0" / "00.png").rename(shell.folder / name)
    for arguments, expected in (((), "long.png"), (("--csv", "a.csv"), "100%")):
        reading, writing = pty.openpty()
        termios.tcsetwinsize(writing, (24, 80))
        process = start(
            shell,
            str(tiny_run),
            name,
            "photos",
            *arguments,
            stdin=writing,
            stdout=writing,
            stderr=writing,
            env=shell.environment(TQDM_MININTERVAL="0"),
        )
        os.close(writing)
        shown = b""
        try:
            while read := os.read(reading, 1 << 16):
                shown += read
        except OSError:  # the end of a terminal
            pass
        os.close(reading)
        assert process.wait() == 0
        text = shown.decode()
        assert expected in text
        rows = [line for line in text.splitlines() if line.startswith(("photos", "…"))]
        assert len(rows) == (0 if arguments else 12)
        assert all(len(row) <= 80 for row in rows)
