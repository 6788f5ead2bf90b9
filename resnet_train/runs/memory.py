"""How much memory this machine has, and the refusal of what is sure not to fit. Without torch."""

from __future__ import annotations

import os
from pathlib import Path

from resnet_train.config.run import Config
from resnet_train.config.size import Need, activations_need, known_data_need, weights_need
from resnet_train.errors import ConfigError

CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of a container: version 2, version 1


def check_memory(config: Config, *, on_cpu: bool = False) -> None:
    """Raise `ConfigError` where a run is sure not to fit into the memory of this machine.

    Images and weights have to; what the layers keep for their gradients too where it is known that the CPU trains.
    """
    data = known_data_need(config.dataset)
    check_room(*([data] if data else []), weights_need(config), *([activations_need(config)] if on_cpu else []))


def check_room(*needs: Need) -> None:
    """Raise `ConfigError` where this machine, with nothing else to do, has too little memory for all ``needs``."""
    there = total_bytes()
    if there is None or sum(need.num_bytes for need in needs) <= there:
        return
    largest = max(needs, key=lambda need: need.num_bytes)
    raise ConfigError(
        f"{largest.key}: expected what fits into the {amount(there)} of memory that this machine has, got "
        f"{largest.what}, which take {amount(largest.num_bytes)} or more; {largest.fix}"
    )


def total_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Memory and swap of this machine, or what its container may use of it; None where that cannot be found out."""
    limits = []
    try:
        lines = (line.split() for line in (proc / "meminfo").read_text(encoding="ascii").splitlines())
        sizes = {words[0]: int(words[1]) * 1024 for words in lines if len(words) == 3}
        limits.append(sizes["MemTotal:"] + sizes.get("SwapTotal:", 0))
    except (OSError, ValueError, KeyError):
        try:
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (AttributeError, ValueError, OSError):  # Windows has neither
            return None
    for name in CGROUP_LIMITS:
        try:
            limits.append(int((cgroup / name).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(limits)


def amount(num_bytes: int) -> str:
    """``21.3 GB``."""
    for unit, size in (("PB", 10**15), ("TB", 10**12), ("GB", 10**9)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes / 10**6:,.1f} MB"
