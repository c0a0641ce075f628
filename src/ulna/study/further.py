"""Tables of a study beyond the main one: further measures, objects by size, and scores by group."""

from __future__ import annotations

from typing import Any

from ulna.errors import printable
from ulna.evaluation.headings import heading_of, object_word
from ulna.evaluation.objects import THRESHOLDS
from ulna.study.outcome import Outcome
from ulna.study.printed import Table, figure


def further_table(outcome: Outcome) -> Table:
    """A row a network: the mean of every further measure with its interval. Without rows where there is none."""
    if not outcome.further:
        return Table([], [])
    rows = []
    for model in outcome.models:
        row = [(model, "")]
        for name in outcome.further:
            one, digits = outcome.described[model][name], heading_of(name, outcome.length_unit).digits
            row.append((figure(one.mean, digits), f"[{figure(one.low, digits)}, {figure(one.high, digits)}]"))
        rows.append(row)
    return Table(["model", *(f"{heading_of(name, outcome.length_unit).name} [95 %]" for name in outcome.further)], rows)


def lesion_table(outcome: Outcome) -> Table:
    """A row a network, class, IoU and size: what is found of its objects, and what is invented."""
    headings = [
        "model",
        "class",
        "IoU",
        "size",
        f"{object_word(outcome.length_unit)}s",
        "found",
        "sensitivity",
        "F1",
        "false a case",
    ]
    rows = []
    for model, classes in outcome.lesions.items():
        for name, endings in classes.items():
            for ending, sizes in endings.items():
                for size, one in sizes.items():
                    counts = (str(one[key]) for key in ("references", "found"))
                    rates = (figure(one[key], 3) for key in ("sensitivity", "f1"))
                    false = figure(one["false_positives_per_case"], 2)
                    cells = (model, name, f"{THRESHOLDS[ending]:g}", size, *counts, *rates, false)
                    rows.append([(cell, "") for cell in cells])
    return Table(headings, rows)


def subgroup_table(outcome: Outcome) -> Table:
    """A row a network, field and group: n and the mean Dice with its interval, then the gap between best and worst."""
    headings = ["model", "field", "group", "n", "Dice [95 %]", "gap [95 %]", "p of the gap"]
    rows = []
    for model, fields in outcome.subgroups.items():
        for field, of in fields.items():
            for group, measures in of["groups"].items():
                dice = measures["dice"]
                first = [(cell, "") for cell in (model, printable(field), printable(group), str(dice["n"]))]
                rows.append([*first, (figure(dice["mean"], 4), _interval(dice)), *[("", "")] * 2])
            if (gap := of["gap"].get("dice")) is not None:
                said = printable(f"{gap['best']} − {gap['worst']}")
                first = [(cell, "") for cell in (model, printable(field), said, "", "")]
                rows.append([*first, (figure(gap["difference"], 4), _interval(gap)), (figure(gap["p"], 3), "")])
    return Table(headings, rows)


def _interval(one: dict[str, Any]) -> str:
    return f"[{figure(one['low'], 4)}, {figure(one['high'], 4)}]"


def further_sections(outcome: Outcome) -> list[tuple[str, Table]]:
    """Headings and tables, of those that have rows."""
    sections = {
        "Further measures": further_table(outcome),
        f"{object_word(outcome.length_unit).capitalize()}s by size": lesion_table(outcome),
        "Subgroups": subgroup_table(outcome),
    }
    return [(name, table) for name, table in sections.items() if table.rows]
