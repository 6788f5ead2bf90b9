"""``resnet-bench``: images per second of this project's training loop and of the loops that it replaces, in one run.

Three loops train the same network on the same images, in alternating rounds, so that a machine whose speed drifts
favours none of them:

- ``tutorial``: what people copy: torchvision transforms on PIL images, a DataLoader with a worker for each core, fp32,
  NCHW, the loss and the accuracy read at every step.
- ``tuned``: what a careful user makes of it: the same loader with pinned memory and workers that stay, mixed precision,
  channels_last, nothing read from the device in between.
- ``ours``: `TrainData.batch` and `train_step`, as the training loop calls them.

Each ``--variant`` is our loop once more, with other values: ``--variant compile=true`` measures what compiling brings,
``--variant dataset.num_train=500000`` (with ``dataset=synthetic``) whether the speed stays as the data grows.

Beside them the machine's limits are measured in each round: large matrix products and a large copy. They say what the
network could reach here at most (`resnet_train.limits`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resnet_train import cli
from resnet_train.config.run import Config
from resnet_train.config.store import register_schema
from resnet_train.errors import ConfigError, RunError
from resnet_train.explain import explain, is_config_error

SIDES = ("tutorial", "tuned", "ours")
FIRST_UPDATE_TIMEOUT_SECONDS = 600


@dataclass
class Result:
    """Images per second of one loop, a number for each round."""

    rounds: list[float]

    @property
    def median(self) -> float:
        """The middle round."""
        return statistics.median(self.rounds)


def main() -> None:
    """``resnet-bench``, ``python -m resnet_train.bench``."""
    parser = argparse.ArgumentParser(
        prog="resnet-bench",
        description="Compare training loops on this machine. Overrides are those of resnet-train: model=resnet18 ...",
    )
    parser.add_argument("overrides", nargs="*", help="e.g. model=resnet18 batch_size=128")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each loop (default 5)")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a round of one loop (default 8)")
    parser.add_argument("--sides", default=",".join(SIDES), help=f"loops to compare (default {','.join(SIDES)})")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="OVERRIDES",
        help="our loop once more, with these values changed, e.g. 'compile=true'; can be given several times",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE")
    arguments = parser.parse_intermixed_args()
    register_schema()
    try:
        sides = tuple(arguments.sides.split(","))
        if not set(sides) <= set(SIDES) or arguments.rounds < 1 or arguments.seconds <= 0:
            raise ConfigError(f"expected --sides among {','.join(SIDES)}, --rounds and --seconds above 0")
        config, overrides, note = cli.offline_config(arguments.overrides)
        variants = {
            words.strip(): cli.offline_config(cli.merge_overrides(overrides, shlex.split(words)))[0]
            for words in arguments.variant
        }
        report = measure(config, variants, sides=sides, rounds=arguments.rounds, seconds=arguments.seconds)
        if "ours" in sides:
            report["first_update"] = first_update(overrides)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"resnet-bench: {explain(error)}", file=sys.stderr)
        sys.exit(cli.EXIT_CONFIG if is_config_error(error) else cli.EXIT_FAILED)
    report["images"] = note
    print(table(report))
    if arguments.json:
        try:
            Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")
        except OSError as error:
            print(f"resnet-bench: cannot write {arguments.json}: {error.strerror or error}", file=sys.stderr)
            sys.exit(cli.EXIT_FAILED)


def measure(
    config: Config, variants: dict[str, Config], *, sides: tuple[str, ...], rounds: int, seconds: float
) -> dict[str, Any]:
    """Run the loops in alternating rounds of some ``seconds`` each, after one warm-up round of each.

    Each loop has a process of its own, which sleeps while it is another's turn: what one sets up for itself (threads,
    memory) is not there for the others.
    """
    from resnet_train import build, environment
    from resnet_train.contestants import Contestant
    from resnet_train.data.dataset import load_dataset
    from resnet_train.limits import layers, roofline

    plan = build.build_plan(config)
    dataset = load_dataset(config.dataset, seed=config.seed)  # once, before the processes: it may have to be unpacked
    model = build.build_model(config.model, num_classes=len(dataset.classes), seed=config.seed)
    loops = {side: (config, side) for side in sides} | {words: (one, "ours") for words, one in variants.items()}
    results = {name: Result([]) for name in loops}
    limits: dict[str, list[float]] = {"fp32": [], "half": [], "copy": []}
    with contextlib.ExitStack() as stack:
        contestants = {name: stack.enter_context(Contestant(one, side, seconds)) for name, (one, side) in loops.items()}
        machine = stack.enter_context(Contestant(config, "limits", seconds))
        for round_number in range(rounds + 1):
            for name, contestant in contestants.items():
                images_per_second = contestant.round()
                if round_number:
                    results[name].rounds.append(images_per_second)
            for name, limit in machine.round().items():
                limits[name].append(limit)
        threads = {contestant.threads for contestant in contestants.values()}
        details = {name: contestants[name].report() for name, (_, side) in loops.items() if side == "ours"}
    ceiling = {name: statistics.median(values) for name, values in limits.items()}
    found = layers(model, dataset.image_size)
    is_half = plan.precision in ("bf16", "fp16")
    roof = roofline(
        found,
        flops=ceiling["half" if is_half else "fp32"],
        bandwidth=ceiling["copy"],
        bytes_a_value=2 if is_half else 4,
    )
    return {
        "model": config.model.name,
        "batch_size": config.batch_size,
        "multiply_adds": sum(layer.multiply_adds for layer in found),
        "num_train": {name: contestant.num_train for name, contestant in contestants.items()},
        "device": str(plan.device),
        "hardware": environment.hardware(plan.device),
        "precision": plan.precision,
        "choices": dict(plan.lines()),
        "versions": environment.versions(),
        "git_commit": environment.git_commit(),
        "seconds_a_round": seconds,
        "torch_threads": max(threads),
        "sides": {name: {**asdict(result), "median": result.median} for name, result in results.items()},
        "limits": {"rounds": limits, "median": ceiling},
        "roofline": {**asdict(roof), "images_per_second": roof.images_per_second},
        "details": details,
    }


def first_update(overrides: list[str]) -> dict[str, float]:
    """Seconds from the start of ``resnet-train`` to the end of its first update, with empty caches and with full ones.

    The run is ended when its first row of metrics is there. What is compiled is kept in a folder of its own.
    """
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        caches = {"XDG_CACHE_HOME": f"{folder}/cache", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
        for name in ("cold", "warm"):
            directory = Path(folder, name)
            table = directory / "metrics.csv"
            words = [*overrides, "log_every=1", f"hydra.run.dir={cli.quoted(directory)}"]
            command = [sys.executable, "-m", "resnet_train.train", *words]
            begun = time.perf_counter()
            with open(Path(folder, "output"), "w+") as output:
                process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **caches})
                try:
                    while not table.exists() or table.read_text().count("\n") < 2:
                        if process.poll() is not None or time.perf_counter() - begun > FIRST_UPDATE_TIMEOUT_SECONDS:
                            output.seek(0)
                            said = output.read().strip().splitlines() or ["nothing"]
                            raise RunError(f"resnet-train made no first update; it said: {said[-1]}")
                        time.sleep(0.005)
                    seconds[name] = time.perf_counter() - begun
                finally:
                    process.kill()
                    process.wait()
            shutil.rmtree(directory, ignore_errors=True)
    return seconds


def table(report: dict[str, Any]) -> str:
    """The figures as a person reads them."""
    sides, num_train = report["sides"], report["num_train"]
    width = max(map(len, sides))
    lines = [
        f"{report['model']}, batch {report['batch_size']}, {report['multiply_adds'] / 1e6:,.1f} M multiply-adds an "
        f"image, {report['images']}",
        f"{report['device']} ({report['hardware']}), ours and tuned in {report['precision']}, tutorial in fp32",
        *(f"{name}  {words}" for name, words in report["choices"].items()),
        "",
        f"{'':{width}}{'images/s':>10}{'lowest':>10}{'highest':>10}{'epoch s':>10}",
    ]
    for side, result in sides.items():
        rounds, median = result["rounds"], result["median"]
        lines.append(
            f"{side:{width}}{median:10,.0f}{min(rounds):10,.0f}{max(rounds):10,.0f}{num_train[side] / median:10.1f}"
        )
    if "ours" in sides:
        for side in sides:
            if side != "ours":
                pairs = zip(sides["ours"]["rounds"], sides[side]["rounds"], strict=True)
                ratios = [ours / other for ours, other in pairs]
                lines.append(
                    f"ours / {side}: {statistics.median(ratios):.2f} (lowest {min(ratios):.2f}, "
                    f"highest {max(ratios):.2f}, of {len(ratios)} rounds side by side)"
                )
    lines += ["", *limit_lines(report)]
    for name, details in report["details"].items():
        others = [f"{key}  {words}" for key, words in details["choices"].items() if report["choices"].get(key) != words]
        epoch_seconds = report["num_train"][name] / sides[name]["median"]
        lines += ["", f"{name}:", *others, *detail_lines(details, epoch_seconds)]
        if name == "ours":
            first = report["first_update"]
            lines.append(
                f"first update: {first['warm']:.1f} s after the start, {first['cold']:.1f} s with nothing compiled yet"
            )
    return "\n".join(lines)


def limit_lines(report: dict[str, Any]) -> list[str]:
    """What the machine can do, and what that means for this network."""
    limits, roof = report["limits"]["median"], report["roofline"]
    lines = [
        f"limits here: matrix products {limits['fp32'] / 1e9:,.0f} GFLOP/s in fp32 and {limits['half'] / 1e9:,.0f} in "
        f"half precision, copies {limits['copy'] / 1e9:,.1f} GB/s",
        f"roofline: {1 / roof['compute']:,.0f} images/s by its products alone, {1 / roof['memory']:,.0f} by its memory "
        f"alone, {roof['images_per_second']:,.0f} one after the other",
    ]
    if "ours" in report["sides"]:
        reached = report["sides"]["ours"]["median"]
        lines.append(
            f"ours reaches {reached * roof['compute']:.0%} of the products' limit and "
            f"{reached / roof['images_per_second']:.0%} of the roofline"
        )
    return lines


def detail_lines(details: dict[str, Any], epoch_seconds: float) -> list[str]:
    """What else is known about one of our loops."""
    phases = ", ".join(f"{phase} {share:.1%}" for phase, share in details["phases"].items())
    evaluation, checkpoint = details["evaluation"], details["checkpoint"]
    return [
        f"time: {phases}; idle {details['idle']:.1%}",
        f"evaluation of {evaluation['images']:,} images: {evaluation['seconds']:.2f} s, "
        f"{evaluation['seconds'] / epoch_seconds:.1%} of an epoch",
        f"a checkpoint of {checkpoint['bytes'] / 1e6:,.1f} MB stops training for {checkpoint['stops_seconds']:.3f} s "
        f"and is on disk after {checkpoint['written_seconds']:.3f} s",
        f"peak memory: {details['peak_memory_bytes'] / 1e6:,.0f} MB",
    ]


if __name__ == "__main__":
    main()
