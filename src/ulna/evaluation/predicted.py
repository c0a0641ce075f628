"""The masks of an evaluation, and what `predict` wrote down about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ulna.data.formats.source import ARRAY_SUFFIX, Source, suffix_of
from ulna.data.layout.masks import Masks, find_masks, mask_files, rows_of
from ulna.data.layout.record import Record
from ulna.errors import UsageError
from ulna.system.outputs import JOURNAL


def predicted_masks(predictions: Path) -> tuple[Masks, dict[str, list[str]], dict[str, Any]]:
    """The masks to score, what is told about the others, and predict.json where it is about them.

    Of a folder of `predict` those that its newest call lists; of any other folder, and of a file that is not listed, all.
    """
    folder = predictions if predictions.is_dir() else predictions.parent
    journal = folder / JOURNAL
    record = Record.read(folder)
    if journal.exists() and journal.stat().st_size and (predictions == folder or predictions.name in record.unfinished):
        raise UsageError(
            f"{folder}: the last prediction was not finished ({JOURNAL}); call the same ulna predict again"
        )
    rows = record.current()
    if not record.facts or (predictions != folder and not any(entry.file == predictions.name for entry in rows)):
        return find_masks(predictions), {}, {}
    sources: dict[str, Source] = {}
    for name in dict.fromkeys(entry.file for entry in rows):
        path = folder / name
        if not path.exists() or (predictions != folder and path.name != predictions.name):
            continue
        if suffix_of(path) == ARRAY_SUFFIX:
            inside = rows_of(path)
            sources |= {e.case: inside[e.case] for e in rows if e.file == name and e.case in inside}
        else:
            sources |= {entry.case: Source(path) for entry in rows if entry.file == name}
    known = {name for entry in rows for name in entry.files}
    stray = [path.name for path in mask_files(folder) if path.name not in known] if predictions == folder else []
    changed = [entry.case for entry in rows if entry.case in sources and record.changed(entry)]
    return Masks(sources, None), {"not_listed": stray, "changed": changed}, record.facts
