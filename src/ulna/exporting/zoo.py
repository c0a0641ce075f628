"""The verb `zoo`: the segmenters that come with ulna-runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ulna.errors import UsageError
from ulna.system.extras import need


@dataclass(frozen=True)
class Zoo:
    """Segmenters that can be used at once.

    Args:
        entries: each with name, what it reads and finds, its Dice on cases that it never saw, licence, file and bytes, and a
            folder of images to try it on where one comes with it.
    """

    entries: tuple[dict[str, Any], ...]

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values."""
        return list(self.entries)


def zoo() -> Zoo:
    """List the small segmenters that come with ulna-runtime: `zoo:NAME` stands for one wherever a file is asked for.

    Raises:
        UsageError: if ulna-runtime is not installed, or one of its files is damaged.

    Example:
        ulna zoo
    """
    try:
        return Zoo(tuple(entry.to_json() for entry in need("ulna_runtime.zoo").entries()))
    except need("ulna_runtime.errors").UsageError as error:
        raise UsageError(str(error)) from None
