"""The pruning figure: accuracy of every level, and accuracy against time.

Source: UNet++ (zhou2018), Fig. 3 (complexity, speed and accuracy of L1 to L4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ulna.evaluation.figures import DICE, GRID, INK, IOU, MUTED, PAPER
from ulna.system.files import write_whole

_INK, _MUTED, _GRID, _PAPER = INK[False], MUTED[False], GRID[False], PAPER[False]


def draw_levels(
    rows: Sequence[Mapping[str, Any]], path: Path, *, conditions: str, limit_ms: float | None = None
) -> Path:
    """Draw levels: bars of Dice and IoU with their intervals on the left, Dice against time an image on the right.

    Args:
        rows: one a level, with `level`, `parameters`, `p50_ms`, `p95_ms`, and `dice`, `dice_low`, `dice_high`, the same of
            `iou`; low and high may be None, as for a single case.
        path: the PNG to write.
        conditions: what was measured where, for the line below.
        limit_ms: the time that was allowed.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, wspace=0.06)
    figure = Figure(figsize=(9.5, 4.1), dpi=200, facecolor=_PAPER, layout=layout)
    left, right = figure.subplots(1, 2)
    _bars(left, rows)
    _against_time(right, rows, limit_ms)
    figure.supxlabel(conditions, fontsize=8.5, color=_MUTED, x=0.015, ha="left", parse_math=False)
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png", facecolor=_PAPER))
    return path


def _bars(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    at, width = np.arange(len(rows)), 0.38
    for name, title, colour, shift in (("dice", "Dice", DICE, -0.5), ("iou", "IoU", IOU, 0.5)):
        place, values = at + shift * width, [row[name] for row in rows]
        axes.bar(place, values, width * 0.94, color=colour, label=title)
        axes.errorbar(place, values, yerr=_reach(rows, name), fmt="none", ecolor=_INK, elinewidth=1, capsize=2.5)
        for x, row in zip(place, rows, strict=True):
            axes.text(x, 0.02, f"{row[name]:.3f}", rotation=90, ha="center", va="bottom", fontsize=8.5, color=_PAPER)
    axes.set_ylim(0, 1.02)
    axes.set_xticks(at, [f"{row['level']}\n{_millions(row['parameters'])}" for row in rows])
    _plain(axes, "Dice and IoU, 95 % interval", "Level, parameters")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, ncols=2, fontsize=9, frameon=False)


def _against_time(axes: Any, rows: Sequence[Mapping[str, Any]], limit_ms: float | None) -> None:
    time, dice = [row["p50_ms"] for row in rows], [row["dice"] for row in rows]
    tail = [[0.0] * len(rows), [max(0.0, row["p95_ms"] - row["p50_ms"]) for row in rows]]
    axes.errorbar(
        time,
        dice,
        xerr=tail,
        yerr=_reach(rows, "dice"),
        fmt="o",
        color=DICE,
        ecolor=_MUTED,
        elinewidth=0.9,
        markersize=6.5,
    )
    for row in rows:
        axes.annotate(
            row["level"],
            (row["p50_ms"], row["dice"]),
            xytext=(5, 5),
            textcoords="offset points",
            fontsize=9.5,
            color=_INK,
        )
    end = 1.06 * max(row["p95_ms"] for row in rows) or 1.0
    title = "Dice against time"
    if limit_ms is not None:
        title += f", {limit_ms:g} ms allowed"
        if limit_ms < 2 * end:  # a limit far away would press the levels together
            end = max(end, 1.06 * limit_ms)
            axes.axvline(limit_ms, color=_MUTED, linewidth=1, linestyle=(0, (2, 3)))
    axes.set_xlim(0, end)
    _plain(axes, title, "Time an image in ms: median, line to the 95th percentile")


def _reach(rows: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    """How far the interval reaches below and above the mean; (2, levels)."""
    ends = ((row[name], row[f"{name}_low"], row[f"{name}_high"]) for row in rows)
    reach = [(0.0, 0.0) if None in (low, high) else (max(0.0, m - low), max(0.0, high - m)) for m, low, high in ends]
    return [list(side) for side in zip(*reach, strict=True)]


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.2f} M" if parameters >= 1e5 else f"{parameters / 1e3:.1f} k"


def _plain(axes: Any, title: str, below: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=_INK, pad=9)
    axes.set_xlabel(below, fontsize=9.5, color=_MUTED)
    axes.tick_params(colors=_MUTED, labelsize=9.5, length=0, pad=5)
    axes.set_facecolor(_PAPER)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=_GRID, linewidth=0.9)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_GRID)
