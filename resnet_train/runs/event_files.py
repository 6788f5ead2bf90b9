"""Event files as they lie in a run directory: their names, what they hold, and what TensorBoard shows of them."""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from resnet_train.runs.atomic import read_regular

GRAPH_TAG = "graph"  # stands for the graph, which has no tag of its own
MOST_BYTES = 1 << 32  # of an event file that is read again


def next_name(directory: Path) -> str:
    """A name for an event file that stands behind all others: they are read in the order of their names.

    It holds the time, and more than that where the clock was set back since the session before.
    """
    numbers = [re.match(r"events\.out\.tfevents\.(\d{1,19})", path.name) for path in directory.glob("*tfevents*")]
    latest = max((int(found[1].ljust(19, "0")) for found in numbers if found), default=0)
    return f"events.out.tfevents.{max(time.time_ns(), latest + 1):019}.{socket.gethostname()}.{os.getpid()}"


def points(directory: Path) -> dict[int, set[str]]:
    """What TensorBoard shows of the event files in ``directory``: the tags at each step, `GRAPH_TAG` at step 0."""
    found: dict[int, set[str]] = defaultdict(set)
    has_graph = False
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for event in read_events(path):
            if event.session_log.status == SessionLog.START:  # purges what others wrote from there on
                for step in [step for step in found if step >= event.step]:
                    del found[step]
            found[event.step].update(value.tag for value in event.summary.value)
            has_graph = has_graph or event.HasField("graph_def")
    if has_graph:  # which nothing purges
        found[0].add(GRAPH_TAG)
    return found


def read_events(path: Path) -> Iterator[Event]:
    """The events in a file, up to where it ends or is corrupt."""
    try:
        data = read_regular(path, limit=MOST_BYTES)
    except OSError:
        return
    position = 0
    while position + 12 <= len(data):  # length, its checksum; the data, and their checksum
        (length,) = struct.unpack_from("<Q", data, position)
        start, position = position + 12, position + 12 + length + 4
        if not length or position > len(data):
            return
        try:
            yield Event.FromString(data[start : position - 4])
        except Exception:  # protobuf's own, for bytes that are none
            return
