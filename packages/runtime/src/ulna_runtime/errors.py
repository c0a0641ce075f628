"""The one error that a person can cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """The input or the usage is wrong; the message says what came, what was expected and what to do."""


@contextmanager
def needed(package: str, extra: str, what: str) -> Iterator[None]:
    """Say which extra brings a package that is missing.

    Raises:
        UsageError: where the import inside fails.
    """
    try:
        yield
    except ImportError:
        raise UsageError(
            f"{what} needs {package}, which is not installed; pip install 'ulna-runtime[{extra}]'"
        ) from None
