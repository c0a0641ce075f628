# mypy: ignore-errors
# (the functions are written in Triton's language, which has Python's syntax and types of its own)
"""The kernels of `triton.py`: one launch a sweep, its lines in order by tickets, and what comes before and after it.

Every program makes one tile of one line, BM positions by BC channels. It draws a ticket; tickets number the tiles line
by line in the order of the sweep. Then it waits until the tiles of the line before which it reads are there. This is
no barrier: whoever waits, waits for smaller tickets, which are held by programs that run already, so that one of them
can always go on, however few programs the device holds at a time and in whatever order it starts them. Programs of the
next lines are already there while they wait, and do what needs no line before: no line pays for a launch.

Legend: T lines, R rows (the positions of a line over all images), A x B the axes of a line (A is 1 in 2D), C channels,
CP those padded to whole tiles with zeros, K neighbours; tiles BM, BC and BK (of what a product sums over).
"""

from __future__ import annotations

try:
    import triton.language as tl
    from triton import jit
except ImportError:  # then nobody calls what is below

    def jit(function=None, **_):
        return function or jit


# Numbers of the geometry, for which no variant of a kernel need be compiled when they happen to be 1 or even
GEOMETRY = ("lines", "rows", "height", "width", "stride_n", "stride_t", "stride_a", "stride_b", "cells", "reach")
ORDER = ("first", "sense")


@jit
def _ticket(flags, lines, rows, TILES_C: tl.constexpr, BM: tl.constexpr):
    """Which tile is next: its line in the order of the sweep, its rows and its channels."""
    ticket = tl.atomic_add(flags, 1)
    tiles = tl.cdiv(rows, BM)
    return ticket // TILES_C // tiles, ticket // TILES_C % tiles, ticket % TILES_C


@jit
def _wait(flags, line, tile, rows, reach, TILES_C: tl.constexpr, BM: tl.constexpr):
    """Until all channels of the rows `reach` around this tile are there on that line.

    The read that sees them acquires what was written before they were said to be there. `reach` is the same to both
    sides, so all programs that read this tile on the line before that one are through too: its memory may be reused.
    """
    ready = flags + 1 + line * tl.cdiv(rows, BM)
    first = tl.maximum(tile * BM - reach, 0) // BM
    last = tl.minimum(tile * BM + BM - 1 + reach, rows - 1) // BM
    for other in range(first, last + 1):
        while tl.atomic_add(ready + other, 0) < TILES_C:
            pass


@jit
def _say(flags, line, tile, rows, BM: tl.constexpr):
    """This tile is there; all threads have written their part of it."""
    tl.debug_barrier()
    tl.atomic_add(flags + 1 + line * tl.cdiv(rows, BM) + tile, 1)


@jit
def _neighbour(cells, j, a, b, height, width, sign):
    """Steps to neighbour j, or away from it, and which rows have it: digit j of `cells` is its cell of the 3 x 3."""
    cell = ((cells >> (4 * j)) & 15).to(tl.int32)
    da, db = sign * (cell // 3 - 1), sign * (cell % 3 - 1)
    return da, db, (a + da >= 0) & (a + da < height) & (b + db >= 0) & (b + db < width)


@jit
def _tanh(x):
    e = tl.exp(-2 * tl.abs(x))
    return tl.where(x < 0, e - 1, 1 - e) / (1 + e)


@jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1 + e)


