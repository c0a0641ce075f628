"""The pictures of the README and the site's first page, each for a light and a dark page: `python -m tools.docs.pictures`.

Nothing is predicted or measured here. The strips are cut from pictures of runs in docs/images (nuclei.png,
hippocampus-nnunet.png; docs/measured.md says which runs), the study is drawn from the table of docs/studies/nuclei/README.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from ulna.evaluation.figures import GRID, INK, LEGEND, MUTED

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
COLUMNS = ("image", "reference", "prediction", "errors")
STUDY = ROOT / "docs" / "studies" / "nuclei" / "README.md"


class Strip(NamedTuple):
    """Panels of one row of a contact sheet: rows and columns of its pixels."""

    sheet: str
    rows: tuple[int, int]
    columns: tuple[tuple[int, int], ...]


STRIPS = {
    "nuclei": Strip("nuclei.png", (51, 345), ((5, 300), (311, 606), (616, 911), (922, 1217))),
    # the upper part of hippocampus_288, where both structures lie
    "hippocampus": Strip(
        "hippocampus-nnunet.png", (1139, 1139 + 186), ((40, 265), (346, 571), (651, 876), (957, 1182))
    ),
}


def strip(name: str, *, dark: bool) -> Path:
    """Four panels side by side on a transparent ground, with captions and the legend of errors."""
    part = STRIPS[name]
    with Image.open(IMAGES / part.sheet) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    panels = [pixels[slice(*part.rows), slice(*columns)] for columns in part.columns]
    height = 2.35 * panels[0].shape[0] / panels[0].shape[1] + 0.5
    figure = Figure(figsize=(9.6, height), dpi=125, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.02, wspace=0, hspace=0)  # type: ignore[union-attr]
    for axes, panel, caption in zip(figure.subplots(1, len(panels)), panels, COLUMNS, strict=True):
        axes.imshow(panel, interpolation="antialiased")
        axes.set_title(caption, fontsize=10.5, color=MUTED[dark], pad=5)
        axes.set_axis_off()
    handles = [Patch(color=[part / 255 for part in colour], label=word) for word, colour in LEGEND]
    figure.legend(
        handles=handles, loc="lower right", bbox_to_anchor=(0.995, 0.01), ncols=len(handles), frameon=False,
        fontsize=9, labelcolor=MUTED[dark],
        handlelength=0.8, handleheight=0.8, handletextpad=0.5, columnspacing=1.2, borderaxespad=0, borderpad=0,
    )  # fmt: skip
    figure.get_layout_engine().set(rect=(0, 0.22 / height, 1, 1 - 0.22 / height))  # type: ignore[union-attr]
    return _written(figure, f"strip-{name}", dark)


class Row(NamedTuple):
    """A network of the study's table."""

    name: str
    dice: float
    low: float
    high: float
    ms: float


def rows(text: str) -> list[Row]:
    """The networks of the study, as its page lists them."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and (score := re.fullmatch(r"(0\.\d+) \[(0\.\d+), (0\.\d+)\]", cells[3])):
            found.append(Row(cells[0].strip("`"), *map(float, score.groups()), float(cells[6])))
    return found


def study(shown: Sequence[Row], *, dark: bool) -> Path:
    """Mean Dice with its interval of every network, the best on top, and what an image costs."""
    figure = Figure(figsize=(9.6, 0.9 + 0.42 * len(shown)), dpi=125, layout="constrained")
    axes: Any = figure.subplots()
    accent = {False: "#16665b", True: "#5cc3ad"}[dark]
    for place, row in enumerate(shown):
        axes.plot(
            [row.low, row.high], [-place, -place], color=accent, linewidth=2.2, alpha=0.55, solid_capstyle="round"
        )
        axes.plot(row.dice, -place, "o", color=accent, markersize=8)
        axes.annotate(
            f"{row.dice:.3f}", (row.dice, -place), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=9,
            color=INK[dark],
        )  # fmt: skip
        axes.annotate(
            f"{row.ms:.1f} ms an image", (1.01, -place), xycoords=("axes fraction", "data"), va="center", fontsize=9,
            color=MUTED[dark],
        )  # fmt: skip
    axes.set_yticks([-place for place in range(len(shown))], [row.name for row in shown], fontsize=10, color=INK[dark])
    axes.set_ylim(-len(shown) + 0.5, 0.7)
    axes.set_xlabel(
        "Dice, mean of 34 test images and three seeds, with its 95 % interval", fontsize=9.5, color=MUTED[dark]
    )
    axes.tick_params(length=0, colors=MUTED[dark], labelsize=9.5)
    axes.tick_params(axis="y", colors=INK[dark])
    axes.grid(axis="x", color=GRID[dark], linewidth=0.9)
    axes.set_axisbelow(True)
    axes.set_facecolor("none")
    for side in axes.spines.values():
        side.set_visible(False)
    return _written(figure, "study-nuclei", dark)


def _written(figure: Figure, name: str, dark: bool) -> Path:
    path = IMAGES / f"{name}-{'dark' if dark else 'light'}.png"
    figure.savefig(path, transparent=True, metadata={"Software": None})
    with Image.open(path) as drawn:  # a palette is a third of the size, and no eye sees it
        drawn.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def main() -> None:
    """Draw all of them anew."""
    shown = rows(STUDY.read_text(encoding="utf-8"))
    for dark in (False, True):
        for name in STRIPS:
            strip(name, dark=dark)
        study(shown, dark=dark)


if __name__ == "__main__":
    main()
