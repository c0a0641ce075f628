"""Which post-processing a run gets: only what makes the masks of its validation cases better, by a paired test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ulna.evaluation.metrics import mask_of
from ulna.recipe import Frozen, Labels
from ulna.trust.cleaning import Rule, clean
from ulna.trust.components import box_of
from ulna.trust.structures import Structures

ALPHA = 0.05  # of all tests of a run together (Bonferroni)
QUESTIONS = 3  # tests of a class: largest object, small objects, holes
Dices = Mapping[Rule, float]  # of one case and class


class Kept(Frozen):
    """A rule with what stands for it."""

    rule: Rule
    dice_before: float
    dice_after: float
    cases: int = Field(ge=1)  # that count for the class
    changed: int = Field(ge=1)  # of them, those whose Dice changed
    p: float = Field(ge=0, le=1)  # of the weakest step, one-sided, Wilcoxon's signed ranks


def candidates(name: str, known: Structures) -> list[Rule]:
    """What may be done to a class, nothing first; small is an object below half of what 95 % of the smallest ones have."""
    seen = known.seen.get(name)
    small = None if seen is None or not seen.smallest_object else seen.smallest_object / 2
    alone = [Rule(), Rule(largest=True), *([] if small is None else [Rule(smallest=small)])]
    return [*alone, *(rule.replaced(holes=True) for rule in alone)]


def dice_by_rule(
    mask: NDArray[Any], reference: NDArray[Any], labels: Labels, name: str, rules: Sequence[Rule], voxel: float
) -> dict[Rule, float]:
    """The Dice of one class of one case under every rule; NaN where neither holds it.

    Args:
        mask: as predicted; it is not changed.
        reference: on the same grid.
        labels: the classes.
        name: of the class.
        rules: to try.
        voxel: what one has of the unit of volumes.
    """
    number = labels.foreground.index(name) + 1
    true = mask_of(reference, number, multilabel=labels.multilabel)
    box = box_of(mask_of(mask, number, multilabel=labels.multilabel) | true)
    if box is None:
        return dict.fromkeys(rules, math.nan)
    inside: tuple[Any, ...] = (..., *box)
    mask, true = mask[inside], true[box]  # a rule looks at no voxel outside of the box of its class
    found = {}
    for rule in rules:
        tried = mask if rule == Rule() else mask.copy()
        if rule != Rule():
            clean(tried, labels, {name: rule}, voxel)
        own = mask_of(tried, number, multilabel=labels.multilabel)
        both = int(np.count_nonzero(own)) + int(np.count_nonzero(true))
        found[rule] = 2 * int(np.count_nonzero(own & true)) / both if both else math.nan
    return found


def choose_rules(cases: Mapping[str, Sequence[Dices]]) -> dict[str, Kept]:
    """The rules that are kept, class by class; a class without one is left out.

    Asked in turn are: only the largest object; if not, no small ones; then, beside what was kept, holes filled. Each has to
    raise the mean Dice, with a p-value below 0.05 over three times the number of classes.

    Args:
        cases: class -> the Dice of every validation case under every rule.
    """
    kept = {}
    level = ALPHA / (QUESTIONS * max(1, len(cases)))
    for name, rows in cases.items():
        rules = list(rows[0]) if rows else []
        chosen, worst = Rule(), 0.0
        smalls = [rule for rule in rules if rule.smallest is not None and not rule.holes]
        for rule in [*(rule for rule in rules if rule == Rule(largest=True)), *smalls]:
            p = better(rows, chosen, rule)
            if p < level:
                chosen, worst = rule, p
                break
        filled = chosen.replaced(holes=True)
        if filled in rules and (p := better(rows, chosen, filled)) < level:
            chosen, worst = filled, max(worst, p)
        if chosen != Rule():
            before, after = (_known(rows, rule) for rule in (Rule(), chosen))
            kept[name] = Kept(
                rule=chosen,
                dice_before=float(before.mean()),
                dice_after=float(after.mean()),
                cases=len(before),
                changed=max(1, int(np.count_nonzero(before != after))),
                p=worst,
            )
    return kept


def better(rows: Sequence[Dices], before: Rule, after: Rule) -> float:
    """The p-value that a rule is no better than another; 1 where the mean is not higher."""
    a, b = _known(rows, before), _known(rows, after)
    apart = b - a
    if not np.any(apart) or apart.mean() <= 0:
        return 1.0
    from scipy.stats import wilcoxon  # late: no prediction needs it, and each would wait for it

    return float(wilcoxon(apart[apart != 0], alternative="greater").pvalue)


def _known(rows: Sequence[Dices], rule: Rule) -> NDArray[np.float64]:
    """The Dice of the cases that count for a class; one that a rule empties counts as it did."""
    values = np.array([row[rule] for row in rows], dtype=np.float64)
    return np.nan_to_num(values[~np.isnan([row[Rule()] for row in rows])], nan=1.0)
