"""Pictures: overlays of prediction and reference, training curves, contact sheets.

Functions return arrays (H, W, 3) uint8 or write one PNG. A file appears whole or not at all. What is shown of a volume, and
which way up, says `views.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

from ulna.evaluation.colours import CLASS_COLOURS, RGB, Colour, to_rgb
from ulna.evaluation.views import Sides, flat
from ulna.system.files import write_whole

LINES = 128  # outlines that fit beside each other along a picture
SIDE = 2.3  # inches that a picture of a contact sheet is wide
CAPTION = 32  # letters that fit above a picture of a contact sheet
Mask = NDArray[np.bool_]

RIGHT: Colour = (255, 255, 255)
FALSE_POSITIVE: Colour = (239, 51, 64)
FALSE_NEGATIVE: Colour = (38, 128, 255)
RIGHT_INSIDE: Colour = (160, 160, 160)  # as the inside of a right area looks, over tissue
LEGEND: tuple[tuple[str, Colour], ...] = (
    ("right, with a white rim", RIGHT_INSIDE),
    ("false positive", FALSE_POSITIVE),
    ("false negative", FALSE_NEGATIVE),
)
LETTERS = "#f4d35e"  # at the sides of a picture: on dark and on bright tissue

INK = {False: "#1c2430", True: "#e8ebf0"}  # dark page?
MUTED = {False: "#677180", True: "#98a2b0"}
GRID = {False: "#e4e7eb", True: "#2b323c"}
PAPER = {False: "#ffffff", True: "#171b21"}
LOSS, DICE, IOU = "#8a6bd1", "#1f8f78", "#d9822b"


class Picture(NamedTuple):
    """One picture of a contact sheet."""

    caption: str
    values: RGB
    sides: Sides | None = None


def overlay(image: NDArray[Any], prediction: NDArray[Any], reference: NDArray[Any] | None = None) -> RGB:
    """Prediction over the darkened image: grey with a white rim where right, red where false positive, blue where false
    negative.

    A wrong class counts as false positive. Without a reference: the outline of every predicted class in a colour of
    its own. Of a volume one slice is shown, see `flat`; the reference chooses it where there is one.

    Shape:
        (C, *S), (*S), (*S) -> (H, W, 3); label maps of overlapping classes are (K, *S)
    """
    if reference is None:
        image, prediction = flat(image, prediction)
        return outlined(to_rgb(image), prediction)
    image, reference, prediction = flat(image, reference, prediction)
    canvas = np.repeat(0.45 * (to_rgb(image) @ (0.299, 0.587, 0.114))[..., None], 3, axis=-1)
    right, wrong, missed = _verdict(prediction, reference)
    _paint(canvas, right, RIGHT, alpha=0.5)
    for _, layer in _layers(prediction):
        _paint(canvas, right & _edge(layer, line_width(layer)), RIGHT, alpha=0.9)
    _paint(canvas, wrong, FALSE_POSITIVE, alpha=0.85)
    _paint(canvas, missed, FALSE_NEGATIVE, alpha=0.85)
    return np.rint(canvas).astype(np.uint8)


def outlined(picture: RGB, labels: NDArray[Any]) -> RGB:
    """A picture with the outline of every class in a colour of its own: (H, W, 3), (H, W) or (K, H, W) -> (H, W, 3)."""
    return _outlines(picture.astype(np.float64), labels)


def outlines_alone(labels: NDArray[Any], width: int = 1) -> NDArray[np.uint8]:
    """The outlines of all classes to lay over a picture, as wide as so many pixels and transparent between them.

    Where two classes of one map touch, the border has one colour, that of the class with the shorter border to the background
    (what lies within another one has none): two lines side by side would be seen as one of a third colour.

    Shape:
        (H, W) or (K, H, W) -> (H, W, 4)
    """
    canvas = np.zeros((*labels.shape[-2:], 4), np.uint8)
    layers = _layers(labels)
    if labels.ndim == 2:
        border = _edge(labels != 0, 1)
        layers.sort(key=lambda one: -int(np.count_nonzero(one[1] & border)))
    for place, (number, layer) in enumerate(layers):
        within = layer if labels.ndim == 3 else np.any([one for _, one in layers[place:]], axis=0)
        canvas[layer & _edge(within, width)] = (*CLASS_COLOURS[number % len(CLASS_COLOURS)], 255)
    return canvas


def comparison(image: NDArray[Any], prediction: NDArray[Any], reference: NDArray[Any]) -> list[tuple[str, RGB]]:
    """Image, reference, prediction and errors of one case, each with its caption; of a volume all show the same slice.

    Shape:
        (C, *S), (*S), (*S) -> four pictures (H, W, 3); label maps of overlapping classes are (K, *S)
    """
    image, reference, prediction = flat(image, reference, prediction)
    return [
        ("image", to_rgb(image)),
        ("reference", overlay(image, reference)),
        ("prediction", overlay(image, prediction)),
        ("errors", overlay(image, prediction, reference)),
    ]


def _verdict(prediction: NDArray[Any], reference: NDArray[Any]) -> tuple[Mask, Mask, Mask]:
    """(right, false positive, false negative), each (H, W) and none overlapping another."""
    if prediction.ndim == 3:
        predicted, true = prediction != 0, reference != 0
        wrong, missed, found = (m.any(axis=0) for m in (predicted & ~true, true & ~predicted, predicted & true))
    else:
        wrong = (prediction != 0) & (prediction != reference)
        missed, found = (prediction == 0) & (reference != 0), (prediction != 0) & (prediction == reference)
    return found & ~wrong & ~missed, wrong, missed & ~wrong


def _outlines(picture: NDArray[np.float64], labels: NDArray[Any]) -> RGB:
    canvas = 0.85 * picture
    for number, layer in _layers(labels):
        _paint(canvas, _edge(layer, line_width(layer)), CLASS_COLOURS[number % len(CLASS_COLOURS)], alpha=1.0)
    return np.rint(canvas).astype(np.uint8)


def _layers(labels: NDArray[Any]) -> list[tuple[int, Mask]]:
    """(number of the class, from 0; its mask) for every class there is."""
    if labels.ndim == 3:
        return [(number, layer != 0) for number, layer in enumerate(labels)]
    return [(int(value) - 1, labels == value) for value in np.unique(labels[labels != 0])]


def line_width(picture: NDArray[Any]) -> int:
    """Pixels of an outline in a picture of any size, so that it is to be seen on a page: (H, W) or (H, W, 3).

    Example:
        >>> line_width(np.zeros((32, 40))), line_width(np.zeros((512, 400, 3)))
        (1, 4)
    """
    return max(1, round(max(picture.shape[:2]) / LINES))


def _edge(layer: Mask, width: int) -> Mask:
    """The pixels of a mask that touch what is outside, or lie so near; the image's border is no edge."""
    return layer & ~binary_erosion(layer, iterations=width, border_value=1)


