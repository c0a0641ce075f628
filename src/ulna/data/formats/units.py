"""Units of length, as file formats and programs name them."""

from __future__ import annotations

import re

_MM = {"m": 1e3, "cm": 10.0, "mm": 1.0, "um": 1e-3, "nm": 1e-6}
_WORDS = (
    (r"met(er|re)s?", "m"),
    (r"millimet(er|re)s?", "mm"),
    (r"micromet(er|re)s?|microns?", "um"),
    (r"(µ|μ|\\u00b5|\\u03bc)m", "um"),  # ImageJ escapes what is no ASCII
)


def millimetres_in(unit: object) -> float | None:
    """Millimetres in a unit that is named; None for pixels, unknown words and nothing.

    Example:
        >>> millimetres_in("cm"), millimetres_in(" Microns"), millimetres_in("pixel"), millimetres_in(None)
        (10.0, 0.001, None, None)
    """
    name = str(unit or "").strip().lower()
    short = next((short for words, short in _WORDS if re.fullmatch(words, name)), name)
    return _MM.get(short)
