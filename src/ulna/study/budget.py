"""A size that the networks of a study are scaled to, and the scaling."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ulna.errors import UsageError
from ulna.networks.build import count_parameters, match_width
from ulna.networks.foreign.scaling import scaled_words
from ulna.networks.network import Network
from ulna.networks.profile.cost import count_gmacs
from ulna.planning.drafts import shape_of
from ulna.planning.plan import Planned, planned_by

# How far a matched network may lie from its budget before the study says so.
NEAR = 0.02
# How a size is written.
WORDS = {"params": "{:,.0f} parameters", "gmacs": "{:g} GMACs"}


@dataclass(frozen=True)
class Budget:
    """A size that every network is scaled to: `params=8.5M` or `gmacs=3G`."""

    kind: str  # params, gmacs
    value: float

    @classmethod
    def read(cls, text: str) -> Budget:
        """From the command line.

        Raises:
            UsageError: if it is no budget.

        Example:
            >>> Budget.read("params=8.5M"), Budget.read("gmacs=3G")
            (Budget(kind='params', value=8500000.0), Budget(kind='gmacs', value=3.0))
        """
        form = re.fullmatch(r"\s*(params|gmacs)\s*=\s*([0-9][0-9_.]*)\s*([kKMG]?)\s*", text)
        if form is None:
            raise UsageError(f"--match {text}: expected params=8.5M or gmacs=3G")
        kind, number, unit = form.groups()
        try:
            value = float(number) * {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}[unit]
        except ValueError:
            raise UsageError(f"--match {text}: {number} is not a number") from None
        if kind == "gmacs" and unit:
            value /= 1e9
        if value <= 0:
            raise UsageError(f"--match {text}: give a size above 0")
        return cls(kind, value)

    def __str__(self) -> str:
        return WORDS[self.kind].format(self.value)


def matched(planned: Planned, budget: Budget) -> tuple[Planned, str]:
    """Every width scaled by one factor, to come as close to the budget as whole widths allow; a footnote if not near."""
    plan, recipe = planned.plan, planned.recipe

    def gmacs(network: Network) -> float:
        return count_gmacs(network, plan.patch, points=planned.points)

    size = count_parameters if budget.kind == "params" else gmacs
    words, shape = WORDS[budget.kind], shape_of(plan)
    scaled = match_width(recipe.architecture, budget.value, size=size, words=words, nearest=True, **shape)
    own = scaled_words(recipe.architecture.foreign, scaled.foreign)
    made = planned_by(plan, recipe.replaced(architecture=scaled), planned.split)
    away = size(made.network) / budget.value - 1
    far = f"{100 * away:+.1f} % away from {budget}, the closest that its widths allow" if abs(away) > NEAR else ""
    return made, "; ".join(part for part in (own, far) if part)
