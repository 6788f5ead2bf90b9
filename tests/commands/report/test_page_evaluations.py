"""What resnet-eval left, read for the page: whole, cut, and hostile."""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnet_train.commands.report.page_evaluations import MOST_MISTAKES, SHEET_BYTES, Room, read_evaluation

WHOLE: dict[str, Any] = {
    "split": "test", "checkpoint": "last", "step": 13, "tta": "none", "count": 50, "correct": 40, "accuracy": 0.8,
    "error": 0.2, "interval": [0.67, 0.89], "top5": None, "loss": 0.61, "balanced_accuracy": 0.79,
    "macro": {"precision": 0.8, "recall": 0.79, "f1": 0.79}, "weighted": {"precision": 0.8, "recall": 0.8, "f1": 0.8},
    "calibration_error": 0.04, "classes": ["cat", "dog", "</script>"],
    "reliability": [{"low": 0.0, "high": 0.5, "count": 0, "confidence": None, "accuracy": None},
                    {"low": 0.5, "high": 1.0, "count": 50, "confidence": 0.84, "accuracy": 0.8}],
    "per_class": [{"name": name, "precision": 0.8, "recall": None, "f1": 0.79, "support": 16} for name in "abc"],
    "confusion": [[20, 0, 1], [0, 12, 4], [3, 2, 8]],
}  # fmt: skip


@pytest.fixture(scope="module")
def sheet() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (25, 100, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((1600, 400)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path, sheet: bytes) -> Path:
    found = tmp_path / "run/eval/test-last"
    found.mkdir(parents=True)
    (found / "eval.json").write_text(json.dumps(WHOLE))
    (found / "mistakes.csv").write_text(
        "index,label,prediction,confidence\n" + "".join(f"{n},cat,dog,{0.99 - n / 1000}\n" for n in range(80))
    )
    (found / "mistakes.png").write_bytes(sheet)
    return found


def read(folder: Path, *, room: int = 1 << 20) -> tuple[dict[str, Any] | None, list[str]]:
    notes: list[str] = []
    return read_evaluation(folder, Room(room), notes), notes


def test_a_whole_one(folder: Path) -> None:
    found, notes = read(folder)
    assert found is not None and not notes
    assert found["name"] == "test-last" and found["interval"] == [0.67, 0.89] and found["macro_f1"] == 0.79
    assert found["confusion"] == [[0, 20, 2, 1], [1, 12, 2, 4], [0, 3, 1, 2, 2, 8]]
    assert found["reliability"] == WHOLE["reliability"]
    assert found["per_class"][0] == {"name": "a", "support": 16, "precision": 0.8, "recall": None, "f1": 0.79}
    assert found["mistakes_by"] == "index" and len(found["mistakes"]) == MOST_MISTAKES
    assert found["mistakes"][1] == [1, "cat", "dog", 0.989]


def test_the_sheet_is_made_small(folder: Path) -> None:
    found, _ = read(folder)
    assert found is not None
    kind, _, content = found["sheet"].partition(",")
    assert kind == "data:image/webp;base64" and len(found["sheet"]) <= SHEET_BYTES
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.size == (1200, 300)


def test_a_sheet_of_noise_is_made_smaller_still(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (600, 1200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "mistakes.png")
    found, notes = read(folder)
    assert found is not None and not notes
    assert 20_000 < len(found["sheet"]) <= SHEET_BYTES


def test_only_eval_json_is_needed(folder: Path) -> None:
    (folder / "mistakes.csv").unlink()
    (folder / "mistakes.png").unlink()
    found, notes = read(folder)
    assert found is not None and not notes
    assert found["sheet"] is None and found["mistakes"] == []


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "[" * 100_000, '{"classes": 3}', '{"classes": [1], "accuracy": 1}',
     *(json.dumps(WHOLE | {"accuracy": wrong}) for wrong in (math.nan, math.inf, 2, "1", None, True)),
     json.dumps(WHOLE | {"interval": [1]}), json.dumps(WHOLE | {"interval": 3}), json.dumps(WHOLE | {"step": [4]})],
)  # fmt: skip
def test_what_is_no_evaluation_is_left_out(folder: Path, text: str) -> None:
    (folder / "eval.json").write_text(text)
    found, (note,) = read(folder)
    assert found is None
    assert note.startswith("run/eval/test-last/eval.json: cannot be read (") and "\n" not in note and len(note) < 200


@pytest.mark.parametrize(
    ("part", "wrong"),
    [("confusion", [[1, 2, 3]]), ("confusion", [[1, 2], [3]]), ("confusion", [[-1, 0, 0]] * 3), ("confusion", 7),
     ("confusion", [[0.5, 0, 0]] * 3), ("per_class", [{"name": "a"}]), ("per_class", [3]), ("reliability", [[1]]),
     ("reliability", {"a": 1}), ("reliability", [{"low": "x"}])],
)  # fmt: skip
def test_a_wrong_part_is_left_out_alone(folder: Path, part: str, wrong: Any) -> None:
    (folder / "eval.json").write_text(json.dumps(WHOLE | {part: wrong}))
    found, (note,) = read(folder)
    assert found is not None and found[part] is None and found["accuracy"] == 0.8
    assert f"eval.json, {part}: cannot be read (" in note


def huge_png() -> bytes:
    """A head that promises 60,000 x 60,000 pixels, and nothing after it."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


@pytest.mark.parametrize("content", [b"", b"GIF89a", huge_png()], ids=["empty", "not a PNG", "huge"])
def test_a_sheet_that_is_none(folder: Path, content: bytes) -> None:
    (folder / "mistakes.png").write_bytes(content)
    found, (note,) = read(folder)
    assert found is not None and found["sheet"] is None and found["mistakes"]
    assert "mistakes.png: cannot be read (" in note


def test_a_cut_sheet(folder: Path) -> None:
    whole = (folder / "mistakes.png").read_bytes()
    (folder / "mistakes.png").write_bytes(whole[: len(whole) // 2])
    found, (note,) = read(folder)
    assert found is not None and found["sheet"] is None and "mistakes.png: cannot be read (" in note


@pytest.mark.parametrize(
    "text",
    ["label\n", "index,label,prediction,confidence\n1,a,b,nan\n", "index,label,prediction,confidence\n1,a\n",
     "index,label,prediction,confidence\n1,a,b,sure\n", "\x00\n"],
)  # fmt: skip
def test_mistakes_that_are_none(folder: Path, text: str) -> None:
    (folder / "mistakes.csv").write_text(text)
    found, (note,) = read(folder)
    assert found is not None and found["mistakes"] == [] and found["sheet"]
    assert "mistakes.csv: cannot be read (" in note


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    (folder / "mistakes.png").rename(secret)
    (folder / "mistakes.png").symlink_to(secret)
    found, (note,) = read(folder)
    assert found is not None and found["sheet"] is None
    assert "it is a link" in note


def test_what_has_no_room_is_named(folder: Path) -> None:
    found, notes = read(folder, room=3000)
    assert found is not None and found["mistakes"] and found["sheet"] is None
    assert notes == ["run/eval/test-last: no room for its sheet on a page with so many evaluations"]
