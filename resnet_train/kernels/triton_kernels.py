"""The kernels of `resnet_train.kernels.cuda`, in Triton: imported when they are first needed, and where Triton is.

A tensor ``(N, C, H, W)`` in channels_last is a table of N * H * W rows and C columns. `cuda.py` folds several rows
of a narrow one into one, so that kernels see ``rows`` rows of ``width`` columns, and column ``i`` belongs to channel
``i % channels``. They work on tiles of ``ROWS`` x ``COLUMNS`` of it; program ``(i, j)`` has the columns of block ``i``
and every n-th tile from the j-th on, so what is summed by whom depends on the grid alone, and the grid on the shape.

Kernels that sum read ``GROUPS`` tiles that follow each other before they use any. One thread has the rows that are a
tile apart, so it adds them up without the others, and keeps as many sums as for one tile.

Values are float32, bfloat16 or float16; sums, scales and statistics are float32. Offsets inside of a tile fit 32 bits,
the tile's own needs 64. An argument that may be None is compiled in or out.

Under ``TRITON_INTERPRET=1`` the same functions run on the CPU, slowly: that is how they are tested without a GPU.
"""

from __future__ import annotations

import triton
from triton import language as tl

INTERPRETED = bool(triton.knobs.runtime.interpret)  # read when the kernels below are made, and so it stays


@triton.jit
def where_positive(gate, values):
    """``values`` where ``gate`` is above zero or NaN, else zero. A maximum would lose NaN, which PyTorch keeps."""
    return tl.where(gate <= 0, 0.0, values)


# -------------------------------------------------------------------------------------------------------------- forward


