"""The model card as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def card_text(card: Mapping[str, Any]) -> str:
    """A card as lines: a section for every object, a line for every value.

    Example:
        >>> print(card_text({"model": "unet", "scores": {"cases": 34, "dice": {"liver": 0.9}}}))
        model: unet
        <BLANKLINE>
        scores
          cases: 34
          dice
            liver: 0.9
    """
    plain = [_line(name, value, 0) for name, value in card.items() if not isinstance(value, Mapping)]
    sections = [["", *_lines(name, value, 0)] for name, value in card.items() if isinstance(value, Mapping)]
    return "\n".join([*plain, *(line for section in sections for line in section)])


def _lines(name: str, value: Any, depth: int) -> list[str]:
    if not isinstance(value, Mapping):
        return [_line(name, value, depth)]
    inside = [line for key, one in value.items() for line in _lines(str(key), one, depth + 1)]
    return [f"{'  ' * depth}{_plain(name)}", *inside]


def _line(name: str, value: Any, depth: int) -> str:
    shown = (
        ", ".join(map(_plain, value)) if isinstance(value, list) else "not known" if value is None else _plain(value)
    )
    return f"{'  ' * depth}{_plain(name)}: {shown}"


def _plain(value: object) -> str:
    """A value without what would move a terminal's cursor."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(letter if letter.isprintable() else "?" for letter in text)
