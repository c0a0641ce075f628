"""Curves of a benchmark: every varied field a column, accuracy above what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ulna.evaluation.figures import DICE, GRID, INK, MUTED, PAPER, write_figure

_INK, _MUTED, _GRID, _PAPER = INK[False], MUTED[False], GRID[False], PAPER[False]
# what a row of panels shows: keys of which a table row has one, and its words
SHOWN = (
    (("dice",), {"dice": "Dice, 95 % interval"}),
    (("epoch_s", "prediction_ms"), {"epoch_s": "seconds an epoch", "prediction_ms": "ms a prediction"}),
    (("training_mb", "prediction_mb"), {"training_mb": "MB of training", "prediction_mb": "MB of a prediction"}),
)


def draw_curves(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], path: Path, *, conditions: str) -> Path:
    """Draw small multiples; the unvaried network's own value is a filled mark.

    Args:
        rows: `field`, `value`, `base`, `dice` as mean, low and high, and one key of each further row of panels.
        names: field -> what a reader calls it, in the order of the columns.
        path: the PNG to write.
        conditions: what was measured where, for the line below.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(2.5 * len(names), 6.2), dpi=160, facecolor=_PAPER, layout=layout)
    panels = figure.subplots(len(SHOWN), len(names), squeeze=False, sharey=False)
    for column, (field, name) in enumerate(names.items()):
        some = sorted((row for row in rows if row["field"] == field), key=lambda row: row["value"])
        for line, (keys, words) in enumerate(SHOWN):
            axes, key = panels[line][column], next(key for key in keys if key in some[0])
            _panel(axes, some, key)
            axes.set_title(words[key], loc="left", fontsize=9, color=_MUTED)
            axes.set_xticks(range(len(some)), [_short(row["value"]) for row in some])
        panels[-1][column].set_xlabel(name, fontsize=9.5, color=_INK)
    _share_range(list(panels[0]))
    figure.supxlabel(conditions, fontsize=8.5, color=_MUTED, x=0.01, ha="left", parse_math=False)
    return write_figure(figure, path)


def _panel(axes: Any, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    known = [(x, row) for x, row in enumerate(rows) if row[key] is not None]
    at = [x for x, _ in known]
    values = [row[key][0] if isinstance(row[key], Sequence) else row[key] for _, row in known]
    axes.plot(at, values, color=DICE, linewidth=1.6, zorder=2)
    if key == "dice":
        reach = [[v - (v if row[key][1] is None else row[key][1]) for v, row in zip(values, rows, strict=True)]]
        reach += [[(v if row[key][2] is None else row[key][2]) - v for v, row in zip(values, rows, strict=True)]]
        axes.errorbar(at, values, yerr=reach, fmt="none", ecolor=_MUTED, elinewidth=0.9, capsize=2.5, zorder=1)
    else:
        axes.set_ylim(0, 1.12 * max(values, default=0) or 1)  # a scale for what is too short to measure, too
    for (x, row), value in zip(known, values, strict=True):
        axes.plot(x, value, "o", color=DICE, markerfacecolor=DICE if row["base"] else _PAPER, markersize=6, zorder=3)
    axes.set_xlim(-0.4, len(rows) - 0.6)
    axes.tick_params(colors=_INK, labelsize=8.5, length=0, pad=3)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_facecolor(_PAPER)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_GRID)


def _share_range(panels: Sequence[Any]) -> None:
    """One scale for all, so that what matters little looks it."""
    low, high = min(axes.get_ylim()[0] for axes in panels), max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(low, high)


def _short(value: float) -> str:
    """1/32 rather than 0.03125."""
    return f"1/{round(1 / value)}" if 0 < value < 0.2 else f"{value:g}"
