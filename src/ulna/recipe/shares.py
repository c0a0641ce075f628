"""Shares of a split as people write them: 80/10/10, or 80/20 without cases that are kept for the end."""

from __future__ import annotations

import math

EXAMPLE = "write them as 80/10/10 (train, val, test) or 80/20 (no test)"


def read_shares(text: str) -> tuple[float, float, float]:
    """Shares of train, val and test, which add up to 1; that of test is 0 where it is left out.

    Raises:
        ValueError: if these are no two or three shares above 0 that add up to 100 or to 1.

    Example:
        >>> read_shares("80/10/10"), read_shares("0.75/0.25")
        ((0.8, 0.1, 0.1), (0.75, 0.25, 0.0))
    """
    try:
        shares = [float(part) for part in text.split("/")]
    except ValueError:
        raise ValueError(f"{text} is no list of shares; {EXAMPLE}") from None
    if len(shares) not in (2, 3):
        raise ValueError(f"{text} has {len(shares)} part{'s' * (len(shares) != 1)}; {EXAMPLE}")
    if not all(0 < share < math.inf for share in shares):
        raise ValueError(f"{text}: every share must be above 0; {EXAMPLE}")
    total = sum(shares)
    whole = next((whole for whole in (100, 1) if math.isclose(total, whole, rel_tol=1e-6)), None)
    if whole is None:
        raise ValueError(f"{text} adds up to {total:g}, not to 100 or 1; {EXAMPLE}")
    train, val, test = (*shares, 0.0)[:3]
    return train / whole, val / whole, test / whole