def _paint(canvas: NDArray[np.float64], where: NDArray[np.bool_], colour: Colour, alpha: float) -> None:
    canvas[where] = (1 - alpha) * canvas[where] + alpha * np.array(colour)


def curves(
    rows: Sequence[Mapping[str, float | None]], path: Path, *, monitor: str = "dice", dark: bool = False
) -> Path:
    """Draw a training: loss on the left, validation Dice and IoU on the right, the best epoch marked.

    Args:
        rows: one per epoch, with `epoch`, `train_loss`, `val_dice` and `val_iou`; epochs that were not validated have no
            point, and the line goes over them.
        path: the PNG to write.
        monitor: "dice" or "iou": what chose the best epoch.
        dark: light ink for a dark page.
    """
    epoch, loss, dice, iou = (
        np.array([row.get(name, np.nan) for row in rows], float)
        for name in ("epoch", "train_loss", "val_dice", "val_iou")
    )
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, wspace=0.04)
    figure = Figure(figsize=(9, 3.5), dpi=200, facecolor=PAPER[dark], layout=layout)
    left, right = figure.subplots(1, 2)
    style: dict[str, Any] = {"linewidth": 1.8, "solid_capstyle": "round"}
    if len(rows) < 3:
        style["marker"] = "o"
    left.plot(epoch, loss, color=LOSS, **style)
    known = np.isfinite(dice)
    if known.sum() < 3:
        style["marker"] = "o"
    right.plot(epoch[known], dice[known], color=DICE, label="Dice", **style)
    right.plot(epoch[known], iou[known], color=IOU, label="IoU", **style)
    for axes, title in ((left, "Training loss"), (right, "Validation Dice and IoU (0 to 1)")):
        _plain(axes, title, dark)
    right.set_ylim(0, 1.02)
    if np.isfinite(loss).any() and np.nanmin(loss) >= 0:
        left.set_ylim(0, 1.08 * np.nanmax(loss) or 1.0)
    chosen, colour, name = (iou, IOU, "IoU") if monitor == "iou" else (dice, DICE, "Dice")
    if np.isfinite(chosen).any():
        best = int(np.nanargmax(chosen))
        for axes in (left, right):
            axes.axvline(epoch[best], color=MUTED[dark], linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        label = f"best {name} {chosen[best]:.3f}, epoch {epoch[best]:.0f}"
        right.plot(
            epoch[best],
            chosen[best],
            "o",
            color=colour,
            markersize=7,
            markeredgecolor=PAPER[dark],
            markeredgewidth=1.5,
            zorder=4,
            label=label,
            linestyle="none",
        )
    right.legend(loc="best", fontsize=9.5, labelcolor=INK[dark], facecolor=PAPER[dark], edgecolor="none", framealpha=1)
    return write_figure(figure, path)


def _plain(axes: Any, title: str, dark: bool) -> None:
    """Title at the left, light grid, no frame but the baseline."""
    axes.set_title(title, loc="left", fontsize=11, color=INK[dark], pad=9)
    axes.set_xlabel("Epoch", fontsize=10, color=MUTED[dark])
    axes.tick_params(colors=MUTED[dark], labelsize=9.5, length=0, pad=5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    axes.set_facecolor(PAPER[dark])
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID[dark], linewidth=0.9)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID[dark])
    axes.margins(x=0.03)


