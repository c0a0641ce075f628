"""The neighbours that a position reads on the line before it."""

from __future__ import annotations

from itertools import product

from torch import Tensor
from torch.nn.functional import pad


def window(line_dims: int, neighbours: int) -> tuple[tuple[int, ...], ...]:
    """Where the neighbours lie, as steps along the axes of a line: the position itself, a cross, or a box.

    Args:
        line_dims: axes of a line, 1 in 2D and 2 in 3D.
        neighbours: 1 or 3 in 2D; 1, 5 or 9 in 3D.

    Raises:
        ValueError: for another number.

    Example:
        >>> window(1, 3)
        ((-1,), (0,), (1,))
    """
    box = list(product((-1, 0, 1), repeat=line_dims))
    windows = [tuple(o for o in box if sum(map(abs, o)) <= reach) for reach in range(line_dims + 1)]
    for offsets in windows:
        if len(offsets) == neighbours:
            return offsets
    raise ValueError(f"neighbours is {neighbours}; choose {' or '.join(str(len(offsets)) for offsets in windows)}")


def shifted(line: Tensor, offset: tuple[int, ...]) -> Tensor:
    """(N, *T, C): the value `offset` away from every position, 0 outside."""
    margins = [margin for step in reversed(offset) for margin in (max(-step, 0), max(step, 0))]
    padded = pad(line, [0, 0, *margins])
    for axis, (step, length) in enumerate(zip(offset, line.shape[1:-1], strict=True), start=1):
        padded = padded.narrow(axis, max(step, 0), length)
    return padded
