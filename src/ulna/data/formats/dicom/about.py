"""What a label map is, for a file that says so: its classes, and what made it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """Names and origin of a label map.

    Args:
        names: of the classes, without the background.
        algorithm: what made it.
        version: of ulna.
    """

    names: tuple[str, ...]
    algorithm: str = "ulna"
    version: str = "0"

    def name(self, number: int) -> str:
        """Of the class of that number, from 1."""
        return self.names[number - 1] if number <= len(self.names) else f"class {number}"
