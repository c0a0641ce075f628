"""report.html of a folder of masks: every case with what is known of its trust, the worst first, and pictures of these.

It is made of predict.json, the images and the masks as they lie there, so that it is the same whenever it is made. It is one
file without scripts and without anything to fetch, names no folder of the input, and of DICOM headers shows nothing.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ulna.data.formats.label_maps import encode_labels
from ulna.data.formats.source import Source, data_error
from ulna.data.formats.write import keeps_values
from ulna.data.layout.case import Case
from ulna.data.layout.record import Entry, Record
from ulna.data.volume import may_lie_turned
from ulna.errors import UsageError
from ulna.evaluation.colours import CLASS_COLOURS
from ulna.evaluation.known import mask_values, numbered, values_in
from ulna.evaluation.predicted import read_mask, sources_of
from ulna.pages.embedding import css
from ulna.pages.sealing import PAGE_FILE, sealed, writer_of
from ulna.pages.templates import page
from ulna.recipe import Labels, parse
from ulna.system.files import unwritable, write_text
from ulna.system.locking import locked
from ulna.system.outputs import PREDICT_FILE, check_names, is_plain
from ulna.system.progress import track
from ulna.system.signals import Interruption, Stopped
from ulna.trust.comparing import Finding, in_one_line
from ulna.trust.pictures import Shot, draw_case
from ulna.trust.told import Told, ToldDice, ToldEstimate, ToldFlag, read_told

log = logging.getLogger(__name__)

DASH = "–"
VERB = "predict"
SHOWN = 24  # cases with pictures: the page stays below some 10 MB
WITH_PLANES = 6  # of these, volumes with a slice along each axis
STRUCTURES = 4  # of a case whose largest slice is shown
LISTED = 6  # structures of a case in the table; the others unfold
HEADER_RULES = ("modality", "body part")  # flags that quote a DICOM header
ORIGINS = {
    "heads": "heads of the network",
    "mirrored": "mirrored copies",
    "copies": "mirrored copies",
    "folds": "several networks",
}


class Row(NamedTuple):
    """One case of the table.

    Args:
        case: its id.
        file: of its mask.
        told: what is known of its trust; None where an earlier version wrote the mask.
        verified: whether the file was read again and compared with the mask.
    """

    case: str
    file: str
    told: Told | None
    verified: bool

    @property
    def worst_first(self) -> tuple[float, ...]:
        """Sorts by the most flags, then by the lowest predicted Dice."""
        if self.told is None:
            return (0, math.inf)
        return (-len(self.told.flags), math.inf if self.told.mean is None else self.told.mean.dice)


class Drawn(NamedTuple):
    """The pictures of a case, or why there are none."""

    shots: Sequence[Shot]
    why: str = ""


def check_page(out: Path) -> None:
    """Refuse a folder in which the page would take the place of a file that ulna did not write.

    Raises:
        UsageError: if there is one.
    """
    check_names(out, {PAGE_FILE: lambda path: writer_of(path) != ""})  # that of an evaluation tells of earlier masks


def retire_page(out: Path) -> None:
    """Take away a page of ulna's own in a folder whose masks are to change: it would no longer tell of them."""
    path = out / PAGE_FILE
    try:
        if is_plain(path) and _is_own(path):
            path.unlink()
    except OSError as error:
        raise unwritable(path, error) from None


def _is_own(path: Path) -> bool:
    """Whether a page is as `predict` wrote it."""
    return writer_of(path) == VERB


def write_page(out: Path, cases: Sequence[Case]) -> int:
    """Make the page of a folder, whose predict.json is written; the number of the signal that stopped it, or 0.

    Args:
        out: the folder.
        cases: of the newest call.

    Raises:
        UsageError: if it cannot be written.
    """
    try:
        with locked(out), Interruption():
            check_page(out)
            write_text(out / PAGE_FILE, sealed(_rendered(out, cases), VERB))
    except Stopped as stopped:
        return stopped.number
    return 0


