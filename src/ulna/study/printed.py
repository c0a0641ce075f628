"""Tables as papers print them: every class for itself, and a printed cell beside the one measured here."""

from __future__ import annotations

import math
from typing import NamedTuple

from ulna.study.outcome import Outcome
from ulna.study.published import COSTS, PERCENT, Published
from ulna.study.statistics import Description

OF_A_CLASS = ("iou", "ppv", "sensitivity")


class Table(NamedTuple):
    """A table in words: every cell a figure and a remark."""

    headings: list[str]
    rows: list[list[tuple[str, str]]]


def class_table(outcome: Outcome) -> Table:
    """Every class of every network: mean Dice with its deviation over seeds and over cases, and the other scores.

    Without rows where there is one class alone.
    """
    headings = ["model", "class", "Dice", "sd seeds", f"sd {outcome.unit}s", "IoU", "PPV", "sensitivity", "n"]
    rows = []
    for model, classes in outcome.by_class.items():
        for name, described in classes.items():
            dice = described["dice"]
            cells = [figure(dice.mean, 4), figure(dice.sd_seeds, 4), figure(dice.sd_units, 3)]
            cells += [figure(described[measure].mean, 4) for measure in OF_A_CLASS]
            rows.append([(cell, "") for cell in (model, name, *cells, str(dice.units))])
    return Table(headings, rows)


def published_table(outcome: Outcome, table: Published) -> Table:
    """A table of a paper: a row a network, and beside every printed cell ours, with a deviation of the same kind."""
    headings = ["model", *(f"{said}{part}" for said in table.measures.values() for part in (", published", ", here"))]
    rows = []
    for model, printed in table.rows.items():
        row = [(model, "")]
        for measure in table.measures:
            row += [(printed.get(measure, "–"), ""), (measured(outcome, table, model, measure), "")]
        rows.append(row)
    return Table(headings, rows)


def measured(outcome: Outcome, table: Published, model: str, measure: str) -> str:
    """Our cell beside a printed one; a dash where it was not measured, or no class here is the paper's."""
    if measure in COSTS:
        value = getattr(outcome.costs.models[model], measure)
        return figure(value, 0 if measure.endswith("_mb") else 2)
    if measure == "pooled_iou":
        return figure(_percent(outcome.pooled_iou[model]), 2)
    if measure in PERCENT:
        return _with_deviation(outcome.described[model][measure], table.spread)
    classes = outcome.by_class.get(model, {})
    name = table.name_of(measure, classes)
    return "–" if name is None else _with_deviation(classes[name]["dice"], table.spread)


def figure(value: float | None, digits: int) -> str:
    """A number, or a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _with_deviation(found: Description, spread: str) -> str:
    """In percent; without a printed deviation that of the seeds, where there are several."""
    deviation = found.sd_units if spread == "cases" else found.sd_seeds
    digits = 1 if spread == "cases" else 2
    if deviation is None or not math.isfinite(deviation):
        return figure(_percent(found.mean), digits)
    return f"{figure(_percent(found.mean), digits)} ± {100 * deviation:.{digits}f}"


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
