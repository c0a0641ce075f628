# mypy: ignore-errors
# (the functions are written in Triton's language, which has Python's syntax and types of its own)
"""Norm and activation in Triton: sums over a map that lies channels last, and the pass that uses them; both ways.

A map is `images` times `rows` vectors of `channels` values: rows are the positions of an image, or for batch norm those of
all images, taken for one. A program reads tiles of BR rows by BC channels, `length` rows of one image together, so that the
threads beside each other read values beside each other. Sums are kept lane by lane, a lane being a row of the tile, and put
together once at the end; chunks are put together in the order of their numbers. So no result depends on who comes first.

Statistics are those of deviations from the lane's own first value. That value is one of those that are summed, so their
squares are at most as many times the variance as a lane has rows, however large the mean, and little cancels.
"""

from __future__ import annotations

try:
    import triton.language as tl
    from triton import jit
except ImportError:  # then nobody calls what is below

    def jit(function=None, **_):
        return function or jit


# Numbers for which no variant of a kernel need be compiled when they happen to be 1 or even
SIZES = ("rows", "length", "chunks")


@jit
def _place(rows, length, chunks, channels, BR: tl.constexpr, BC: tl.constexpr):
    """Of this program: its image, first row and the row after its last; channels, and offsets within a tile."""
    image, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    start = chunk * length
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    offsets = tl.arange(0, BR)[:, None] * channels + c[None, :]
    return image, start, tl.minimum(start + length, rows), c, offsets


