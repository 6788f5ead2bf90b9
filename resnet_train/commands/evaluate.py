"""``resnet-eval``: how good a trained network is, by every measure, with its mistakes by name."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_train.cli.program import Parser, end_with
from resnet_train.errors import ConfigError
from resnet_train.runs.console import count, printable

if TYPE_CHECKING:
    from resnet_train.inference.evaluation import Evaluation
    from resnet_train.training.scores import ClassScore

PROGRAM = "resnet-eval"
MOST_ROWS = 20  # classes in the table on the terminal
NAME_WIDTH = 24
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


def parser() -> argparse.ArgumentParser:
    """The flags of the program."""
    found = Parser(
        prog=PROGRAM,
        description="Evaluate a trained network: a run directory, latest, a checkpoint, or a file of resnet-export; "
        "or weights from elsewhere with --weights. Overrides say where the data lie: dataset.root=FOLDER.",
        epilog="examples: resnet-eval latest --split val; "
        "resnet-eval --weights resnet20.th model=resnet20 'dataset.mean=[0.485,0.456,0.406]'",
    )
    found.add_argument("run", nargs="*", metavar="RUN [OVERRIDES]", help="what to evaluate, then overrides")
    found.add_argument("--weights", metavar="FILE", help="a state dict of the network that the overrides describe")
    found.add_argument("--split", choices=("test", "val", "train"), default="test", help="images (default test)")
    found.add_argument(
        "--checkpoint", default="result", metavar="WHICH", help="last, best or a file (default: what the result is of)"
    )
    found.add_argument(
        "--tta", choices=("none", "flip", "multicrop"), default="none", help="mean over views of each image"
    )
    found.add_argument(
        "--tta-below", type=float, default=1.0, metavar="P", help="only for images less sure than P, in (0, 1]"
    )
    found.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps (default auto)")
    found.add_argument("--precision", choices=PRECISIONS, help="default: the run's own, where the device has it")
    found.add_argument("--output", metavar="FOLDER", help="of the files (default: eval/ in the run directory)")
    found.add_argument("--json", action="store_true", help="print all figures as JSON")
    return found


def main() -> None:
    """``resnet-eval``, ``python -m resnet_train.commands.evaluate``."""
    arguments = parser().parse_intermixed_args()
    end_with(PROGRAM, lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print, write; raises `ConfigError` and `RunError`."""
    if not arguments.run and not arguments.weights:
        raise ConfigError(f"expected a run directory, latest or a file, got nothing; {PROGRAM} --help has examples")
    if not 0 < arguments.tta_below <= 1:
        raise ConfigError(f"--tta-below: expected a confidence in (0, 1], got {arguments.tta_below:g}")
    from resnet_train.inference.evaluation import Asked, check_data, evaluate, split_of
    from resnet_train.inference.evaluation_files import write_evaluation
    from resnet_train.inference.subject import open_subject

    subject = open_subject(
        arguments.run,
        weights=arguments.weights,
        checkpoint=arguments.checkpoint,
        device=arguments.device,
        precision=arguments.precision,
    )
    split, dataset = split_of(subject.config, arguments.split)
    for difference in check_data(dataset, subject.classes or dataset.classes, subject.data):
        print(f"{PROGRAM}: the data are not those of the run: {printable(difference)}", file=sys.stderr)
    asked = Asked(arguments.split, arguments.tta, arguments.tta_below)
    evaluation = evaluate(subject.classifier(dataset.classes), split, asked)
    facts = subject.facts(asked)
    if arguments.json:
        print(json.dumps(facts | evaluation.plain(), indent=1), flush=True)
    else:
        print(report(evaluation, facts), flush=True)
    folder = Path(arguments.output) if arguments.output else subject.folder(asked)
    if folder is not None:
        for note in write_evaluation(folder, evaluation, facts):
            print(f"{PROGRAM}: {note}", file=sys.stderr)
        print(f"{printable(str(folder))}: eval.json, tables and pictures", file=sys.stderr)
    return 0


# ------------------------------------------------------------------------------------------------------- the terminal


