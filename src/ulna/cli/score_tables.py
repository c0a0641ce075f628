"""What is printed of an evaluation beyond its main table: which measures apply, lesions by size, scores by group."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from ulna.cli.printing import make_table, mean_and_interval, print_plain, safe
from ulna.errors import printable
from ulna.evaluation.headings import object_word, present


def further_rows(summary: Any) -> dict[str, str]:
    """Measure -> its heading, of those beyond overlap and surface that apply to any class."""
    return {key: heading.name for key, heading in present(summary["mean"], summary["tolerance_unit"]).items()}


def print_parts(console: Console, summary: Any) -> None:
    """Objects by size, scores by group, and why measures were chosen, where there are any."""
    things = object_word(summary.get("tolerance_unit", "px")) + "s"
    for name, endings in summary.get("lesions", {}).items():
        table = make_table(
            "size",
            things,
            "found at 0.1",
            "false a case",
            "found at 0.5",
            "false a case",
            title=f"{things} of {safe(name)} by size",
        )
        for size in next(iter(endings.values())):
            first, second = (endings[ending][size] for ending in ("10", "50"))
            cells = [
                cell for one in (first, second) for cell in (_share(one), _number(one["false_positives_per_case"]))
            ]
            table.add_row(size, str(first["references"]), *cells)
        console.print(table)
    for field, of in summary.get("subgroups", {}).items():
        table = make_table(safe(field), "n", "Dice", title=f"by {safe(field)}")
        for group, measures in of["groups"].items():
            table.add_row(safe(group), str(measures["dice"]["n"]), mean_and_interval(measures["dice"]))
        console.print(table)
        if (gap := of["gap"].get("dice")) is not None:
            interval = f"95 % interval {gap['low']:.3f} to {gap['high']:.3f}, p = {gap['p']:.2g}"
            text = f"gap of Dice between {gap['best']} and {gap['worst']}: {gap['difference']:.3f} ({interval})"
            print_plain(console, printable(text), style="dim")
        if of.get("note"):
            print_plain(console, of["note"], style="yellow")
    for name, why in summary.get("measures", {}).get("because", {}).items():
        for family, reason in why.items():
            print_plain(console, printable(f"{family} of {name}: {reason}"), style="dim")


def _share(one: Any) -> str:
    return "-" if one["sensitivity"] is None else f"{one['found']} ({one['sensitivity']:.0%})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
