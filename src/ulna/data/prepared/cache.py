"""The verb `cache`: which prepared cases lie on this disk, and how to be rid of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ulna.data.prepared import folder as places
from ulna.data.prepared.entry import Damaged, read_facts
from ulna.data.prepared.folder import Kept
from ulna.errors import UsageError, printable

_DAY_S = 86400.0


class OfData(NamedTuple):
    """The entries that the trainings on one data set have made.

    Args:
        data: its path; None for entries that do not say it.
        cases: how many entries.
        bytes: of them.
        used: when the last of them was used.
    """

    data: str | None
    cases: int
    bytes: int
    used: str


@dataclass(frozen=True)
class Cached:
    """What lies in the cache, or what was removed from it.

    Args:
        folder: of the entries.
        limit: bytes that they may take; None where there is no folder.
        data: by data set, the one that was used last first.
        removed: entries that were removed; None where that was not asked for.
        freed: bytes of these.
    """

    folder: Path
    limit: int | None
    data: tuple[OfData, ...]
    removed: int | None = None
    freed: int = 0

    @property
    def cases(self) -> int:
        """All entries."""
        return sum(one.cases for one in self.data)

    @property
    def bytes(self) -> int:
        """Of all entries."""
        return sum(one.bytes for one in self.data)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values: dict[str, Any] = {
            "folder": str(self.folder),
            "cases": self.cases,
            "bytes": self.bytes,
            "limit": self.limit,
            "data": [one._asdict() for one in self.data],
        }
        return values if self.removed is None else {**values, "removed": self.removed, "freed": self.freed}


def cache(*, clear: bool = False, older_than: float | None = None, data: Path | str | None = None) -> Cached:
    """Show the prepared cases that trainings keep on this disk, by data set, or remove them.

    Args:
        clear: remove them, in place of showing them; a training that reads some goes on with them.
        older_than: of these, only what was not used for so many days.
        data: of these, only what was made by trainings on this data set.

    Raises:
        UsageError: if the folder belongs to another user, or --older-than or --data come without --clear.

    Example:
        ulna cache --clear --older-than 30
    """
    if not clear and (older_than is not None or data is not None):
        raise UsageError("--older-than and --data say what --clear removes; add --clear, or leave them out")
    if older_than is not None and not older_than >= 0:
        raise UsageError(f"--older-than {older_than}: is a number of days; give 0 or more")
    try:
        folder = places.opened(make=False)
        if folder is None:
            return Cached(places.where(), None, (), removed=0 if clear else None)
        found = places.entries(folder)
    except OSError as error:
        why = str(error) if isinstance(error, places.Unusable) else error.strerror or str(error)
        raise UsageError(
            f"the cache of prepared cases cannot be looked at: {printable(why)}; make it yours alone (chmod 700), or set "
            f"{places.PLACE} to a folder that is"
        ) from None
    if not clear:
        return Cached(folder, _limit(folder, found), _by_data(found))
    wanted = [one for one in found if _is_meant(one, older_than, data)]
    going = [one for one in wanted if places.removed(one.path)]
    places.remove_abandoned(folder)
    left = places.entries(folder)
    return Cached(folder, _limit(folder, left), _by_data(left), len(going), sum(one.size for one in going))


def _limit(folder: Path, found: Sequence[Kept]) -> int:
    return places.limit(folder, sum(one.size for one in found))


def _is_meant(one: Kept, older_than: float | None, data: Path | str | None) -> bool:
    if older_than is not None and time.time() - one.used < older_than * _DAY_S:
        return False
    return data is None or _data_of(one) == str(Path(data).absolute())


def _data_of(one: Kept) -> str | None:
    try:
        said = read_facts(one.path).get("data")
    except (OSError, Damaged, LookupError, TypeError, ValueError):
        return None
    return said if isinstance(said, str) else None


def _by_data(found: Iterable[Kept]) -> tuple[OfData, ...]:
    by_data: dict[str | None, list[Kept]] = {}
    for one in found:
        by_data.setdefault(_data_of(one), []).append(one)
    listed = sorted(by_data.items(), key=lambda item: -max(one.used for one in item[1]))
    return tuple(
        OfData(data, len(some), sum(one.size for one in some), _when(max(one.used for one in some)))
        for data, some in listed
    )


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(sep=" ", timespec="seconds")
