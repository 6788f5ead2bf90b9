"""Memory: how many images an evaluation takes at once, and what to lower where an allocation fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from resnet_train.config.run import Config
from resnet_train.errors import RunError
from resnet_train.models.count import Layer

EVAL_IMAGES = 500  # at most: divides 10,000, and is large enough for a GPU
# Values that the largest layer of an evaluation reads and writes, over all images: 500 images of 32x32 in ResNet-18. At
# the peak there are three times as many, 0.8 GB in float32 (measured on a CPU: 1.1 to 3.0 times, in ten networks).
EVAL_VALUES = 2**26
# Texts of allocations that failed; PyTorch has a class of errors for its own on GPUs alone, not for those of cuBLAS,
# cuDNN and the driver. cuDNN finds no algorithm where it has no memory to try one.
_TEXTS = (
    *("DefaultCPUAllocator", "not enough memory", "can't allocate memory", "bad_alloc", "MPS backend out of memory"),
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
    *("CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED", "Unable to find a valid cuDNN algorithm"),
)


def eval_batch_size(layers: list[Layer], device: torch.device) -> int:
    """Images at once in an evaluation on ``device``, by the network and the size of its images.

    Not by the memory that is free at the moment: sums over other batches round otherwise, and a run that is resumed
    ends with the same bits. A GPU takes more at once the larger it is, since each batch costs it as many launches as
    any other; where something else has its memory, the loop halves the batch.
    """
    times = gpu_times(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else 1
    largest = max(layer.values_in + layer.values_out for layer in layers)
    return max(1, min(times * EVAL_IMAGES, times * EVAL_VALUES // largest))


def gpu_times(total_memory: int) -> int:
    """How many times the images of a CPU a GPU of so many bytes takes: a power of two, the same for all of a kind.

    The peak, three times the values in float32, is an eighth of the memory at most.
    """
    return 1 << max(0, (total_memory // (8 * 3 * 4 * EVAL_VALUES)).bit_length() - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory could not be had, on a GPU or on the CPU."""
    texts = _TEXTS if isinstance(error, RuntimeError) else ()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in texts)


@contextmanager
def out_of_memory_named(config: Config) -> Iterator[None]:
    """Turn an allocation that fails into a `RunError` that names what to lower, or for a resumed run what it may do."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        size, accumulate = config.batch_size, config.accumulate
        splits = 2 * accumulate if size % (2 * accumulate) == 0 else size
        split = f"accumulate={splits}" if splits > accumulate else ""
        where = "this machine" if config.device == "auto" else config.device
        text = (
            f"out of memory on {where} with batch_size={size}, accumulate={accumulate} and precision={config.precision}"
        )
        if config.resume is None:
            split += ", which splits each batch, " if split else ""
            text += f": try {split}a smaller batch_size, a smaller model or smaller images"
        else:
            with_split = f" and {split}" if split else ""
            text += (
                f": resume it where there is more memory (device=cpu, another machine), or start a new run from its "
                f"weights with init_from={config.resume}{with_split}"
            )
        raise RunError(f"{text}; the checkpoints are whole") from error


@contextmanager
def out_of_memory_while_reading() -> Iterator[None]:
    """Turn an allocation that fails while images are read into a `RunError`: no network is to blame."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            "out of memory while the data set was read, which has to fit into memory: try fewer or smaller images "
            "(dataset.image_size), or end other programs"
        ) from error
