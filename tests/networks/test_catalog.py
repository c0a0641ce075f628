"""Every row of the catalogue against the figures that its paper prints."""

import pytest

from ulna.networks.catalog import NAMED
from ulna.networks.profile.cost import models


def agrees(printed: str, counted: float) -> bool:
    """Whether a count, rounded as the paper rounds, is what it prints."""
    digits = len(printed.partition(".")[2])
    return f"{counted:.{digits}f}" == printed


@pytest.mark.parametrize("name", [name for name, entry in NAMED.items() if entry.published or entry.published_gmacs])
@pytest.mark.share(2)
def test_a_row_has_the_printed_figures_or_says_why_not(name):
    (model,) = models(name)
    printed = [
        (model.entry.published, model.parameters() / 1e6),
        (model.entry.published_gmacs, model.ptflops_gmacs()),
    ]
    agree = all(agrees(text, counted) for text, counted in printed if text)
    assert agree == (model.entry.mismatch == ""), printed
