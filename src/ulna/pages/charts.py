"""Charts as data: lines, bars and ticks on a field of fixed size, which `parts.html` draws in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

LEFT, RIGHT, TOP, BOTTOM = 38.0, 392.0, 8.0, 168.0  # of the plot in a field of 400 x 190
BINS = 20  # of a distribution from 0 to 1
MOST_POINTS = 400  # of a line: more would lie on each other

Row = Mapping[str, float | None]


class Line(NamedTuple):
    """A line of one kind, which gives it its colour: its points as SVG writes them."""

    kind: str
    points: str
    dots: list[tuple[float, float]]


class Bar(NamedTuple):
    """A bar, and what it says when pointed at."""

    x: float
    y: float
    width: float
    height: float
    said: str


class Chart(NamedTuple):
    """One chart.

    Args:
        title: above it.
        said: all that it shows, in words, for who does not see it.
        x_ticks: (place, text).
        y_ticks: the same.
        x_name: what lies along x.
        lines: over each other.
        bars: beside each other.
        upright: a vertical line, such as a mean; None for none.
        mark: (kind, x, y) of one point that stands out; None for none.
        keys: (kind, text) of what the lines are.
    """

    title: str
    said: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    x_name: str = ""
    lines: Sequence[Line] = ()
    bars: Sequence[Bar] = ()
    upright: float | None = None
    mark: tuple[str, float, float] | None = None
    keys: Sequence[tuple[str, str]] = ()


class Scale(NamedTuple):
    """From values to places."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + share * (self.end - self.start), 1)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values between two, at most so many.

    Example:
        >>> ticks(0, 1), ticks(1, 100)
        ([0.0, 0.25, 0.5, 0.75, 1.0], [25.0, 50.0, 75.0, 100.0])
    """
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low] if math.isfinite(low) else []
    power = 10 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if span / (power * factor) <= most - 1 + 1e-9)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, math.floor(high / step + 1e-9) + 1)]


def distribution(title: str, values: Sequence[float], mean: float | None) -> Chart:
    """How many cases have which score, from 0 to 1 in steps of 0.05.

    Args:
        title: of the chart.
        values: the scores that are defined.
        mean: of them, drawn as a line.
    """
    counts, edges = np.histogram(np.clip(values, 0, 1), BINS, (0, 1))
    x, y = Scale(0, 1, LEFT, RIGHT), Scale(0, max(1, int(counts.max(initial=0))), BOTTOM, TOP)
    bars = [
        Bar(x(low) + 0.5, y(count), round(x(high) - x(low) - 1, 1), round(BOTTOM - y(count), 1),
            f"{low:.2f} to {high:.2f}: {count}")
        for count, low, high in zip(counts.tolist(), edges[:-1], edges[1:], strict=True)
        if count
    ]  # fmt: skip
    known = np.sort(np.asarray(values, float))
    said = f"n {known.size}"
    if known.size:
        low, quarter, median = (float(np.quantile(known, share)) for share in (0, 0.25, 0.5))
        said += f", lowest {low:.3f}, a quarter below {quarter:.3f}, median {median:.3f}"
    y_ticks = [(y(value), f"{value:g}") for value in ticks(0, y.high, 4) if value == int(value)]
    return Chart(
        title, said, [(x(value), f"{value:g}") for value in ticks(0, 1)], y_ticks, bars=bars,
        upright=None if mean is None or not math.isfinite(mean) else x(mean),
    )  # fmt: skip


def training(rows: Sequence[Row], monitor: str = "dice") -> list[Chart]:
    """Loss, and Dice and IoU of the validation cases, by epoch, with the best epoch; nothing without epochs.

    Args:
        rows: one an epoch, with `epoch`, `train_loss`, `val_dice` and `val_iou`; None or NaN where there is none.
        monitor: dice or iou: what chose the best epoch.
    """
    loss, dice, iou = (_known(rows, name) for name in ("train_loss", "val_dice", "val_iou"))
    if not (loss or dice):
        return []
    first, last = min(epoch for epoch, _ in loss or dice), max(epoch for epoch, _ in [*loss, *dice])
    x = Scale(first, last if last > first else first + 1, LEFT, RIGHT)
    x_ticks = [(x(value), f"{value:g}") for value in ticks(first, last, 7) if value == int(value)]
    charts = []
    chosen = iou if monitor == "iou" else dice
    best = max(chosen, key=lambda point: point[1], default=None)
    at = None if best is None else x(best[0])
    if loss:
        lowest, highest = min(0.0, min(value for _, value in loss)), max(value for _, value in loss) or 1.0
        y = Scale(lowest, highest, BOTTOM, TOP)
        said = f"from {loss[0][1]:.3g} to {loss[-1][1]:.3g} in {len(loss)} epochs"
        charts.append(
            Chart("Training loss", said, x_ticks, _y_ticks(y), "epoch", [_line("loss", loss, x, y)], upright=at)
        )
    if dice:
        y = Scale(0, 1, BOTTOM, TOP)
        name = "IoU" if monitor == "iou" else "Dice"
        said = "" if best is None else f"best {name} {best[1]:.3f}, epoch {best[0]:.0f}"
        charts.append(
            Chart(
                "Validation Dice and IoU", said, x_ticks, _y_ticks(y), "epoch",
                [_line("dice", dice, x, y), _line("iou", iou, x, y)], upright=at,
                mark=None if best is None else (monitor, x(best[0]), y(best[1])), keys=[("dice", "Dice"), ("iou", "IoU")],
            )
        )  # fmt: skip
    return charts


def several(title: str, runs: Mapping[str, Sequence[Row]]) -> list[Chart]:
    """The validation Dice of several trainings, a line each; nothing where none was validated."""
    found = {name: points for name, rows in runs.items() if (points := _known(rows, "val_dice"))}
    if not found:
        return []
    epochs = [epoch for points in found.values() for epoch, _ in points]
    x = Scale(min(epochs), max(max(epochs), min(epochs) + 1), LEFT, RIGHT)
    y = Scale(0, 1, BOTTOM, TOP)
    x_ticks = [(x(value), f"{value:g}") for value in ticks(min(epochs), max(epochs), 7) if value == int(value)]
    kinds = {name: f"one{number % 6}" for number, name in enumerate(found)}
    said = "; ".join(f"{name}: best {max(value for _, value in points):.3f}" for name, points in found.items())
    lines = [_line(kinds[name], points, x, y) for name, points in found.items()]
    return [Chart(title, said, x_ticks, _y_ticks(y), "epoch", lines, keys=[(kinds[name], name) for name in found])]


def _known(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    points = [(row.get("epoch"), row.get(name)) for row in rows]
    return [(x, y) for x, y in points if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)]


def _line(kind: str, points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> Line:
    step = -(-len(points) // MOST_POINTS) or 1
    places = [(x(epoch), y(value)) for epoch, value in [*points[::step], *points[-1:]]]
    return Line(kind, " ".join(f"{a:g},{b:g}" for a, b in places), places if len(points) < 3 else [])


def _y_ticks(y: Scale) -> list[tuple[float, str]]:
    return [(y(value), f"{value:g}") for value in ticks(y.low, y.high)]