def report(evaluation: Evaluation, facts: dict[str, Any]) -> str:
    """All that fits a terminal of 80 columns."""
    scores, low_high = evaluation.scores, evaluation.scores.interval
    low, high = (100 * value for value in low_high)
    counted = f"{count(scores.correct)} of {count(scores.count)} images"
    rows = [
        (
            "network",
            f"{facts['name']}, {facts['checkpoint']}" + (f", step {count(facts['step'])}" * bool(facts["step"])),
        ),
        ("images", f"{facts['dataset']}, {facts['split']} split, TTA {tta(evaluation)}"),
        ("computed", facts["runs_on"]),
        ("accuracy", f"{100 * scores.accuracy:.2f} % ({counted}), 95 % interval {low:.2f} to {high:.2f} %"),
        ("error", f"{100 * scores.error:.2f} %, 95 % interval {100 - high:.2f} to {100 - low:.2f} %"),
        *([("top-5", f"{100 * scores.top5:.2f} %")] if scores.top5 is not None else []),
        ("loss", f"{scores.loss:.4f}"),
        ("balanced", f"{100 * scores.balanced_accuracy:.2f} %, the mean recall"),
        ("calibration", f"expected error {100 * scores.calibration_error:.2f} %"),
    ]
    if facts.get("summary"):
        rows.append(("summary", summary_line(evaluation, facts["summary"])))
    lines = [f"{name:12}{printable(value)}" for name, value in rows]
    return "\n".join([*lines, "", *class_table(evaluation), "", *confused(evaluation)])


def tta(evaluation: Evaluation) -> str:
    """Which views were looked at."""
    asked = evaluation.asked
    if asked.tta == "none" or asked.tta_below == 1:
        return asked.tta
    return f"{asked.tta} for the {count(evaluation.augmented)} images below {asked.tta_below:g}"


def summary_line(evaluation: Evaluation, own: dict[str, Any]) -> str:
    """Whether the run's own summary says the same."""
    if own["correct"] == evaluation.scores.correct:
        return "the run's own has the same number of correct images"
    return f"the run's own has {count(own['correct'])} of {count(own['count'])}, computed in {own['computed']}"


def class_table(evaluation: Evaluation) -> list[str]:
    """Precision, recall and F1 by class, the lowest F1 first where there are many, and their means."""
    scores = evaluation.scores
    shown: list[ClassScore] = list(scores.per_class)
    if len(shown) > MOST_ROWS:
        shown = sorted(shown, key=lambda one: one.f1)[:MOST_ROWS]
    names = [shortened(one.name) for one in shown]
    width = max(len("class"), len("weighted"), *map(len, names))
    lines = [f"{'class':{width}}  precision   recall       F1    images"]
    lines += [
        f"{name:{width}}  {100 * one.precision:9.2f} {100 * one.recall:8.2f} {100 * one.f1:8.2f} {one.support:9,}"
        for name, one in zip(names, shown, strict=True)
    ]
    if len(scores.per_class) > len(shown):
        lines.append(f"... and {len(scores.per_class) - len(shown)} more with a higher F1, in per_class.csv")
    lines += [
        f"{name:{width}}  {100 * one.precision:9.2f} {100 * one.recall:8.2f} {100 * one.f1:8.2f}"
        for name, one in (("macro", scores.macro), ("weighted", scores.weighted))
    ]
    return lines


def confused(evaluation: Evaluation) -> list[str]:
    """The pairs of classes that are confused most often."""
    scores = evaluation.scores
    pairs = [
        (number, scores.classes[label], scores.classes[predicted])
        for label, row in enumerate(scores.confusion)
        for predicted, number in enumerate(row)
        if number and label != predicted
    ]
    worst = sorted(pairs, key=lambda pair: -pair[0])[:5]
    if not worst:
        return ["no mistakes"]
    lines = [f"  {count(number):>6}  {shortened(label)} taken for {shortened(other)}" for number, label, other in worst]
    return ["most often confused:", *lines]


def shortened(name: str) -> str:
    """A class's name as a cell of a table."""
    name = printable(name)
    return name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 1]}…"


if __name__ == "__main__":
    main()
