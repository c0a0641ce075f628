"""What comes next, made by threads while this is used."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def ahead(
    make: Callable[[A], B],
    items: Iterable[A],
    threads: int,
    need: Callable[[A], float] = lambda item: 0.0,
    room: float = math.inf,
) -> Generator[B, None, None]:
    """`make` of every item, in order; with threads, as many are made ahead of the one that is used, else none is.

    What is not yet begun when the reader ends is left out.

    Args:
        make: of an item.
        items: in their order.
        threads: that make.
        need: of an item, such as bytes, asked once the items before it that had to be used first are.
        room: items that need more together are not made at once; one alone always is.
    """
    if not threads:
        yield from map(make, items)
        return
    pool, begun, taken = ThreadPoolExecutor(threads), deque[tuple[Future[B], float]](), 0.0
    try:
        for item in items:
            while begun and taken + need(item) > room:
                made, its = begun.popleft()
                yield made.result()
                taken -= its
            begun.append((pool.submit(make, item), need(item)))
            taken += begun[-1][1]
            if len(begun) > threads:
                made, its = begun.popleft()
                yield made.result()
                taken -= its
        while begun:
            yield begun.popleft()[0].result()
    finally:
        pool.shutdown(cancel_futures=True)
