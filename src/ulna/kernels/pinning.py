"""Which of its paths an operation is held to, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Pins:
    """The path that an operation is pinned to: that of the innermost `with`, "auto" outside of all.

    Args:
        paths: their names.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        self._pinned: list[str] = []

    @property
    def chosen(self) -> str:
        """The path that is pinned, or "auto"."""
        return self._pinned[-1] if self._pinned else "auto"

    @contextmanager
    def force(self, path: str) -> Iterator[None]:
        """Pin a path within a `with`.

        Raises:
            ValueError: for another path.
        """
        if path not in self.paths:
            raise ValueError(f"no path named {path!r}; choose {', '.join(self.paths)}")
        self._pinned.append(path)
        try:
            yield
        finally:
            self._pinned.pop()