def panels(
    rows: Sequence[tuple[str, Sequence[Picture | tuple[str, RGB]]]],
    path: Path,
    *,
    legend: Sequence[tuple[str, Colour]] = LEGEND,
) -> Path:
    """Draw a contact sheet: a titled row of captioned pictures for every case, and what the colours mean.

    Short rows stand beside each other where they fit into the width of the longest.

    Args:
        rows: (title, [Picture or (caption, picture (H, W, 3)), ...]), top to bottom.
        path: the PNG to write.
        legend: (meaning, colour); empty for none.
    """
    named = [(title, [Picture(*entry) for entry in pictures]) for title, pictures in rows]
    columns = max((len(pictures) for _, pictures in named), default=1)
    strips = _packed(named, columns)
    heights = [_height([one for _, pictures in strip for one in pictures]) for strip in strips]
    figure = Figure(
        figsize=(SIDE * columns + 0.2, sum(heights) + 0.45), dpi=130, facecolor=PAPER[False], layout="constrained"
    )
    parts = figure.subfigures(len(strips), 1, squeeze=False, height_ratios=heights or None)[:, 0] if strips else ()
    for part, strip in zip(parts, strips, strict=True):
        widths = [max(1, len(pictures)) for _, pictures in strip]
        groups = part.subfigures(
            1, len(widths) + 1, squeeze=False, width_ratios=[*widths, columns - sum(widths) or 1e-3]
        )
        for group, (title, pictures) in zip(groups[0], strip, strict=False):
            group.suptitle(
                title, x=0.02 / max(1, len(pictures)), ha="left", fontsize=10, color=INK[False], parse_math=False
            )
            for axes, picture in zip(
                group.subplots(1, max(1, len(pictures)), squeeze=False)[0], [*pictures, None], strict=False
            ):
                axes.set_axis_off()
                if picture is not None:
                    _show(axes, picture)
    if legend:
        figure.legend(
            handles=[Patch(facecolor=np.array(colour) / 255, label=meaning) for meaning, colour in legend],
            loc="outside lower left",
            ncols=len(legend),
            frameon=False,
            fontsize=8.5,
            labelcolor=INK[False],
            handlelength=0.9,
            handleheight=0.9,
        )
    return write_figure(figure, path)


Group = tuple[str, list[Picture]]


def _packed(groups: Sequence[Group], columns: int) -> list[list[Group]]:
    """The groups in their order, as many beside each other as fit into so many columns."""
    strips: list[list[Group]] = []
    room = 0
    for group in groups:
        width = max(1, len(group[1]))
        if width > room:
            strips.append([])
            room = columns
        strips[-1].append(group)
        room -= width
    return strips


def _height(pictures: Sequence[Picture]) -> float:
    """Inches of a row: as high as its tallest picture, within bounds, with a title and captions of some lines above."""
    shapes = [
        one.values.shape[0] / one.values.shape[1] * (1.0 if one.sides is None else one.sides.aspect) for one in pictures
    ]
    lines = max((_folded(one.caption).count("\n") for one in pictures), default=0)
    return SIDE * min(1.5, max([0.3, *shapes])) + 0.45 + 0.14 * lines


def _show(axes: Any, picture: Picture) -> None:
    sides = picture.sides
    axes.imshow(picture.values, interpolation="nearest", aspect="equal" if sides is None else sides.aspect)
    axes.set_title(_folded(picture.caption), fontsize=8.5, color=MUTED[False], pad=4, parse_math=False)
    if sides is None:
        return
    places = ((0.03, 0.5, sides.left), (0.97, 0.5, sides.right), (0.5, 0.95, sides.top), (0.5, 0.05, sides.bottom))
    for x, y, letter in places:
        text = axes.text(x, y, letter, transform=axes.transAxes, ha="center", va="center", fontsize=7, color=LETTERS)
        text.set_path_effects([withStroke(linewidth=1.5, foreground="black")])


def _folded(caption: str) -> str:
    """A caption in as many lines as it takes to fit above its picture."""
    lines = [""]
    for word in caption.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > CAPTION:
            lines.append(word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)


def write_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG, whole or not at all."""

    def save(temporary: Path) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # names in scripts that the font lacks
            figure.savefig(temporary, format="png", facecolor=figure.get_facecolor())

    write_whole(path, save)
    return path
