"""The drawings of a study: scores case by case, accuracy against cost, learning curves, worst cases, ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from ulna.evaluation import figures
from ulna.evaluation.choice import spread
from ulna.evaluation.colours import to_rgb
from ulna.evaluation.drawn import DrawnCase, sized
from ulna.evaluation.views import Sides
from ulna.study.ranking import Ranking

# Okabe and Ito's palette, those first that show on white paper
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#677180", "#1c2430")
MARKERS = "osD^vPX*"
LEAST_RANGE = 3.0  # of an axis of costs: the largest as a multiple of the smallest
# Lines between the boxes: more would be a grey area.
MOST_LINES = 60


class Point(NamedTuple):
    """One model in a drawing of accuracy against cost."""

    model: str
    mean: float
    low: float
    high: float
    gmacs: float
    wall_ms: float


def colour(number: int) -> str:
    """Of the model of that number."""
    return COLOURS[number % len(COLOURS)]


def boxes(
    models: Sequence[str],
    scores: NDArray[np.float64],
    means: Sequence[float],
    unit: str,
    path: Path,
    *,
    measure: str = "Dice",
) -> Path:
    """Scores of every model, with a line through every case's scores: a study compares case by case.

    Args:
        models: names.
        scores: (models, units), as pairs are compared.
        means: of every model, as the table has them.
        unit: what a score is of.
        path: the PNG to write.
        measure: what the scores are.
    """
    figure = _figure(max(5.5, 1.5 * len(models) + 1.5), 4.2)
    axes = figure.subplots()
    places = np.arange(len(models))
    order = np.argsort(scores.mean(axis=0))
    shown = spread(order.tolist(), MOST_LINES)
    axes.plot(places, scores[:, shown], color=figures.MUTED[False], linewidth=0.6, alpha=0.35, zorder=1)
    drawn = axes.boxplot(
        list(scores), positions=places, widths=0.34, showfliers=False, patch_artist=True, zorder=3,
        medianprops={"color": figures.INK[False], "linewidth": 1.4},
        whiskerprops={"color": figures.INK[False]}, capprops={"color": figures.INK[False]},
    )  # fmt: skip
    for number, box in enumerate(drawn["boxes"]):
        box.set(facecolor=colour(number), alpha=0.75, edgecolor=figures.INK[False])
    axes.plot(places, means, "D", color="white", markeredgecolor=figures.INK[False], markersize=6, zorder=4)
    axes.set_xticks(places, [_broken(model) for model in models])
    _style(axes, f"{measure} of every {unit}, mean over seeds", f"diamond: mean of the table; a line joins one {unit}")
    axes.xaxis.label.set_fontsize(7.5)
    axes.set_xlim(-0.6, len(models) - 0.4)
    return figures.write_figure(figure, path)


def tradeoff(points: Sequence[Point], path: Path, *, measure: str = "Dice") -> Path:
    """Accuracy with its interval against the work of a forward pass, and against the time of one image."""
    figure = _figure(9.5, 4.2)
    for axes, name, label in zip(
        figure.subplots(1, 2, sharey=True),
        ("gmacs", "wall_ms"),
        ("GMACs of a forward pass", "ms an image, median"),
        strict=True,
    ):
        for number, point in enumerate(points):
            x, spread = getattr(point, name), [[point.mean - point.low], [point.high - point.mean]]
            if not math.isfinite(x):
                continue  # not timed
            if not math.isfinite(point.low):
                spread = [[0.0], [0.0]]
            axes.errorbar(
                x, point.mean, yerr=spread, fmt=MARKERS[number % len(MARKERS)], color=colour(number), markersize=7,
                capsize=3, linewidth=1.2, label=point.model,
            )  # fmt: skip
        axes.set_xscale("log")
        if limits := _least_range([getattr(point, name) for point in points]):
            axes.set_xlim(*limits)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.15)
        _style(axes, "", label)
    figure.axes[0].set_ylabel(f"mean {measure} with its 95 % interval", fontsize=9.5, color=figures.MUTED[False])
    figure.legend(
        handles=figure.axes[0].get_legend_handles_labels()[0], loc="outside lower center", frameon=False, fontsize=8.5,
        ncols=min(4, len(points)),
    )  # fmt: skip
    return figures.write_figure(figure, path)


def _least_range(values: Sequence[float]) -> tuple[float, float] | None:
    """Ends of a logarithmic axis for values that hardly differ, so that the difference does not look large; else None.

    Example:
        >>> [round(end, 3) for end in _least_range([0.10865, 0.10873])], _least_range([1.0, 4.0])
        ([0.063, 0.188], None)
    """
    known = [value for value in values if math.isfinite(value) and value > 0]
    if not known or max(known) / min(known) >= LEAST_RANGE:
        return None
    middle = math.sqrt(max(known) * min(known))
    return middle / math.sqrt(LEAST_RANGE), middle * math.sqrt(LEAST_RANGE)


def learning(curves: Mapping[str, Sequence[Sequence[tuple[int, float]]]], path: Path) -> Path:
    """Validation Dice over the epochs: a line a training, a colour a model.

    Args:
        curves: model -> for every training, (epoch, validation Dice) of those that were validated.
        path: the PNG to write.
    """
    figure = _figure(8, 4)
    axes = figure.subplots()
    for number, (model, runs) in enumerate(curves.items()):
        for at, run in enumerate(runs):
            style = "o-" if len(run) < 3 else "-"
            axes.plot(
                [epoch for epoch, _ in run], [dice for _, dice in run], style, color=colour(number), linewidth=1.3,
                alpha=0.85, label=model if at == 0 else None,
            )  # fmt: skip
    _style(axes, "Validation Dice, one line a training", "epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside right upper", frameon=False, fontsize=8.5)
    return figures.write_figure(figure, path)


class Hard(NamedTuple):
    """A case that is drawn: its id, the image (C, H, W), the reference (H, W) or (K, H, W), and what its sides are."""

    case: str
    image: NDArray[Any]
    reference: NDArray[Any]
    sides: Sides | None = None


def worst(
    cases: Sequence[Hard],
    masks: Mapping[str, Sequence[NDArray[Any]]],
    scores: Mapping[str, Sequence[float]],
    path: Path,
) -> list[DrawnCase]:
    """The cases that all models find hardest, side by side: image, reference, and every model's errors.

    Args:
        cases: what is drawn of each.
        masks: model -> its mask of every case.
        scores: model -> its Dice of every case.
        path: the PNG to write.
    """
    drawn = []
    for number, case in enumerate(cases):
        image, reference = sized(case.image, smooth=True), sized(case.reference)
        pictures = [("image", to_rgb(image)), ("reference", figures.overlay(image, reference))]
        pictures += [
            (f"{model}  {scores[model][number]:.3f}", figures.overlay(image, sized(of_model[number]), reference))
            for model, of_model in masks.items()
        ]
        mean = float(np.nan_to_num([of_model[number] for of_model in scores.values()], nan=1.0).mean())
        drawn.append(DrawnCase(case.case, mean, [figures.Picture(*one, case.sides) for one in pictures]))
    figures.panels([(one.title, one.pictures) for one in drawn], path)
    return drawn


def ranks(models: Sequence[str], ranking: Ranking, path: Path) -> Path:
    """Mean ranks over data sets, and how far apart they must lie to count (demsar2006, Fig. 1)."""
    mean_ranks, critical, datasets = ranking.mean_ranks, ranking.critical, ranking.datasets
    figure = _figure(8, 1.2 + 0.33 * len(models))
    axes = figure.subplots()
    order = np.argsort(mean_ranks)
    for place, number in enumerate(order):
        axes.plot(mean_ranks[number], -place, "o", color=colour(int(number)), markersize=8, zorder=3)
        axes.annotate(
            f"{models[number]}  {mean_ranks[number]:.2f}", (mean_ranks[number], -place), xytext=(9, 0),
            textcoords="offset points", va="center", fontsize=8.5, color=figures.INK[False],
        )  # fmt: skip
    places = {int(number): place for place, number in enumerate(order)}
    for group in ranking.groups:
        ends = [mean_ranks[number] for number in group]
        below = -max(places[number] for number in group) - 0.35
        axes.plot([min(ends), max(ends)], [below, below], color=figures.MUTED[False], linewidth=3)
    axes.set_yticks([])
    _style(
        axes,
        f"Mean rank over {datasets} data sets (1 is best); bars: not told apart (critical difference {critical:.2f})",
        "",
    )
    axes.set_xlim(0.8, len(models) + 0.9)
    axes.set_ylim(-len(models) + 0.2, 0.8)
    return figures.write_figure(figure, path)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=160, facecolor=figures.PAPER[False], layout="constrained")


def _style(axes: Any, title: str, label: str) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=figures.INK[False], pad=8)
    axes.set_xlabel(label, fontsize=9.5, color=figures.MUTED[False])
    axes.tick_params(colors=figures.INK[False], labelsize=8.5, length=0, pad=4)
    axes.grid(axis="y", color=figures.GRID[False], linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(figures.GRID[False])


def _broken(name: str) -> str:
    """A long name over several lines."""
    return name.replace("/", "/\n").replace(" ", "\n")