@jit
def _moments(x, start, stop, c, offsets, channels, BR: tl.constexpr, BC: tl.constexpr):
    """Mean, and sum of squared deviations from it, of every channel over rows of the image that begins at x."""
    lane, some = tl.arange(0, BR), (c < channels)[None, :]
    x += start.to(tl.int64) * channels
    first = tl.load(x + offsets, mask=(lane < stop - start)[:, None] & some, other=0.0).to(tl.float32)
    total = tl.zeros((BR, BC), tl.float32)
    squares = tl.zeros((BR, BC), tl.float32)
    for row in range(start + BR, stop, BR):
        x += BR * channels
        real = (lane < stop - row)[:, None] & some
        away = tl.where(real, tl.load(x + offsets, mask=real, other=0.0).to(tl.float32) - first, 0.0)
        total += away
        squares += away * away
    count = tl.maximum((stop - start - lane + BR - 1) // BR, 0).to(tl.float32)[:, None]
    mean = total / tl.maximum(count, 1.0)  # less the lane's first value
    squares -= total * mean
    base = tl.sum(tl.where((lane == 0)[:, None], first, 0.0), 0)  # a lane that has rows
    shifted = tl.where(count > 0, first - base[None, :] + mean, 0.0)
    whole = tl.sum(shifted * count, 0) / (stop - start).to(tl.float32)
    apart = shifted - whole[None, :]
    return base + whole, tl.sum(squares + count * apart * apart, 0)


@jit
def _normal(x, mean, scale):
    return (x.to(tl.float32) - mean[None, :]) * scale[None, :]


@jit
def _write(x, y, start, stop, c, offsets, channels, mean, scale, weight, bias, slope, BR: tl.constexpr):
    """Norm and activation of rows of one image, x and y being where it begins."""
    some, lane = c < channels, tl.arange(0, BR)
    w = tl.load(weight + c, mask=some, other=0.0).to(tl.float32)[None, :]
    b = tl.load(bias + c, mask=some, other=0.0).to(tl.float32)[None, :]
    x += start.to(tl.int64) * channels
    y += start.to(tl.int64) * channels
    for row in range(start, stop, BR):
        real = (lane < stop - row)[:, None] & some[None, :]
        made = _normal(tl.load(x + offsets, mask=real, other=0.0), mean, scale) * w + b
        tl.store(y + offsets, tl.where(made > 0, made, slope * made).to(y.dtype.element_ty), mask=real)
        x += BR * channels
        y += BR * channels


@jit
def _slopes(x, dy, mean, scale, w, b, slope):
    """The normal map, and the gradient of the map before the activation."""
    normal, g = _normal(x, mean, scale), dy.to(tl.float32)
    return normal, tl.where(normal * w + b > 0, g, slope * g)


@jit
def _sums(
    x, dy, start, stop, c, offsets, channels, mean, scale, weight, bias, slope, BR: tl.constexpr, BC: tl.constexpr
):
    """Of gradients, and of gradients times the normal map: the gradients of shift and scale, of these rows."""
    some, lane = c < channels, tl.arange(0, BR)
    w = tl.load(weight + c, mask=some, other=0.0).to(tl.float32)[None, :]
    b = tl.load(bias + c, mask=some, other=0.0).to(tl.float32)[None, :]
    d_bias = tl.zeros((BR, BC), tl.float32)
    d_weight = tl.zeros((BR, BC), tl.float32)
    x += start.to(tl.int64) * channels
    dy += start.to(tl.int64) * channels
    for row in range(start, stop, BR):
        real = (lane < stop - row)[:, None] & some[None, :]
        read = tl.load(x + offsets, mask=real, other=0.0)
        normal, g = _slopes(read, tl.load(dy + offsets, mask=real, other=0.0), mean, scale, w, b, slope)
        d_bias += g  # 0 outside
        d_weight += tl.where(real, g * normal, 0.0)
        x += BR * channels
        dy += BR * channels
    return tl.sum(d_bias, 0), tl.sum(d_weight, 0)


@jit
def _write_gradient(
    x, dy, dx, start, stop, c, offsets, channels, mean, scale, weight, bias, slope, d_bias, d_weight, BR: tl.constexpr
):
    """The gradient of rows of one image; `d_bias`, `d_weight`: means of the sums over all its rows."""
    some, lane = c < channels, tl.arange(0, BR)
    w = tl.load(weight + c, mask=some, other=0.0).to(tl.float32)[None, :]
    b = tl.load(bias + c, mask=some, other=0.0).to(tl.float32)[None, :]
    x += start.to(tl.int64) * channels
    dy += start.to(tl.int64) * channels
    dx += start.to(tl.int64) * channels
    for row in range(start, stop, BR):
        real = (lane < stop - row)[:, None] & some[None, :]
        read = tl.load(x + offsets, mask=real, other=0.0)
        normal, g = _slopes(read, tl.load(dy + offsets, mask=real, other=0.0), mean, scale, w, b, slope)
        made = w * scale[None, :] * (g - d_bias[None, :] - normal * d_weight[None, :])
        tl.store(dx + offsets, made.to(dx.dtype.element_ty), mask=real)
        x += BR * channels
        dy += BR * channels
        dx += BR * channels


@jit
def _keep(statistics, at, images, channels, mean, variance, eps, some):
    """Into (3, images, C): mean, 1 / deviation, variance; the second, too."""
    scale = 1 / tl.sqrt(variance + eps)
    tl.store(statistics + at, mean, mask=some)
    tl.store(statistics + images * channels + at, scale, mask=some)
    tl.store(statistics + 2 * images * channels + at, variance, mask=some)
    return scale


@jit
def _kept(statistics, at, images, channels, some):
    """Mean and 1 / deviation."""
    mean = tl.load(statistics + at, mask=some, other=0.0)
    return mean, tl.load(statistics + images * channels + at, mask=some, other=0.0)


@jit(do_not_specialize=SIZES)
def moments(x, parts, rows, length, chunks, channels, BR: tl.constexpr, BC: tl.constexpr):
    """Of every chunk, into (images, chunks, 2, C)."""
    image, start, stop, c, offsets = _place(rows, length, chunks, channels, BR, BC)
    mean, squares = _moments(x + image.to(tl.int64) * rows * channels, start, stop, c, offsets, channels, BR, BC)
    at = parts + 2 * tl.program_id(0) * channels + c
    tl.store(at, mean, mask=c < channels)
    tl.store(at + channels, squares, mask=c < channels)


@jit(do_not_specialize=(*SIZES, "images"))
def whole_moments(parts, statistics, rows, length, chunks, images, channels, eps, BK: tl.constexpr, BC: tl.constexpr):
    """Of every image, from those of its chunks."""
    image, lane = tl.program_id(0), tl.arange(0, BK)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    some = c < channels
    parts += 2 * image.to(tl.int64) * chunks * channels
    offsets = 2 * lane[:, None] * channels + c[None, :]
    base = tl.load(parts + c, mask=some, other=0.0)[None, :]
    total = tl.zeros((BK, BC), tl.float32)
    for first in range(0, chunks, BK):
        real = (lane < chunks - first)[:, None] & some[None, :]
        count = tl.minimum(rows - (first + lane) * length, length).to(tl.float32)[:, None]
        away = tl.load(parts + 2 * first * channels + offsets, mask=real, other=0.0) - base
        total += tl.where(real, count * away, 0.0)
    whole = (tl.sum(total, 0) / rows)[None, :]
    squares = tl.zeros((BK, BC), tl.float32)
    for first in range(0, chunks, BK):
        real = (lane < chunks - first)[:, None] & some[None, :]
        count = tl.minimum(rows - (first + lane) * length, length).to(tl.float32)[:, None]
        at = parts + 2 * first * channels + offsets
        away = tl.load(at, mask=real, other=0.0) - base - whole
        squares += tl.where(real, tl.load(at + channels, mask=real, other=0.0) + count * away * away, 0.0)
    mean, variance = tl.sum(base + whole, 0), tl.sum(squares, 0) / rows
    _keep(statistics, image * channels + c, images, channels, mean, variance, eps, some)


@jit(do_not_specialize=(*SIZES, "images"))
def apply(
    x, weight, bias, y, statistics, rows, length, chunks, images, channels, slope, BR: tl.constexpr, BC: tl.constexpr
):
    """Norm and activation, by the statistics of every image."""
    image, start, stop, c, offsets = _place(rows, length, chunks, channels, BR, BC)
    begin = image.to(tl.int64) * rows * channels
    mean, scale = _kept(statistics, image * channels + c, images, channels, c < channels)
    _write(x + begin, y + begin, start, stop, c, offsets, channels, mean, scale, weight, bias, slope, BR)


@jit(do_not_specialize=(*SIZES, "images"))
def forward(
    x,
    weight,
    bias,
    y,
    statistics,
    rows,
    length,
    chunks,
    images,
    channels,
    eps,
    slope,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    """All of it where a program can take all rows of an image: one launch."""
    image, start, stop, c, offsets = _place(rows, length, chunks, channels, BR, BC)
    begin = image.to(tl.int64) * rows * channels
    mean, squares = _moments(x + begin, start, stop, c, offsets, channels, BR, BC)
    at, some = image * channels + c, c < channels
    scale = _keep(statistics, at, images, channels, mean, squares / rows, eps, some)
    _write(x + begin, y + begin, start, stop, c, offsets, channels, mean, scale, weight, bias, slope, BR)


@jit(do_not_specialize=(*SIZES, "images"))
def sums(
    x,
    dy,
    weight,
    bias,
    statistics,
    parts,
    rows,
    length,
    chunks,
    images,
    channels,
    slope,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    """What the gradients of scale and shift are sums of, of every chunk, into (images, chunks, 2, C)."""
    image, start, stop, c, offsets = _place(rows, length, chunks, channels, BR, BC)
    begin, some = image.to(tl.int64) * rows * channels, c < channels
    mean, scale = _kept(statistics, image * channels + c, images, channels, some)
    d_bias, d_weight = _sums(
        x + begin, dy + begin, start, stop, c, offsets, channels, mean, scale, weight, bias, slope, BR, BC
    )
    at = parts + 2 * tl.program_id(0).to(tl.int64) * channels + c
    tl.store(at, d_weight, mask=some)
    tl.store(at + channels, d_bias, mask=some)


@jit(do_not_specialize=(*SIZES, "images"))
def gradient(
    x,
    dy,
    weight,
    bias,
    statistics,
    totals,
    dx,
    rows,
    length,
    chunks,
    images,
    channels,
    slope,
    BR: tl.constexpr,
    BC: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """The gradient of the map, by the sums over every image, (images, 2, C).

    WHOLE: a program takes all rows of an image, and makes those sums first, so that there is one launch alone.
    """
    image, start, stop, c, offsets = _place(rows, length, chunks, channels, BR, BC)
    begin, some = image.to(tl.int64) * rows * channels, c < channels
    mean, scale = _kept(statistics, image * channels + c, images, channels, some)
    at = totals + 2 * image * channels + c
    if WHOLE:
        d_bias, d_weight = _sums(
            x + begin, dy + begin, start, stop, c, offsets, channels, mean, scale, weight, bias, slope, BR, BC
        )
        tl.store(at, d_weight, mask=some)
        tl.store(at + channels, d_bias, mask=some)
    else:
        d_weight = tl.load(at, mask=some, other=0.0)
        d_bias = tl.load(at + channels, mask=some, other=0.0)
    _write_gradient(
        x + begin,
        dy + begin,
        dx + begin,
        start,
        stop,
        c,
        offsets,
        channels,
        mean,
        scale,
        weight,
        bias,
        slope,
        d_bias / rows,
        d_weight / rows,
        BR,
    )
