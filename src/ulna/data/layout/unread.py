"""Files that lie beside the data and are not used: said, since a split or patients under another name would be missed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from ulna.data.formats.source import beside
from ulna.data.layout.case import Case
from ulna.data.layout.metadata import SPLIT_FILES, split_file
from ulna.errors import listed

READ = ("dataset.json", "classes.json", "groups.json", *SPLIT_FILES)
_ALSO_BESIDE = ("synthetic", "citation", "notice")  # say where data come from, and nothing of how they are used
_SHOWN = 6  # names in a note


def unread(root: Path, cases: Iterable[Case]) -> list[str]:
    """Notes on the files of a data set's folder that are neither images nor label maps, and are not read."""
    if not root.is_dir():
        return []
    used = {source.path.name for case in cases for source in (*case.images, case.label) if source is not None}
    names = sorted(
        path.name
        for path in root.iterdir()
        if path.is_file() and path.name not in used and not beside(path.name)
        if path.name not in READ and not path.name.lower().startswith(_ALSO_BESIDE)
    )
    notes = [f"{name} is not read; did you mean {near}?" for name in names if (near := _near(name)) is not None]
    others = [name for name in names if _near(name) is None]
    if others:
        notes.append(f"not read, beside the data: {listed(others, _SHOWN)}")
    chosen = split_file(root)
    if chosen is not None and chosen.name == SPLIT_FILES[0] and (root / SPLIT_FILES[1]).exists():
        notes.append(f"{SPLIT_FILES[1]} is not read: {SPLIT_FILES[0]} says the split")
    return notes


def _near(name: str) -> str | None:
    """The file that would be read, which one of another name may be meant for."""
    if not name.lower().endswith(".json"):
        return None
    return next(iter(difflib.get_close_matches(name.lower(), READ, n=1, cutoff=0.85)), None)
