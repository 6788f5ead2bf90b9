"""``resnet-export``: a trained network as a file for other programs, checked before anybody sees it."""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path

from resnet_train.cli.overrides import key_of
from resnet_train.cli.program import Parser, end_with
from resnet_train.errors import ConfigError
from resnet_train.inference.find import EXPORTED, find

FORMATS = tuple(ending[1:] for ending in EXPORTED)
# What may be another than in the run: where its data lie now. Anything else would make another network of it.
OVERRIDES = ("dataset.root", "dataset.cache", "dataset.labels", "dataset.download", "dataset.mirrors")
NEEDED = ("onnx", "onnxscript", "onnxruntime")  # for ONNX: the extra `export`


def main() -> None:
    """``resnet-export``, ``python -m resnet_train.commands.export``."""
    parser = Parser(
        prog="resnet-export",
        description="Write a trained network to a file for other programs: normalisation inside, bytes (N, H, W, C) "
        "in, probabilities out, any number of images at once. The file is run on real images and compared with the "
        "original; one that differs is not kept. A model card is written beside it.",
        epilog="example: resnet-export latest --format onnx",
    )
    parser.add_argument("run", metavar="RUN", help="a run directory, a checkpoint, or latest")
    parser.add_argument("overrides", nargs="*", help="where the data set lies now, e.g. dataset.root=FOLDER")
    parser.add_argument("--format", choices=FORMATS, help="default: that of --output, else onnx")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="a file, or a folder for it and README.md (default RUN/export/FORMAT)",
    )
    parser.add_argument("--raw", action="store_true", help="normalised floats (N, C, H, W) in, logits out")
    parser.add_argument(
        "--checkpoint", default="result", metavar="NAME", help="result (default), last, best, or a file"
    )
    parser.add_argument(
        "--images", nargs="+", type=Path, metavar="PATH", help="check with these instead of the data set's test images"
    )
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    parser.add_argument("--json", action="store_true", help="say what was written as JSON")
    arguments = parser.parse_intermixed_args()
    end_with("resnet-export", lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Export, and say what was written."""
    source = find(arguments.run)
    kind = format_of(arguments.format, arguments.output)
    checkpoint = check(source, kind, arguments)
    path, card = targets(source, kind, arguments.output)
    for target in (path, card):
        if target.exists() and not arguments.force:
            raise ConfigError(f"--output: expected a new file, got {target}, which exists; --force replaces it")

    from resnet_train.inference.check import BATCHES, given_images, own_images  # torch
    from resnet_train.inference.export import export
    from resnet_train.inference.trained import read_trained

    trained = read_trained(checkpoint or source, which=arguments.checkpoint, overrides=arguments.overrides)
    may_download = "dataset.download" in map(key_of, arguments.overrides)
    images = (
        given_images(arguments.images, trained) if arguments.images else own_images(trained, may_download=may_download)
    )
    if not arguments.json:
        print(f"{trained.config.name}: {trained.which} checkpoint, step {trained.step}", flush=True)
    done = export(trained, path, card=card, images=images, raw=arguments.raw)
    if arguments.json:
        spec, size = done.spec, path.stat().st_size
        found = {"file": str(path), "card": str(card), "format": kind, "bytes": size, "checkpoint": trained.which}
        found |= {"step": spec.step, "input": spec.takes, "output": spec.gives, "weights_sha256": spec.weights_sha256}
        found |= {"checked_images": done.check.images, "largest_difference": done.check.largest_difference}
        print(json.dumps(found))
        return 0
    sizes = f"{', '.join(map(str, BATCHES[:-1]))} and {BATCHES[-1]}"
    print(
        f"input   {done.spec.takes}\noutput  {done.spec.gives}\n"
        f"check   {done.check.images} images in batches of {sizes}: the same classes as the original, probabilities "
        f"within {done.check.largest_difference:.1e}\n"
        f"{path} ({path.stat().st_size / 1e6:.1f} MB)\n{card}"
    )
    return 0


def format_of(asked: str | None, output: Path | None) -> str:
    """The format: as asked, else of the ending of ``output``, else ONNX, which the most programs read."""
    ending = "" if output is None or output.is_dir() else output.suffix
    if ending in EXPORTED:
        if asked not in (None, ending[1:]):
            raise ConfigError(f"--output: expected a folder, or a file that ends in .{asked}, got {output}")
        return ending[1:]
    if ending[1:].isalpha():
        raise ConfigError(f"--output: expected a folder, or a file that ends in {', '.join(EXPORTED)}, got {output}")
    return asked or "onnx"


def check(source: Path, kind: str, arguments: argparse.Namespace) -> Path | None:
    """Raise `ConfigError` for what cannot be done; returns the checkpoint that was named, if one was."""
    if source.suffix in EXPORTED:
        raise ConfigError(f"expected a run directory or a checkpoint, got {source}, which is exported already")
    if kind == "safetensors" and arguments.raw:
        raise ConfigError("--raw: a safetensors file holds weights and no graph that could be raw; leave it out")
    missing = [name for name in NEEDED if find_spec(name) is None]
    if kind == "onnx" and missing:
        raise ConfigError(f'--format onnx needs {", ".join(missing)}; pip install "resnet-train[export]"')
    for override in arguments.overrides:
        if key_of(override) not in OVERRIDES:
            raise ConfigError(f"expected overrides of {', '.join(OVERRIDES)} alone, got {override}; leave it out")
    for path in arguments.images or ():
        if not path.exists():
            raise ConfigError(f"--images: expected files and folders, got {path}, which does not exist")
    if arguments.checkpoint in ("result", "last", "best") or not source.is_dir():
        return None
    named = Path(arguments.checkpoint)
    if not named.is_file():
        raise ConfigError(f"--checkpoint: expected last, best or a file, got {str(named)!r}, which does not exist")
    return named


def targets(source: Path, kind: str, output: Path | None) -> tuple[Path, Path]:
    """The file, and its card: README.md in a folder for both, a namesake beside a file of a given name."""
    if output is None:
        if not source.is_dir():
            raise ConfigError("--output: expected a file or a folder, since a checkpoint alone has no place for it")
        output = source / "export" / kind
    if output.suffix == f".{kind}" and not output.is_dir():
        return output, output.with_suffix(".md")
    return output / f"model.{kind}", output / "README.md"


if __name__ == "__main__":
    main()
