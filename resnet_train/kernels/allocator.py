"""Memory of large CPU tensors: freed blocks are kept for the next tensor of the same size (``csrc/allocator.cpp``).

It is PyTorch's allocator for the whole process from then on, so only the command line switches it on, in a process that
is its own. ``run(config)`` in somebody's Python leaves the process as it was.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from resnet_train.kernels import native


def install() -> None:
    """Let PyTorch keep freed blocks, from now on and process-wide. Raises `native.Unavailable`."""
    _load().install_allocator()


def return_free_memory() -> None:
    """Give the kept blocks back that no tensor uses: when tensors of other sizes are to come, as in evaluation.

    Nothing happens where `install` was not called.
    """
    if _load.cache_info().currsize:
        _load().return_free_blocks()


@cache
def _load() -> ctypes.CDLL:
    import torch

    folder = Path(torch.__file__).parent
    headers, libraries = folder / "include", folder / "lib"
    options = ["-std=c++20", "-O2", f"-I{headers}", f"-L{libraries}", "-lc10", f"-Wl,-rpath,{libraries}"]
    library = native.load("allocator.cpp", options, depends_on=torch.__version__)
    for function in (library.install_allocator, library.return_free_blocks):
        function.argtypes, function.restype = [], None
    return library
