"""What comes next, made by threads while this is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def ahead(make: Callable[[A], B], items: Iterable[A], threads: int) -> Iterator[B]:
    """`make` of every item, in order; with threads, as many are made ahead of the one that is used, else none is.

    What is not yet begun when the reader ends is left out.
    """
    if not threads:
        yield from map(make, items)
        return
    pool, begun = ThreadPoolExecutor(threads), deque[Future[B]]()
    try:
        for item in items:
            begun.append(pool.submit(make, item))
            if len(begun) > threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
