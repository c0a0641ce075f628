"""The page of an evaluation: figures, distributions, curves, all cases, the best and the worst, and how it came about.

The page is a single file without scripts and without anything to fetch; a content policy in its head holds it to that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ulna.evaluation import figures
from ulna.evaluation.colours import CLASS_COLOURS
from ulna.evaluation.drawn import EACH, ShownCase
from ulna.evaluation.headings import present
from ulna.evaluation.listing import MEASURES, list_cases
from ulna.evaluation.origins import Origin, Tile
from ulna.pages.charts import Chart, distribution
from ulna.pages.embedding import css
from ulna.pages.numbers import DASH, Cell, brief, mean_cell, number
from ulna.pages.sealing import sealed
from ulna.pages.templates import page
from ulna.system.files import write_text

CHARTED = 11  # classes with a distribution of their own, those with the lowest mean
STATEMENT_FILE = "SYNTHETIC"  # beside data that ulna made up


class Evaluated(Protocol):
    """What the page reads of an evaluation."""

    @property
    def summary(self) -> Mapping[str, Any]: ...

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]: ...


class Section(NamedTuple):
    """What else is shown, beside the run that the page is about.

    Args:
        title: of the section.
        words: paragraphs.
        cases: all are shown, in this order.
        command: that makes it.
    """

    title: str
    words: tuple[str, ...]
    cases: tuple[ShownCase, ...]
    command: str


def is_synthetic(data: Path) -> bool:
    """Whether a data set says that ulna made it up."""
    return (data / STATEMENT_FILE).is_file()


def write_report(
    out: Path,
    evaluation: Evaluated,
    cases: Sequence[ShownCase],
    origin: Origin,
    *,
    verb: str,
    title: str,
    table: str,
    synthetic: bool = False,
    section: Section | None = None,
) -> Path:
    """Write the page, self-contained and readable offline.

    Args:
        out: the HTML file to write.
        evaluation: the scores.
        cases: with pictures, from the lowest Dice to the highest.
        origin: how the scores came about.
        verb: that writes it: ulna knows the page by it.
        title: of the page, the name of the data.
        table: the file beside it that has all scores.
        synthetic: whether to say at the top that the data are made up.
        section: to show behind all else; None for none.

    Raises:
        UsageError: if `out` cannot be written.
    """
    scores = evaluation.summary
    unit = str(scores.get("unit", "px"))
    tolerance = f"{brief(scores.get('tolerance'))} {scores.get('tolerance_unit', unit)}"
    units = {"hd95": unit, "assd": unit, "nsd": f"≤ {tolerance}"}
    values = {
        "title": title,
        "synthetic": synthetic,
        "model": origin.model,
        "tiles": [*_tiles(scores), *origin.tiles],
        "interval_note": scores.get("interval_note", ""),
        "missing": [str(case) for case in scores.get("missing", ())],
        "not_scored": [str(case) for case in scores.get("not_scored", ())],
        "measures": [*((name, units.get(key, "")) for key, name in MEASURES.items()), ("n", ""), ("Both empty", "")],
        "table": _table(scores),
        "further": _further(scores),
        "unit": unit,
        "one": str(scores.get("by") or "case"),
        "tolerance": tolerance,
        "distributions": _distributions(evaluation),
        "charts": origin.charts,
        "listing": list_cases(evaluation.rows, units),
        "all_scores": table,
        "groups": _groups(cases),
        "anchors": _anchors(cases),
        "classes": _classes(scores),
        "section": section,
        "errors": [(meaning, css(colour)) for meaning, colour in figures.LEGEND],
        "volumes": any(case.sliced for case in cases),
        "oriented": any(picture.sides for case in cases for picture in case.pictures),
        "origin": origin,
        "version": origin.version,
    }
    write_text(out, sealed(page("ulna.evaluation", "report.html").render(values), verb))
    return out


def _tiles(scores: Mapping[str, Any]) -> list[Tile]:
    mean = scores.get("mean", {})
    dice, iou = (mean_cell(mean.get(name), 3) for name in ("dice", "iou"))
    missing = len(scores.get("missing", ()))
    what = {"slice": "Slices", "group": "Groups"}.get(str(scores.get("by")), "Cases")
    return [
        ("Mean Dice", dice.mean, f"95 %: {dice.interval}" if dice.interval else ""),
        ("Mean IoU", iou.mean, iou.interval),
        (what, str(scores.get("cases", DASH)), f"{missing} without prediction" if missing else "evaluated"),
    ]


def _table(scores: Mapping[str, Any]) -> list[tuple[str, list[Cell]]]:
    rows = dict(scores.get("classes", {}))
    lines = [(str(name), _cells(measures)) for name, measures in rows.items()]
    return [*lines, ("Mean", _cells(scores.get("mean", {})))] if len(rows) > 1 else lines


def _cells(measures: Mapping[str, Any]) -> list[Cell]:
    cells = [mean_cell(measures.get(key), 2 if key in ("hd95", "assd") else 3) for key in MEASURES]
    return [*cells, *(Cell(number(measures.get(key), 0), "") for key in ("n", "both_empty"))]


def _further(scores: Mapping[str, Any]) -> list[list[Cell]]:
    """A row a measure beyond those of the table, with a column a class and one of all; the first row is the headings."""
    columns = {**dict(scores.get("classes", {})), "Mean": scores.get("mean", {})}
    if len(columns) == 2:
        columns.popitem()
    found = present(scores.get("mean", {}), str(scores.get("tolerance_unit")))
    rows = [
        [
            Cell(one.name[:1].upper() + one.name[1:], ""),
            *(mean_cell(of.get(key), one.digits) for of in columns.values()),
        ]
        for key, one in found.items()
    ]
    return [[Cell(str(name), "") for name in ("Measure", *columns)], *rows] if rows else []


def _distributions(evaluation: Evaluated) -> list[Chart]:
    """Of the Dice of every class, those with the lowest mean first where there are many."""
    found: dict[str, list[float]] = {}
    for row in evaluation.rows:
        found.setdefault(str(row["class"]), []).append(float(row["dice"]))
    known = {name: [dice for dice in values if math.isfinite(dice)] for name, values in found.items()}
    means = {name: sum(values) / len(values) for name, values in known.items() if values}
    chosen = set(sorted(means, key=lambda name: means[name])[:CHARTED])
    return [distribution(name, known[name], means[name]) for name in means if name in chosen]


def _groups(cases: Sequence[ShownCase]) -> list[tuple[str, list[ShownCase]]]:
    """(heading, cases): the lowest Dice first, for failures teach more; none that is rightly empty."""
    ranked = [case for case in cases if case.dice is not None]
    if len(ranked) < 2:
        return [("The case", ranked)] if ranked else []
    shown = min(EACH, len(ranked) // 2)
    return [("Lowest Dice", ranked[:shown]), ("Highest Dice", ranked[: -shown - 1 : -1])]


def _anchors(cases: Sequence[ShownCase]) -> dict[str, str]:
    """Case -> where its pictures are on the page."""
    drawn = [case.case for _, some in _groups(cases) for case in some]
    return {case: f"case-{at}" for at, case in enumerate(drawn, start=1)}


def _classes(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(outline of a class, its colour)."""
    colours = CLASS_COLOURS
    names = list(scores.get("classes", {}))
    return [(f"outline of {name}", css(colours[k % len(colours)])) for k, name in enumerate(names)]
