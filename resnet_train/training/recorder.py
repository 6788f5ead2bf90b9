"""How operations become a recording: the seam between `GraphedStep` and CUDA, so that all around it runs anywhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import torch

Result = TypeVar("Result")
Replay = Callable[[], None]


class Recorder(Protocol):
    """Where a step is made and recorded."""

    def run(self, step: Callable[[], Result]) -> Result:
        """Make ``step`` where a recording of it would be made."""
        ...

    def record(self, step: Callable[[], None]) -> Replay:
        """Let ``step`` issue its operations without computing anything; what is returned computes them, at each call.

        They read and write the memory that they were recorded with; Python takes no part. Raises whatever stands in
        the way. Then streams, random generators and the allocator are what they were; values that ``step`` has
        assigned are not.
        """
        ...


class CudaRecorder:
    """CUDA graphs on one kept stream of ``device``, which need not be the current one.

    Libraries keep handles and workspaces for each stream, so steps are made on it from the first one on: a recording
    then finds them there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._failed: torch.cuda.CUDAGraph | None = None

    def run(self, step: Callable[[], Result]) -> Result:
        """See `Recorder`. What ``step`` returns can be used on the stream that was current before."""
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            result = step()
        here.wait_stream(self._stream)
        return result

    def record(self, step: Callable[[], None]) -> Replay:
        """See `Recorder`."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        first: Exception | None = None
        # torch.cuda.graph waits for the current device, and leaves its stream current if the recording cannot be ended.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            index = torch.cuda.current_device()
            generator = torch.cuda.default_generators[index]
            random = generator.clone_state()
            try:
                # Thread-local: a checkpoint may be on its way to the disk meanwhile.
                with torch.cuda.graph(graph, pool, self._stream, capture_error_mode="thread_local"):
                    try:
                        step()
                    except Exception as error:
                        first = error  # ending the recording raises another one, which says less
                        raise
            except Exception:
                # The generator may still take itself for recorded, and would refuse to draw: it gets another state.
                generator.graphsafe_set_state(random)
                # The allocator may still ask the graph whether to serve from the graph's memory, so the graph is kept.
                # Told to stop, it frees that memory; where the recording was ended in order, it refuses.
                self._failed = graph
                with suppress(Exception):
                    torch._C._cuda_endAllocateToPool(index, pool)
                    torch._C._cuda_releasePool(index, pool)
                if first is not None:
                    raise first from None
                raise
            finally:
                first = None  # its traceback holds this frame, and the frames below it tensors
        return graph.replay
