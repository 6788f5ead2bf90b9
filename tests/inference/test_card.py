"""The model card: front matter for Hugging Face, programs that run, texts of users that stay texts."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from resnet_train import load
from resnet_train.inference.card import escaped, model_card, result_of
from resnet_train.inference.check import Check
from resnet_train.inference.export import Exported
from resnet_train.inference.trained import Trained
from resnet_train.runs.console import printable
from tests.conftest import Shell

Files = Callable[..., Exported]
CHECK = Check(20, 1.5e-7)


def front_matter(card: str) -> Any:
    """The YAML between the first two lines of ``---``."""
    empty, matter, _ = card.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(matter)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tag"), [("onnx", "onnx"), ("pt2", "pytorch"), ("safetensors", "safetensors")])
def test_front_matter(kind: str, tag: str, exported: Files, small: Trained) -> None:
    """As modelcard.md of huggingface/hub-docs has it."""
    assert small.summary is not None
    assert front_matter(exported(kind).card.read_text()) == {
        "library_name": "resnet-train",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "resnet", tag],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": "small",
                "results": [
                    {
                        "task": {"type": "image-classification", "name": "Image Classification"},
                        "dataset": {"type": "synthetic", "name": "synthetic images", "split": "test"},
                        "metrics": [{"type": "accuracy", "value": small.summary.result, "name": "Test accuracy"}],
                    }
                ],
            }
        ],
    }


def test_known_data_sets_have_their_names(small: Trained) -> None:
    spec = replace(small.spec(), dataset="cifar10")
    found = front_matter(model_card(small, spec, CHECK, file="model.onnx"))
    assert found["datasets"] == ["uoft-cs/cifar10"]
    (result,) = found["model-index"][0]["results"]
    assert result["dataset"] == {"type": "uoft-cs/cifar10", "name": "CIFAR-10", "split": "test"}


def test_what_the_card_tells(exported: Files, small: Trained) -> None:
    card, score = exported("onnx").card.read_text(), result_of(small)
    assert score is not None
    assert score.count == 70
    assert f"**Test accuracy {100 * score.accuracy:.2f} %** ({score.correct} of 70 images; 95 % interval " in card
    for line in (
        "# small",
        "resnet-train dataset=synthetic +dataset.root=FOLDER",
        "| weights | the last, after 25 steps, their moving average (decay 0.5 per step) |",
        "| images | 200 train, 70 test |",
        "| precision of the training | fp32 |",
        "| normalisation | mean 0.5, 0.5, 0.5; std 0.25, 0.25, 0.25 (in the graph) |",
    ):
        assert line in card.splitlines(), line
    assert small.summary is not None
    assert f"torch {small.summary.versions['torch']}" in card
    assert "in batches of 1, 2 and 17: the same classes as the original in fp32, probabilities within" in card
    assert not re.search(r"\bNone\b|\{|\bnan\b", re.sub(r"```.*?```", "", card, flags=re.DOTALL))


def test_a_result_of_other_weights_is_not_told(small: Trained) -> None:
    other = replace(small, step=3, which="step-00000003.pt")
    card = model_card(other, other.spec(), CHECK, file="model.onnx")
    assert "model-index" not in front_matter(card)
    assert "Test accuracy" not in card
    assert "The run has no result of these very weights." in card
    alone = replace(small, summary=None)
    assert "hardware" not in model_card(alone, alone.spec(), CHECK, file="model.onnx")


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("kind", ["onnx", "pt2", "safetensors"])
@pytest.mark.slow
def test_its_programs_run(kind: str, raw: bool, exported: Files, tmp_path: Path) -> None:
    """Each in a process of its own, in the folder of the file, on an image that is no square: one answer."""
    file = exported(kind, raw=raw)
    folder = Path(shutil.copytree(file.path.parent, tmp_path / "mine"))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "cat.png")
    (expected,) = load(file.path).predict([folder / "cat.png"])
    programs = re.findall(r"```python\n(.*?)```", file.card.read_text(), re.DOTALL)
    assert len(programs) == (1 if kind == "safetensors" else 2)
    outputs = []
    for program in programs:
        code, out, err = Shell(folder).call("-c", program, program="python")
        assert (code, err) == (0, "")
        outputs.append(out.strip())
    assert outputs[0] == f"{expected.label} {expected.confidence}"
    assert outputs[1:] in ([], [expected.label], [str(expected.index)])


HOSTILE = "</td><script>alert(1)</script> | [x](javascript:alert) `a` **b** <!-- $$y$$ https://evil.example\n---\n# big"


def test_texts_of_users_stay_texts(small: Trained) -> None:
    """Class names are names of folders; a summary may come from a stranger."""
    assert small.summary is not None
    summary = replace(small.summary, hardware=HOSTILE, git_commit=HOSTILE, result_rule=HOSTILE, versions={"a|b": "`"})
    trained = replace(small, summary=summary, classes=(HOSTILE, *small.classes[1:]), which=HOSTILE, precision=HOSTILE)
    spec = replace(trained.spec(), name=HOSTILE, dataset=HOSTILE, resize=HOSTILE, command=HOSTILE)
    card = model_card(trained, spec, CHECK, file="a `b`.onnx")
    assert front_matter(card)["model-index"][0]["name"] == printable(HOSTILE)
    text = card.split("---\n", 2)[2]
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert "<script" not in outside
    assert "<!--" not in outside
    assert [line for line in card.splitlines() if line.startswith("# ")] == [f"# {escaped(HOSTILE)}"]
    markdown_it = pytest.importorskip("markdown_it")
    parser = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = [one for token in parser.parse(text) for one in (token, *(token.children or []))]
    assert not {token.type for token in tokens} & {"html_block", "html_inline", "link_open", "image"}
    assert {token.tag for token in tokens if token.type == "heading_open"} == {"h1", "h2"}
    assert sum(token.type == "tr_open" for token in tokens) == 2 + 6 + 15  # rows of both tables with their heads
    shown = "".join(token.content for token in tokens if token.type == "text")
    assert (
        shown.count(printable(HOSTILE)) == 10
    )  # name, class, resizing, which, 2 precision, hardware, source, rule, data


def test_a_card_can_be_read_by_people_of_all_countries(small: Trained) -> None:
    spec = replace(small.spec(), classes=("猫", "собака", *small.classes[2:]))
    assert "猫, собака, pattern 2" in model_card(small, spec, CHECK, file="model.onnx")


def test_a_hundred_classes_are_not_all_told(small: Trained) -> None:
    spec = replace(small.spec(), classes=tuple(f"class {number}" for number in range(100)))
    card = model_card(small, spec, CHECK, file="model.onnx")
    assert "class 19 and 80 more, all in the metadata of the file" in card
    assert "class 20" not in card


def test_the_card_lies_beside_the_file(exported: Files) -> None:
    assert exported("onnx").card == exported("onnx").path.parent / "README.md"
    assert Path(exported("onnx").card).read_bytes().startswith(b"---\n")