@triton.jit(do_not_specialize=["rows"])
def forward_sums(x, partial, rows, width, channels, GROUPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """``partial`` (2, chunks, width): sums of x - origin and of its square over the rows of each chunk.

    The origin is the first row: where the mean is far from zero, digits survive that the square would lose.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    chunk, chunks = tl.program_id(1), tl.num_programs(1)
    inside = column < width
    origin = tl.load(x + column % channels).to(tl.float32)[None, :]
    tall: tl.constexpr = GROUPS * ROWS
    offset = tl.arange(0, tall)[:, None] * width + column[None, :]
    first = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    second = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    for start in range(chunk * tall, rows, chunks * tall):
        present = (start + tl.arange(0, tall) < rows)[:, None]
        value = tl.load(x + tl.cast(start, tl.int64) * width + offset, mask=present & inside[None, :]).to(tl.float32)
        value = tl.where(present, value - origin, 0.0)
        first += tl.sum(tl.reshape(value, (GROUPS, ROWS, COLUMNS)), axis=0)
        second += tl.sum(tl.reshape(value * value, (GROUPS, ROWS, COLUMNS)), axis=0)
    partial += chunk * width + column
    tl.store(partial, tl.sum(first, axis=0), mask=inside)
    tl.store(partial + chunks * width, tl.sum(second, axis=0), mask=inside)


@triton.jit
def totals(partial, length, channel, channels, LENGTH: tl.constexpr, CHANNELS: tl.constexpr):
    """Both sums of ``partial`` (2, length, channels) for the channels in ``channel``, always in the same order."""
    first = tl.full((LENGTH, CHANNELS), 0.0, tl.float32)
    second = tl.full((LENGTH, CHANNELS), 0.0, tl.float32)
    for start in range(0, length, LENGTH):
        row = (start + tl.arange(0, LENGTH))[:, None]
        mask = (row < length) & (channel < channels)[None, :]
        at = partial + row * channels + channel[None, :]
        first += tl.load(at, mask=mask, other=0.0)
        second += tl.load(at + length * channels, mask=mask, other=0.0)
    return tl.sum(first, axis=0), tl.sum(second, axis=0)


@triton.jit(do_not_specialize=["count", "length"])
def forward_totals(
    x,
    partial,
    weight,
    bias,
    running_mean,
    running_var,
    num_batches_tracked,
    saved,
    count,
    length,
    channels,
    momentum,
    eps,
    LENGTH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Statistics of ``count`` values a channel from the sums of all chunks, and what follows from them.

    ``saved`` (4, channels): mean, 1 / standard deviation, and the scale and shift made of them. ``partial`` is read
    as (2, length, channels): folded rows are unfolded by that.
    """
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    first, second = totals(partial, length, channel, channels, LENGTH, CHANNELS)
    count = tl.cast(count, tl.float32)
    offset = first / count
    var = second / count - offset * offset
    var = tl.where(var < 0, 0.0, var)
    mean = tl.load(x + channel, mask=inside).to(tl.float32) + offset
    inverse = tl.rsqrt(var + eps)
    scale = tl.load(weight + channel, mask=inside) * inverse
    saved += channel
    tl.store(saved, mean, mask=inside)
    tl.store(saved + channels, inverse, mask=inside)
    tl.store(saved + 2 * channels, scale, mask=inside)
    tl.store(saved + 3 * channels, tl.load(bias + channel, mask=inside) - mean * scale, mask=inside)
    old = tl.load(running_mean + channel, mask=inside)
    tl.store(running_mean + channel, old + momentum * (mean - old), mask=inside)
    old = tl.load(running_var + channel, mask=inside)
    tl.store(running_var + channel, old + momentum * (var * (count / (count - 1)) - old), mask=inside)
    if tl.program_id(0) == 0:
        tl.store(num_batches_tracked, tl.load(num_batches_tracked) + 1)


@triton.jit
def apply_tiles(x, shortcut, y, scale, shift, column, rows, width, ROWS: tl.constexpr):
    """``y = relu(x * scale + shift [+ shortcut])`` for this program's tiles, the last ones first.

    The sums were read from the first row to the last, so the last ones are what the cache still holds.
    """
    offset = tl.arange(0, ROWS)[:, None] * width + column[None, :]
    tiles = (rows + ROWS - 1) // ROWS
    for step in range(tl.program_id(1), tiles, tl.num_programs(1)):
        start = (tiles - 1 - step) * ROWS
        mask = (start + tl.arange(0, ROWS) < rows)[:, None] & (column < width)[None, :]
        begin = tl.cast(start, tl.int64) * width
        value = tl.load(x + begin + offset, mask=mask).to(tl.float32) * scale + shift
        if shortcut is not None:
            value += tl.load(shortcut + begin + offset, mask=mask).to(tl.float32)
        tl.store(y + begin + offset, where_positive(value, value), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def forward_apply(x, shortcut, y, saved, rows, width, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """``y`` from the scale and shift in ``saved`` (4, channels)."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    saved += column % channels
    scale = tl.load(saved + 2 * channels)[None, :]
    shift = tl.load(saved + 3 * channels)[None, :]
    apply_tiles(x, shortcut, y, scale, shift, column, rows, width, ROWS)


@triton.jit(do_not_specialize=["rows"])
def inference(
    x,
    shortcut,
    y,
    weight,
    bias,
    running_mean,
    running_var,
    eps,
    rows,
    width,
    channels,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """``y`` from the running statistics."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    channel = column % channels
    scale = tl.load(weight + channel) * tl.rsqrt(tl.load(running_var + channel) + eps)
    shift = tl.load(bias + channel) - tl.load(running_mean + channel) * scale
    apply_tiles(x, shortcut, y, scale[None, :], shift[None, :], column, rows, width, ROWS)


# ------------------------------------------------------------------------------------------------------------- backward


@triton.jit(do_not_specialize=["rows"])
def backward_sums(
    gradient,
    x,
    y,
    gated,
    saved,
    partial,
    rows,
    width,
    channels,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """``partial`` (2, chunks, width): sums of g and of g * (x - mean), where g is the gradient behind the ReLU.

    With a shortcut, the sign of the ReLU is read from ``y``, and ``gated`` receives g: it is the shortcut's gradient.
    Without, the sign is computed from x as it was in the forward pass, and nothing is kept.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    chunk, chunks = tl.program_id(1), tl.num_programs(1)
    inside = column < width
    saved += column % channels
    mean = tl.load(saved)[None, :]
    scale = tl.load(saved + 2 * channels)[None, :]
    shift = tl.load(saved + 3 * channels)[None, :]
    tall: tl.constexpr = GROUPS * ROWS
    offset = tl.arange(0, tall)[:, None] * width + column[None, :]
    first = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    second = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    for start in range(chunk * tall, rows, chunks * tall):
        mask = (start + tl.arange(0, tall) < rows)[:, None] & inside[None, :]
        begin = tl.cast(start, tl.int64) * width
        # Zeros in place of what lies outside make no difference to either sum.
        value = tl.load(x + begin + offset, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(gradient + begin + offset, mask=mask, other=0.0).to(tl.float32)
        if y is None:
            g = where_positive(value * scale + shift, g)
        else:
            g = where_positive(tl.load(y + begin + offset, mask=mask, other=0.0).to(tl.float32), g)
            tl.store(gated + begin + offset, g, mask=mask)
        first += tl.sum(tl.reshape(g, (GROUPS, ROWS, COLUMNS)), axis=0)
        second += tl.sum(tl.reshape(g * (value - mean), (GROUPS, ROWS, COLUMNS)), axis=0)
    partial += chunk * width + column
    tl.store(partial, tl.sum(first, axis=0), mask=inside)
    tl.store(partial + chunks * width, tl.sum(second, axis=0), mask=inside)


@triton.jit(do_not_specialize=["count", "length"])
def backward_totals(
    partial,
    saved,
    grad_weight,
    grad_bias,
    line,
    count,
    length,
    channels,
    LENGTH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradients of weight and bias, and ``line`` (2, channels): grad_x = g * scale + (x - mean) * slope + level."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    first, second = totals(partial, length, channel, channels, LENGTH, CHANNELS)
    inverse = tl.load(saved + channels + channel, mask=inside)
    scale = tl.load(saved + 2 * channels + channel, mask=inside)
    count = tl.cast(count, tl.float32)
    tl.store(grad_bias + channel, first, mask=inside)
    tl.store(grad_weight + channel, second * inverse, mask=inside)
    tl.store(line + channel, -scale * inverse * inverse * (second / count), mask=inside)
    tl.store(line + channels + channel, -scale * (first / count), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def backward_apply(
    gradient,
    x,
    grad_x,
    saved,
    line,
    rows,
    width,
    channels,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """``grad_x`` by `backward_totals`; ``GATED``: whether ``gradient`` went through the ReLU already."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    channel = column % channels
    mean = tl.load(saved + channel)[None, :]
    scale = tl.load(saved + 2 * channels + channel)[None, :]
    shift = tl.load(saved + 3 * channels + channel)[None, :]
    slope = tl.load(line + channel)[None, :]
    level = tl.load(line + channels + channel)[None, :]
    offset = tl.arange(0, ROWS)[:, None] * width + column[None, :]
    tiles = (rows + ROWS - 1) // ROWS
    for step in range(tl.program_id(1), tiles, tl.num_programs(1)):
        start = (tiles - 1 - step) * ROWS  # see apply_tiles
        mask = (start + tl.arange(0, ROWS) < rows)[:, None] & (column < width)[None, :]
        begin = tl.cast(start, tl.int64) * width
        value = tl.load(x + begin + offset, mask=mask).to(tl.float32)
        g = tl.load(gradient + begin + offset, mask=mask).to(tl.float32)
        if not GATED:
            g = where_positive(value * scale + shift, g)
        tl.store(grad_x + begin + offset, g * scale + ((value - mean) * slope + level), mask=mask)
