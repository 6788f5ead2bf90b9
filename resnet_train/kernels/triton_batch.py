"""The kernel of `resnet_train.kernels.cuda_batch`, in Triton: imported when it is first needed."""

from __future__ import annotations

import triton
from triton import language as tl


@triton.jit
def crop_flip_normalise(
    images,
    index,
    offset_y,
    offset_x,
    flip,
    table,
    out,
    padding,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    REFLECT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``images`` uint8 (N, HEIGHT, WIDTH, CHANNELS) to ``out`` float32 (count, HEIGHT, WIDTH, CHANNELS).

    By ``table`` (CHANNELS, 256). Program ``(i, j)`` makes block ``j`` of image ``i``. With ``REFLECT``, what lies
    outside is mirrored at the border pixel; else it is a black pixel.
    """
    image = tl.program_id(0)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    size: tl.constexpr = HEIGHT * WIDTH * CHANNELS
    channel, pixel = place % CHANNELS, place // CHANNELS
    row, column = pixel // WIDTH, pixel % WIDTH
    column = tl.where(tl.load(flip + image), WIDTH - 1 - column, column)
    row += tl.load(offset_y + image).to(tl.int32) - padding
    column += tl.load(offset_x + image).to(tl.int32) - padding
    if REFLECT:
        row, column = tl.abs(row), tl.abs(column)
        row = tl.where(row >= HEIGHT, 2 * (HEIGHT - 1) - row, row)
        column = tl.where(column >= WIDTH, 2 * (WIDTH - 1) - column, column)
    inside = (place < size) & (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
    source = images + tl.load(index + image).to(tl.int64) * size
    byte = tl.load(source + (row * WIDTH + column) * CHANNELS + channel, mask=inside, other=0)
    value = tl.load(table + channel * 256 + byte.to(tl.int32))
    tl.store(out + tl.cast(image, tl.int64) * size + place, value, mask=place < size)