@jit(do_not_specialize=("channels", "count"))
def pack(
    w_in,  # (3C, K * C)
    w_hidden,  # (3C, C)
    packed,  # (K + 1, 3, CP, CP) of operands, as `forward` or `backward` reads it
    flags,  # (count,) int32: becomes zeros
    channels,
    count,
    K: tl.constexpr,
    CP: tl.constexpr,
    BACK: tl.constexpr,
    BK: tl.constexpr,
):
    """Weights in whole tiles, whose channels beyond C are 0; and no ticket is drawn."""
    part, tile = tl.program_id(0), tl.program_id(1)
    a = tile // (CP // BK) * BK + tl.arange(0, BK)
    b = tile % (CP // BK) * BK + tl.arange(0, BK)
    real = (a < channels)[:, None] & (b < channels)[None, :]
    j, gate = part // 3, part % 3
    if BACK:
        # n, r, z on the side of the neighbours, so that slopes of both sides lie together: n, r, z and r, z, n
        gate = tl.where(j < K, (gate + 2) % 3, gate)
        row, column = (gate * channels + a)[:, None], b[None, :]
    else:
        row, column = (gate * channels + b)[None, :], a[:, None]
    if j < K:
        w = tl.load(w_in + row * K * channels + j * channels + column, mask=real, other=0.0)
    else:
        w = tl.load(w_hidden + row * channels + column, mask=real, other=0.0)
    tl.store(packed + part * CP * CP + a[:, None] * CP + b[None, :], w.to(packed.dtype.element_ty))
    program, flag = part * tl.num_programs(1) + tile, tl.arange(0, 256)
    for first in range(program * 256, count, tl.num_programs(0) * tl.num_programs(1) * 256):
        tl.store(flags + first + flag, tl.zeros((256,), tl.int32), mask=first + flag < count)


@jit(do_not_specialize=GEOMETRY + ORDER)
def forward(
    x,  # (N, *S, C) float32
    swept,  # the same
    gates,  # (N, *S, 4C) float32: r, z, n, hidden share of n; or nothing
    buffer,  # (2, R, CP) of operands: two lines in turns
    weights,  # (K + 1, 3, CP, CP) of operands: neighbour (the last: the position itself), gate, in, out
    bias_in,  # (3C,)
    bias_hidden,  # (3C,)
    flags,  # (1 + T * tiles of rows,) int32 zeros: the next ticket, then how many tiles of channels are there
    lines,
    rows,
    height,  # A
    width,  # B
    channels,  # C
    stride_n,  # strides of the maps in positions: image, line, A, B
    stride_t,
    stride_a,
    stride_b,
    cells,
    reach,  # in rows
    first,  # the line where the sweep starts
    sense,  # 1, or -1 towards line 0
    K: tl.constexpr,
    CP: tl.constexpr,
    KEEP: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    t, tile, tile_c = _ticket(flags, lines, rows, CP // BC, BM)
    row, c = tile * BM + tl.arange(0, BM), tile_c * BC + tl.arange(0, BC)
    inside, a, b = row < rows, row % (height * width) // width, row % width
    line = first + sense * t
    at = (row // (height * width)).to(tl.int64) * stride_n + line.to(tl.int64) * stride_t + a * stride_a + b * stride_b
    real = inside[:, None] & (c < channels)[None, :]
    s = tl.load(x + at[:, None] * channels + c[None, :], mask=real, other=0.0)
    r = tl.zeros((BM, BC), tl.float32)
    z = tl.zeros((BM, BC), tl.float32)
    n = tl.zeros((BM, BC), tl.float32)
    share = tl.zeros((BM, BC), tl.float32)
    h = s
    if t > 0:
        for k in range(0, CP, BK):  # the position itself, while the line before is being made
            i = k + tl.arange(0, BK)
            own = inside[:, None] & (i < channels)[None, :]
            u = tl.load(x + at[:, None] * channels + i[None, :], mask=own, other=0.0).to(weights.dtype.element_ty)
            w = weights + K * 3 * CP * CP + i[:, None] * CP + c[None, :]
            r = tl.dot(u, tl.load(w), r, input_precision="ieee")
            z = tl.dot(u, tl.load(w + CP * CP), z, input_precision="ieee")
            share = tl.dot(u, tl.load(w + 2 * CP * CP), share, input_precision="ieee")
        some = c < channels
        r += (tl.load(bias_in + c, mask=some, other=0.0) + tl.load(bias_hidden + c, mask=some, other=0.0))[None, :]
        c_z, c_n = channels + c, 2 * channels + c
        z += (tl.load(bias_in + c_z, mask=some, other=0.0) + tl.load(bias_hidden + c_z, mask=some, other=0.0))[None, :]
        n += tl.load(bias_in + c_n, mask=some, other=0.0)[None, :]
        share += tl.load(bias_hidden + c_n, mask=some, other=0.0)[None, :]
        before = buffer + ((t - 1) % 2) * rows * CP
        _wait(flags, t - 1, tile, rows, reach, CP // BC, BM)
        for step in range(K * (CP // BK)):
            j, i = step // (CP // BK), step % (CP // BK) * BK + tl.arange(0, BK)
            da, db, seen = _neighbour(cells, j, a, b, height, width, 1)
            near = row + da * width + db
            # from L2: another program may have written it while this line of the nearer cache was older
            u = tl.load(
                before + near[:, None] * CP + i[None, :],
                mask=(inside & seen)[:, None],
                other=0.0,
                cache_modifier=".cg",
            )
            w = weights + j * 3 * CP * CP + i[:, None] * CP + c[None, :]
            r = tl.dot(u, tl.load(w), r, input_precision="ieee")
            z = tl.dot(u, tl.load(w + CP * CP), z, input_precision="ieee")
            n = tl.dot(u, tl.load(w + 2 * CP * CP), n, input_precision="ieee")
        r, z = _sigmoid(r), _sigmoid(z)
        n = _tanh(n + r * share)
        h = n + z * (s - n)
    place = buffer + (t % 2) * rows * CP + row[:, None] * CP + c[None, :]
    tl.store(place, h.to(buffer.dtype.element_ty), mask=inside[:, None])
    _say(flags, t, tile, rows, BM)  # what is left to write, nobody waits for
    tl.store(swept + at[:, None] * channels + c[None, :], h, mask=real)
    if KEEP:
        kept = gates + at[:, None] * 4 * channels + c[None, :]
        tl.store(kept, r, mask=real)
        tl.store(kept + channels, z, mask=real)
        tl.store(kept + 2 * channels, n, mask=real)
        tl.store(kept + 3 * channels, share, mask=real)


@jit(do_not_specialize=GEOMETRY + ORDER)
def backward(
    grad,  # (N, *S, C) float32, of the swept map
    x,
    swept,
    gates,  # (N, *S, 4C)
    dx,  # (N, *S, C): what comes through z alone
    slopes,  # (T, R, 4, CP) of operands: before the gates n, r, z from the line before; the last, for n from x
    read,  # (T, R, K + 1, CP) of operands: what the products of the forward pass read, for the gradients of weights
    sums,  # (T * tiles of rows, 4, CP) float32: of the slopes of a tile, for the gradients of biases
    weights,  # (K, 3, CP, CP) of operands: neighbour, gate (n, r, z), out, in
    flags,  # (1 + T * tiles of rows,) int32 zeros
    lines,
    rows,
    height,
    width,
    channels,
    stride_n,
    stride_t,
    stride_a,
    stride_b,
    cells,
    reach,
    first,
    sense,
    K: tl.constexpr,
    CP: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    t, tile, tile_c = _ticket(flags, lines, rows, CP // BC, BM)  # t counts from the line where the sweep ended
    row, c = tile * BM + tl.arange(0, BM), tile_c * BC + tl.arange(0, BC)
    inside, a, b = row < rows, row % (height * width) // width, row % width
    line = first + sense * (lines - 1 - t)
    at = (row // (height * width)).to(tl.int64) * stride_n + line.to(tl.int64) * stride_t + a * stride_a + b * stride_b
    real = inside[:, None] & (c < channels)[None, :]
    computed = (row < tl.where(t < lines - 1, rows, 0))[:, None]  # the sweep's first line is a copy
    live = real & computed
    place = line.to(tl.int64) * rows + row
    s = tl.load(x + at[:, None] * channels + c[None, :], mask=live, other=0.0)
    seat = read + place[:, None] * (K + 1) * CP + c[None, :]
    for j in range(K):  # all of this while the line after is being made
        da, db, seen = _neighbour(cells, j, a, b, height, width, 1)
        near = at - sense * stride_t + da * stride_a + db * stride_b
        u = tl.load(swept + near[:, None] * channels + c[None, :], mask=live & seen[:, None], other=0.0)
        tl.store(seat + j * CP, u.to(read.dtype.element_ty), mask=inside[:, None])
    tl.store(seat + K * CP, s.to(read.dtype.element_ty), mask=inside[:, None])
    kept = gates + at[:, None] * 4 * channels + c[None, :]
    r = tl.load(kept, mask=live, other=0.0)
    z = tl.load(kept + channels, mask=live, other=0.0)
    n = tl.load(kept + 2 * channels, mask=live, other=0.0)
    share = tl.load(kept + 3 * channels, mask=live, other=0.0)
    g = tl.load(grad + at[:, None] * channels + c[None, :], mask=real, other=0.0)
    if t > 0:
        after = slopes + (line + sense).to(tl.int64) * rows * 4 * CP
        _wait(flags, t - 1, tile, rows, reach, CP // BC, BM)
        for step in range(K * (CP // BK)):
            j, i = step // (CP // BK), step % (CP // BK) * BK + tl.arange(0, BK)
            da, db, seen = _neighbour(cells, j, a, b, height, width, -1)  # who has this position as neighbour j
            near = row + da * width + db
            place_u = after + near[:, None] * 4 * CP + i[None, :]
            w = weights + j * 3 * CP * CP + i[:, None] * CP + c[None, :]
            for gate in tl.static_range(3):
                u = tl.load(place_u + gate * CP, mask=(inside & seen)[:, None], other=0.0, cache_modifier=".cg")
                g = tl.dot(u, tl.load(w + gate * CP * CP), g, input_precision="ieee")
    dn = tl.where(computed, g * (1 - z) * (1 - n * n), 0.0)
    dr = tl.where(computed, dn * share * r * (1 - r), 0.0)
    dz = tl.where(computed, g * (s - n) * z * (1 - z), 0.0)
    slope = slopes + place[:, None] * 4 * CP + c[None, :]
    tl.store(slope, dn.to(slopes.dtype.element_ty), mask=inside[:, None])
    tl.store(slope + CP, dr.to(slopes.dtype.element_ty), mask=inside[:, None])
    tl.store(slope + 2 * CP, dz.to(slopes.dtype.element_ty), mask=inside[:, None])
    _say(flags, t, tile, rows, BM)
    tl.store(slope + 3 * CP, (dn * r).to(slopes.dtype.element_ty), mask=inside[:, None])
    total = sums + (t * tl.cdiv(rows, BM) + tile).to(tl.int64) * 4 * CP + c
    tl.store(total, tl.sum(dn, 0))
    tl.store(total + CP, tl.sum(dr, 0))
    tl.store(total + 2 * CP, tl.sum(dz, 0))
    tl.store(total + 3 * CP, tl.sum(dn * r, 0))
    tl.store(dx + at[:, None] * channels + c[None, :], tl.where(computed, g * z, g), mask=real)


@jit(do_not_specialize=GEOMETRY)
def share(
    dx,  # (N, *S, C) float32: what comes through z, to which the share of the hidden side is added
    slopes,  # as `backward` leaves them
    weights,  # as `backward` reads them
    lines,
    rows,
    height,
    width,
    channels,
    stride_n,
    stride_t,
    stride_a,
    stride_b,
    K: tl.constexpr,
    CP: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    """One product over all positions, in whatever order."""
    place = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside, line, row = place < lines * rows, place // rows, place % rows
    at = row // (height * width) * stride_n + line * stride_t
    at += row % (height * width) // width * stride_a + row % width * stride_b
    total = tl.zeros((BM, BC), tl.float32)
    for k in range(0, 3 * CP, BK):
        i = k + tl.arange(0, BK)
        u = tl.load(slopes + place[:, None] * 4 * CP + CP + i[None, :], mask=inside[:, None], other=0.0)
        w = weights + K * 3 * CP * CP + i[:, None] * CP + c[None, :]
        total = tl.dot(u, tl.load(w, mask=(c < CP)[None, :], other=0.0), total, input_precision="ieee")
    given, real = dx + at[:, None] * channels + c[None, :], inside[:, None] & (c < channels)[None, :]
    tl.store(given, tl.load(given, mask=real, other=0.0) + total, mask=real)


@jit(do_not_specialize=("channels",))
def unpack(
    sums_in,  # (3, CP, K, CP) float32: gate (n, r, z), out, neighbour, in
    sums_hidden,  # (3, CP, CP): gate (r, z, n), out, in
    sums,  # (4, CP): n, r, z, and n of the hidden side
    d_in,  # (3C, K * C): the gradients of the four weights
    d_hidden,  # (3C, C)
    d_bias_in,  # (3C,)
    d_bias_hidden,  # (3C,)
    channels,
    K: tl.constexpr,
    CP: tl.constexpr,
    BK: tl.constexpr,
):
    """Gradients of the weights from whole tiles, gates in their order."""
    part, tile = tl.program_id(0), tl.program_id(1)
    out = tile // (CP // BK) * BK + tl.arange(0, BK)
    i = tile % (CP // BK) * BK + tl.arange(0, BK)
    real = (out < channels)[:, None] & (i < channels)[None, :]
    j, gate = part // 3, part % 3
    turned, row = (gate + 1) % 3, gate * channels + out
    if j < K:
        d = tl.load(sums_in + ((turned * CP + out) * K + j)[:, None] * CP + i[None, :], mask=real, other=0.0)
        place = d_in + row[:, None] * K * channels + j * channels + i[None, :]
        tl.store(place, d.to(d_in.dtype.element_ty), mask=real)
    else:
        d = tl.load(sums_hidden + (gate * CP + out)[:, None] * CP + i[None, :], mask=real, other=0.0)
        tl.store(d_hidden + row[:, None] * channels + i[None, :], d.to(d_hidden.dtype.element_ty), mask=real)
        if tile % (CP // BK) == 0:
            some = out < channels
            of_in = tl.load(sums + turned * CP + out, mask=some, other=0.0)
            of_hidden = tl.load(sums + (gate + 1) * CP + out, mask=some, other=0.0)
            tl.store(d_bias_in + row, of_in.to(d_bias_in.dtype.element_ty), mask=some)
            tl.store(d_bias_hidden + row, of_hidden.to(d_bias_hidden.dtype.element_ty), mask=some)
