"""The model card beside an exported file: what it is, what it was trained on, how well it does, how it is used.

Markdown below the front matter that Hugging Face reads (huggingface/hub-docs, modelcard.md), so that a folder with a
network and its card as README.md can be uploaded as it is. A licence is for whoever publishes to choose: none is said.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from resnet_train.config.run import Config
from resnet_train.inference.check import BATCHES, Check
from resnet_train.inference.spec import Spec
from resnet_train.inference.trained import Trained
from resnet_train.runs.console import count, duration, printable, shell_quote
from resnet_train.runs.summary import Score, Summary
from resnet_train.training.scores import wilson

DATASETS = {  # option of ours: on huggingface.co/datasets, and what people call it
    "cifar10": ("uoft-cs/cifar10", "CIFAR-10"),
    "cifar100": ("uoft-cs/cifar100", "CIFAR-100"),
    "fashion_mnist": ("zalando-datasets/fashion_mnist", "Fashion-MNIST"),
}
OWN_DATASETS = {"imagefolder": "a folder of images", "synthetic": "synthetic images"}
FORMATS = {".onnx": "ONNX", ".pt2": "PyTorch's exported program", ".safetensors": "safetensors"}
TAGS = {".onnx": "onnx", ".pt2": "pytorch", ".safetensors": "safetensors"}
SHOWN_CLASSES = 20


def model_card(trained: Trained, spec: Spec, check: Check, *, file: str) -> str:
    """The card of the exported ``file``, which lies beside it."""
    score = result_of(trained)
    parts = [
        "---\n" + yaml.safe_dump(front_matter(spec, score, file), sort_keys=False, allow_unicode=True) + "---",
        f"# {escaped(spec.name)}",
        introduction(trained, spec, score),
        "## Use\n\n" + usage(spec, file),
        "## Input and output\n\n" + table(rows_of_spec(spec, file)),
        "## Training\n\n" + training(trained, spec),
        "## Result\n\n" + result(trained, score, check),
        "## Limits\n\n" + limits(spec, trained),
    ]
    return "\n\n".join(parts) + "\n"


def result_of(trained: Trained) -> Score | None:
    """The score on the test images of these very weights; None where there is none."""
    score = None if trained.summary is None else trained.summary.last.get("test")
    return score if score is not None and score.step == trained.step and 0 <= score.correct <= score.count > 0 else None


def front_matter(spec: Spec, score: Score | None, file: str) -> dict[str, Any]:
    """What Hugging Face lists and searches."""
    known = DATASETS.get(spec.dataset)
    plain: dict[str, Any] = {
        "library_name": "resnet-train",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "resnet", TAGS[file[file.rindex(".") :]]],
        **({"datasets": [known[0]]} if known else {}),
        "metrics": ["accuracy"],
    }
    if score is not None:
        own = printable(spec.dataset)
        dataset_type, dataset_name = known or (own, OWN_DATASETS.get(own, own))
        measured = {
            "task": {"type": "image-classification", "name": "Image Classification"},
            "dataset": {"type": dataset_type, "name": dataset_name, "split": "test"},
            "metrics": [{"type": "accuracy", "value": score.accuracy, "name": "Test accuracy"}],
        }
        plain["model-index"] = [{"name": printable(spec.name), "results": [measured]}]
    return plain


def introduction(trained: Trained, spec: Spec, score: Score | None) -> str:
    """What it is, in two sentences."""
    summary, named = trained.summary, [escaped(name) for name in spec.classes[:SHOWN_CLASSES]]
    size = f" ({count(summary.parameters)} parameters)" if summary is not None and summary.parameters else ""
    more = len(spec.classes) - len(named)
    text = (
        f"A residual network, {code(str(trained.config.model.name))}{size}, that tells {len(spec.classes)} classes of "
        f"images of {spec.image_size}x{spec.image_size} pixels apart: {', '.join(named)}"
        f"{f' and {more:,} more, all in the metadata of the file' if more else ''}. Trained by resnet-train."
    )
    return text if score is None else f"{text} {sentence(score)}"


def sentence(score: Score) -> str:
    """The result with its interval."""
    low, high = wilson(score.correct, score.count)
    return (
        f"**Test accuracy {100 * score.accuracy:.2f} %** ({count(score.correct)} of {count(score.count)} images; 95 % "
        f"interval {100 * low:.2f} to {100 * high:.2f} %)."
    )


# ----------------------------------------------------------------------------------------------------------------- use


def usage(spec: Spec, file: str) -> str:
    """Commands and programs that can be copied."""
    kind = file[file.rindex(".") :]
    extra = "[export]" if kind == ".onnx" else ""
    parts = [
        f'With resnet-train (`pip install "resnet-train{extra}"`):',
        f"```bash\nresnet-predict {printable(shell_quote(file))} cat.png\n```",
        "```python\nimport resnet_train\n\n"
        f"model = resnet_train.load({json.dumps(file)})\n"
        '(prediction,) = model.predict(["cat.png"])\n'
        "print(prediction.label, prediction.confidence)\n```",
    ]
    if kind == ".safetensors":
        parts.append(
            "The file holds weights alone, named as in torchvision, for normalised floats. What the network and the "
            "images have to be is in its metadata."
        )
    else:
        parts += [f"With {'onnxruntime' if kind == '.onnx' else 'PyTorch'} alone:", alone(spec, file)]
    if kind == ".pt2":
        parts.append("PyTorch unpickles such a file: it can run any program, so open only those of people you trust.")
    return "\n\n".join(parts)


def alone(spec: Spec, file: str) -> str:
    """A program without resnet-train, which prepares an image as `data.decode` does."""
    onnx, size, batch = file.endswith(".onnx"), spec.image_size, "pixels[None]"
    first = ["import json", ""] if onnx else []
    lines = [*first, "import numpy as np", "import onnxruntime" if onnx else "import torch"]
    lines += ["from PIL import Image, ImageOps", ""]
    lines += [
        'image = ImageOps.exif_transpose(Image.open("cat.png")).convert("RGB")',
        f"image = ImageOps.fit(image, ({size}, {size}), Image.Resampling.BICUBIC)",
        "pixels = np.asarray(image)" if spec.channels == 3 else 'pixels = np.asarray(image.convert("L"))[..., None]',
    ]
    if spec.raw:
        lines.append(f"normalised = (pixels / 255 - {list(spec.mean)}) / {list(spec.std)}")
        batch = "normalised.transpose(2, 0, 1)[None].astype(np.float32)"
    output = "logits" if spec.raw else "probabilities"
    lines.append(f"images = {batch}  # {spec.takes.replace('N', '1', 1)}")
    if onnx:
        lines += [
            f"session = onnxruntime.InferenceSession({json.dumps(file)})",
            f'({output},) = session.run(None, {{"images": images}})',
            'classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])',
            f"print(classes[{output}[0].argmax()])",
        ]
    else:
        lines += [
            f"model = torch.export.load({json.dumps(file)}).module()",
            f"{output} = model(torch.from_numpy(images.copy()))",
            f"print({output}[0].argmax().item())  # the number of the class",
        ]
    return "```python\n" + "\n".join(lines) + "\n```"


def rows_of_spec(spec: Spec, file: str) -> list[tuple[str, str]]:
    """What goes in and comes out, as rows."""
    numbers = [", ".join(f"{number:g}" for number in values) for values in (spec.mean, spec.std)]
    return [
        ("format", FORMATS[file[file.rindex(".") :]]),
        ("input", f"{spec.takes}; any number of images"),
        ("output", f"{spec.gives}, in the order of the classes"),
        ("normalisation", f"mean {numbers[0]}; std {numbers[1]}" + ("" if spec.raw else " (in the graph)")),
        ("resizing, before the network", escaped(spec.resize)),
        ("SHA-256 of the weights", code(spec.weights_sha256)),
    ]


# ------------------------------------------------------------------------------------------------------------ training


def training(trained: Trained, spec: Spec) -> str:
    """The command, and what it did."""
    rows = rows_of_config(trained.config, trained)
    if trained.summary is not None:
        rows += rows_of_summary(trained.summary)
    command = f"```bash\n{printable(spec.command)}\n```\n\n" if spec.command else ""
    return command + table([(name, escaped(value)) for name, value in rows])


def rows_of_config(config: Config, trained: Trained) -> list[tuple[str, str]]:
    """What was asked for."""
    dataset, optim, augment = config.dataset, config.optim, config.dataset.augment
    used = [f"crop with a border of {augment.crop_padding}"] * bool(augment.crop_padding)
    used += ["flip"] * augment.flip
    used += [f"{name} {getattr(augment, name):g}" for name in ("cutout", "mixup", "cutmix") if getattr(augment, name)]
    average = "" if config.ema_decay is None else f", their moving average (decay {config.ema_decay:g} per step)"
    which = {"last": "the last", "best": "the best on the validation split"}.get(trained.which, trained.which)
    return [
        ("data", DATASETS.get(dataset.name, ("", OWN_DATASETS.get(dataset.name, dataset.name)))[1]),
        ("augmentation", ", ".join(used) or "none"),
        ("optimiser", f"{optim.name}, learning rate {optim.lr:g} ({config.schedule.name})"),
        ("weight decay", f"{optim.weight_decay:g}"),
        ("batch size", count(config.batch_size)),
        ("label smoothing", f"{config.label_smoothing:g}"),
        ("seed", str(config.seed)),
        ("weights", f"{which}, after {count(trained.step)} steps{average}"),
        ("precision of the training", trained.precision),
    ]


def rows_of_summary(summary: Summary) -> list[tuple[str, str]]:
    """What happened."""
    images = ", ".join(f"{count(number)} {split}" for split, number in summary.images.items())
    versions = ", ".join(f"{name} {version}" for name, version in summary.versions.items())
    return [
        ("images", images),
        ("length", f"{count(summary.steps)} steps, {summary.epochs:.4g} epochs"),
        ("hardware", f"{summary.device}: {summary.hardware}"),
        ("time", f"{duration(summary.train_seconds)} at {summary.images_per_second:,.0f} images/s"),
        ("versions", versions),
        ("source", summary.git_commit or "not recorded"),
    ]


def result(trained: Trained, score: Score | None, check: Check) -> str:
    """Accuracy, rule, and what was compared."""
    sizes = f"{', '.join(map(str, BATCHES[:-1]))} and {BATCHES[-1]}"
    compared = (
        f"When this file was written it was run on {check.images} images in batches of {sizes}: the same classes as "
        f"the original in fp32, probabilities within {check.largest_difference:.1e}."
    )
    if score is None or trained.summary is None:
        return f"The run has no result of these very weights. {compared}"
    arithmetic = trained.precision
    note = "" if arithmetic == "fp32" else ", in which the accuracy may differ by a few images"
    return (
        f"{sentence(score)} Loss {score.loss:.4f}. The weights are those {escaped(trained.summary.result_rule)}. "
        f"Measured by the run in {escaped(arithmetic)}; this file computes in fp32{note}.\n\n{compared}"
    )


def limits(spec: Spec, trained: Trained) -> str:
    """What nobody should expect of it."""
    known = DATASETS.get(spec.dataset, ("", OWN_DATASETS.get(spec.dataset, spec.dataset)))[1]
    size = f"{spec.image_size}x{spec.image_size}"
    lines = [
        f"It knows these {len(spec.classes)} classes and no other: an image of anything else gets one of them too, "
        "often with a high probability.",
        f"The accuracy is that of one run (seed {trained.config.seed}) on images like those of {escaped(known)}. On "
        "others it is unknown, and what is unbalanced in them is unbalanced here.",
        f"An image loses what {size} pixels cannot show, and what lies outside of the square in its middle.",
        "Probabilities are not calibrated.",
        "No licence is stated. Before you publish, add `license:` to the front matter, and look at that of the data.",
    ]
    return "\n".join(f"- {line}" for line in lines)


# ------------------------------------------------------------------------------------------------------------ Markdown


def table(rows: list[tuple[str, str]]) -> str:
    """Two columns of Markdown."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def escaped(text: str) -> str:
    """``text`` of a user or of a stranger's file as it is, in Markdown: nothing in it is markup, a link or HTML."""
    signs = re.sub(r"([\\`*_\[\]#|~$@]|:(?=//)|(?<=www)\.)", r"\\\1", printable(text))
    return signs.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(text: str) -> str:
    """A word in the type of programs; what is no plain word, escaped."""
    return f"`{text}`" if re.fullmatch(r"[\w.+-]+", text, re.ASCII) else escaped(text)