def _rendered(out: Path, cases: Sequence[Case]) -> str:
    record = Record.read(out)
    facts, entries = record.facts, record.current()
    labels = parse(Labels, facts.get("labels"), source=PREDICT_FILE)
    of_objects = numbered(facts, labels)
    pictures = of_objects or values_in(labels, mask_values(facts, labels))
    stored = of_objects or labels.of_masks
    rows = sorted(map(_row, entries), key=lambda row: row.worst_first)
    by_id = {case.id: case for case in cases}
    masks = sources_of(out, entries)
    shown = [row for row in rows if row.case in by_id][:SHOWN]
    drawn = {
        row.case: _drawn(
            by_id[row.case], masks.get(row.case), labels, (stored, pictures), row, planes=number < WITH_PLANES
        )
        for number, row in enumerate(track(shown, "drawing"))
    }
    dicom = any(case.images[0].series is not None for case in cases)
    told = [row.told for row in rows if row.told is not None]
    failed = dict(facts.get("failed") or {})
    values = {
        "model": str(facts.get("model") or "a network"),
        "runs": [str(run) for run in facts.get("runs", ())],
        "count": len(rows) + len(failed),
        "tiles": _tiles(rows, failed),
        "failed": [(str(case), str(why)) for case, why in failed.items()],
        "rows": [_cells(row, dicom=dicom) | {"number": number} for number, row in enumerate(rows, start=1)],
        "classes": _legend(labels),
        "drawn": drawn,
        "volumes": any(len(entry.size) == 3 for entry in entries),
        "left_out": _left_out(told),
        "earlier": len(record.entries) - len(entries),
        "calibrated": bool((facts.get("trust") or {}).get("calibrated")),
        "origins": sorted({ORIGINS.get(origin, origin) for one in told if (origin := _origin(one.predicted_dice))}),
        "constant": any(one.predicted_dice and not one.predicted_dice.by_case for one in told),
        "uncalibrated": any(one.predicted_dice and not one.predicted_dice.calibrated for one in told),
        "notes": [] if dicom else [str(note) for note in facts.get("notes", ())],
        "facts": _facts(facts, entries),
    }
    return page("ulna.trust", "page.html").render(values)


def _row(entry: Entry) -> Row:
    return Row(entry.case, entry.file, read_told(entry.trust), bool(entry.verified))


def _drawn(
    case: Case, mask: Source | None, labels: Labels, read: tuple[Labels, Labels], row: Row, *, planes: bool
) -> Drawn:
    """The pictures of one case, read again; another one's failure is no reason to have no page.

    Args:
        case: with its image.
        mask: as it was written; None where it is gone.
        labels: the classes.
        read: how masks are read, and how pictures of masks are.
        row: of the table.
        planes: whether three planes are drawn too.
    """
    try:
        if mask is None:
            return Drawn((), "the mask is not there")
        volume = case.read_image()
        series = case.images[0] if case.images[0].series is not None else None
        found = read_mask(mask, series, labels, volume, volume.spatial_dims)
        if may_lie_turned(found, volume):  # such as a TIFF of a volume that has an orientation
            return Drawn((), "no picture: the mask or the image states no orientation, so they may lie turned")
        if found.size != volume.size:
            raise data_error(mask, "has another size than its image", "predict again")
        stored = read[keeps_values(found)]
        classes = encode_labels(found, stored)
        del found
        if stored.ignored is not None:
            classes = np.where(classes == stored.ignored, 0, classes).astype(classes.dtype)
        return Drawn(draw_case(volume, classes, labels, _structures(row, labels)[:STRUCTURES], planes=planes))
    except Exception as error:  # what it says may hold paths, and words of a header
        log.debug("%s: not drawn: %s", case.id, error)
        what = "the image or the mask cannot be read again" if isinstance(error, UsageError) else type(error).__name__
        return Drawn((), f"no picture: {what}")


def _structures(row: Row, labels: Labels) -> list[str]:
    """The structures of a case, those with a flag first, then the largest."""
    if row.told is None:
        return list(labels.foreground)
    flagged, found = {flag.structure for flag in row.told.flags}, row.told.structures
    there = [name for name in labels.foreground if name in found]
    return sorted(there, key=lambda name: (name not in flagged, -found[name].volume))


