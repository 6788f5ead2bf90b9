"""The figures of ``resnet-bench`` as a person reads them."""

from __future__ import annotations

import statistics
from typing import Any

OURS = "resnet-train"


def table(report: dict[str, Any]) -> str:
    """A line for each loop, its ratio to the others, the roofline, and where the time of resnet-train goes."""
    loops, num_train = report["loops"], report["num_train"]
    width = max(map(len, loops))
    lines = [
        f"{report['model']}, batch {report['batch_size']}, {report['multiply_adds'] / 1e6:,.1f} M multiply-adds per "
        f"image, {report['images']}",
        f"{report['device']} ({report['hardware']}), resnet-train and tuned in {report['precision']}, tutorial in fp32",
        *(f"{name}  {words}" for name, words in report["choices"].items()),
        "",
        f"{'':{width}}{'images/s':>10}{'lowest':>10}{'highest':>10}{'epoch s':>10}",
    ]
    for loop, result in loops.items():
        rounds, median = result["rounds"], result["median"]
        lines.append(
            f"{loop:{width}}{median:10,.0f}{min(rounds):10,.0f}{max(rounds):10,.0f}{num_train[loop] / median:10.1f}"
        )
    if OURS in loops:
        for loop in loops:
            if loop != OURS:
                pairs = zip(loops[OURS]["rounds"], loops[loop]["rounds"], strict=True)
                ratios = [ours / other for ours, other in pairs]
                lines.append(
                    f"{OURS} / {loop}: {statistics.median(ratios):.2f} (lowest {min(ratios):.2f}, "
                    f"highest {max(ratios):.2f}, of {len(ratios)} rounds side by side)"
                )
    lines += ["", *machine_lines(report)]
    for name, details in report["details"].items():
        others = [f"{key}  {words}" for key, words in details["choices"].items() if report["choices"].get(key) != words]
        epoch_seconds = report["num_train"][name] / loops[name]["median"]
        lines += ["", f"{name}:", *others, *detail_lines(details, epoch_seconds)]
        if name == OURS:
            first = report["first_step"]
            lines.append(
                f"first step: {first['warm']:.1f} s after the start, {first['cold']:.1f} s with nothing compiled yet"
            )
    return "\n".join(lines)


def machine_lines(report: dict[str, Any]) -> list[str]:
    """What the machine can do, and what that means for this network."""
    machine, roof = report["machine"]["median"], report["roofline"]
    lines = [
        f"this machine: matrix multiplications {machine['fp32'] / 1e9:,.0f} GFLOP/s in fp32 and "
        f"{machine['half'] / 1e9:,.0f} in half precision, copies {machine['copy'] / 1e9:,.1f} GB/s",
        f"roofline: {1 / roof['compute']:,.0f} images/s by its multiplications alone, {1 / roof['memory']:,.0f} by its "
        f"memory alone, {roof['images_per_second']:,.0f} one after the other",
    ]
    if OURS in report["loops"]:
        reached = report["loops"][OURS]["median"]
        lines.append(
            f"{OURS} reaches {reached * roof['compute']:.0%} of the matmul limit and "
            f"{reached / roof['images_per_second']:.0%} of the roofline"
        )
    return lines


def detail_lines(details: dict[str, Any], epoch_seconds: float) -> list[str]:
    """What else is known about a loop of resnet-train."""
    phases = ", ".join(f"{phase} {fraction:.1%}" for phase, fraction in details["phases"].items())
    evaluation, checkpoint = details["evaluation"], details["checkpoint"]
    return [
        f"time: {phases}; idle {details['idle']:.1%}",
        f"evaluation of {evaluation['images']:,} images: {evaluation['seconds']:.2f} s, "
        f"{evaluation['seconds'] / epoch_seconds:.1%} of an epoch",
        f"a checkpoint of {checkpoint['bytes'] / 1e6:,.1f} MB stops training for {checkpoint['stops_seconds']:.3f} s "
        f"and is on disk after {checkpoint['written_seconds']:.3f} s",
        f"peak memory: {details['peak_memory_bytes'] / 1e6:,.0f} MB",
    ]
