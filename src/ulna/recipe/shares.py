"""Shares of a split as people write them: 80/10/10, 80/20 without cases that are kept for the end, or numbers of groups."""

from __future__ import annotations

import math

EXAMPLE = "write them as 80/10/10 (train, val, test) or 80/20 (no test)"
GROUPS = "groups"


def read_shares(text: str) -> tuple[float, float, float]:
    """Shares of train, val and test, which add up to 1; that of test is 0 where it is left out.

    Of a text that ends in "groups" they are numbers of groups (`are_counts`).

    Raises:
        ValueError: if these are no two or three shares above 0 that add up to 100 or to 1, or no whole numbers of groups.

    Example:
        >>> read_shares("80/10/10"), read_shares("0.75/0.25"), read_shares("23/3/3 groups")
        ((0.8, 0.1, 0.1), (0.75, 0.25, 0.0), (23.0, 3.0, 3.0))
    """
    numbers = text.strip().removesuffix(GROUPS).rstrip()
    of_groups = numbers != text.strip()
    try:
        shares = [float(part) for part in numbers.split("/")]
    except ValueError:
        raise ValueError(f"{text} is no list of shares; {EXAMPLE}") from None
    if len(shares) not in (2, 3):
        raise ValueError(f"{text} has {len(shares)} part{'s' * (len(shares) != 1)}; {EXAMPLE}")
    if not all(0 < share < math.inf for share in shares):
        raise ValueError(f"{text}: every share must be above 0; {EXAMPLE}")
    train, val, test = (*shares, 0.0)[:3]
    if of_groups:
        if not all(share.is_integer() for share in shares):
            raise ValueError(f"{text}: numbers of groups are whole, such as 23/3/3 groups")
        return train, val, test
    total = sum(shares)
    whole = next((whole for whole in (100, 1) if math.isclose(total, whole, rel_tol=1e-6)), None)
    if whole is None:
        raise ValueError(f"{text} adds up to {total:g}, not to 100 or 1; {EXAMPLE}")
    return train / whole, val / whole, test / whole


def are_counts(shares: tuple[float, float, float]) -> bool:
    """Whether these are numbers of groups, of which there are two at least, and no shares of 1.

    Example:
        >>> are_counts(read_shares("80/20")), are_counts(read_shares("1/1 groups"))
        (False, True)
    """
    return sum(shares) > 1.5