def _tiles(rows: Sequence[Row], failed: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, figure, remark)."""
    known = [row.told for row in rows if row.told is not None]
    about = [{flag.about for flag in told.flags} for told in known]
    means = [told.mean.dice for told in known if told.mean is not None]
    flagged = f"{sum('input' in one for one in about)} images, {sum('mask' in one for one in about)} masks"
    return [
        ("Cases", str(len(rows) + len(failed)), f"{len(rows)} with a mask"),
        ("With flags", str(sum(map(bool, about))), flagged),
        ("Failed", str(len(failed)), "without a mask"),
        ("Predicted Dice", f"{np.mean(means):.3f}" if means else DASH, f"mean of {len(means)}" if means else "unknown"),
    ]


def _cells(row: Row, *, dicom: bool) -> dict[str, Any]:
    """What stands in one line of the table."""
    told = row.told
    cells: dict[str, Any] = {"case": row.case, "file": row.file, "verified": row.verified, "known": told is not None}
    if told is None:
        return cells | {"flags": [], "dice": DASH, "interval": "", "by_class": [], "structures": [], "more": []}
    structures = [
        (name, _amount(one.volume, told.unit) if one.objects else "none", one.objects)
        for name, one in told.structures.items()
    ]
    estimate = told.predicted_dice
    by_class = [] if estimate is None else [(name, *_dice(one)) for name, one in estimate.classes.items()]
    figure, interval = (DASH, "") if told.mean is None else _dice(told.mean)
    return cells | {
        "flags": [(flag.about, _said(flag, dicom=dicom)) for flag in told.flags],
        "dice": figure,
        "interval": interval,
        "by_class": by_class if len(by_class) > 1 else [],
        "structures": structures[:LISTED],
        "more": structures[LISTED:],
    }


def _said(flag: ToldFlag, *, dicom: bool) -> str:
    """A flag in words; what quotes a DICOM header, without it."""
    if dicom and flag.what in HEADER_RULES:
        return f"{flag.what} is another than that of the training images"
    return in_one_line([Finding(flag.about, flag.what, flag.text, flag.structure)])


def _dice(one: ToldDice) -> tuple[str, str]:
    interval = "" if one.low is None or one.high is None else f"{one.low:.2f} {DASH} {one.high:.2f}"
    return f"{one.dice:.2f}", interval


def _amount(value: float, unit: str) -> str:
    """A volume as people read it.

    Example:
        >>> _amount(1234.5, "ml"), _amount(0.0123, "ml"), _amount(20, "mm2")
        ('1,234 ml', '0.0123 ml', '20 mm²')
    """
    return f"{value:,.0f} {_unit(unit)}" if value >= 1000 else f"{value:.3g} {_unit(unit)}"


def _unit(unit: str) -> str:
    return "mm²" if unit == "mm2" else unit


def _origin(estimate: ToldEstimate | None) -> str:
    return "" if estimate is None else estimate.origin


def _legend(labels: Labels) -> list[tuple[str, str]]:
    """(class, colour of its outline)."""
    colours = CLASS_COLOURS
    return [(name, css(colours[k % len(colours)])) for k, name in enumerate(labels.foreground)]


def _left_out(told: Sequence[Told]) -> list[tuple[str, str, int]]:
    """(rule, why it was not applied, in how many cases)."""
    found = Counter((rule, why) for one in told for rule, why in one.left_out.items())
    return [(rule, why, count) for (rule, why), count in sorted(found.items())]


def _facts(facts: Mapping[str, Any], entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """(name, value): how the masks were made. Names of series are words of a header, so they are left out."""
    options = facts.get("options") or {}
    chosen = [f"{name} {value}" for name in ("level", "split") if (value := options.get(name)) is not None]
    chosen += [name for name in ("tta", "probabilities") if options.get(name)]
    chosen += [f"format {', '.join(map(str, options['format']))}"] if options.get("format") else []
    chosen += ["no post-processing"] if options.get("post_processing") is False else []
    versions = sorted({entry.version for entry in entries if entry.version})
    return [
        ("Model", str(facts.get("model") or DASH)),
        ("Runs", ", ".join(map(str, facts.get("runs", ()))) or DASH),
        ("Digest", str(facts.get("digest", ""))[:12] or DASH),
        ("Options", ", ".join(chosen) or "none"),
        ("Made with", f"ulna {', '.join(versions)}" if versions else DASH),
    ]
