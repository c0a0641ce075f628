"""Shares of cases: the files by which processes divide the cases of one prediction, whichever of them is killed.

A round of processes has a folder in `.predict-shares` of the output, which goes when predict.json is written:

    task.json      what is asked of the network, and how masks are written
    cases.jsonl    a case a line, with what is to be made of it
    taken/         a file for every case that a process has taken: whoever makes it has the case
    share_0/ ...   of one process: told.jsonl, what became of its cases; its journal, as that of `predict`

A process takes the next case when it is done with one, so that none waits for another, and none is predicted twice.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ulna.data.formats.source import Series, Source
from ulna.data.layout.case import Case
from ulna.data.layout.journals import TASK
from ulna.data.layout.record import Entry
from ulna.errors import UsageError, printable
from ulna.inference.runs import Asked
from ulna.system.files import unwritable, write_text
from ulna.system.reading import parse_json

CASES, TAKEN, TOLD, ENDED = "cases.jsonl", "taken", "told.jsonl", "ended"
MOST_TRIES = 2  # of a case whose process is killed, or stopped from outside
KILLED = (
    "the process that predicted it was killed, or stopped, or crashed, twice; where memory is short, fewer --jobs leave it "
    "more, and where time is, as in SLURM's queues, --slurm time=HH:MM:SS does"
)


@dataclass(frozen=True)
class Task:
    """What every process of a round does with its cases.

    Args:
        asked: of the network.
        digest: of its weights.
        data: the input, which is left out of texts.
        out: the output folder.
        probabilities: whether they are written too.
        formats: of the masks; none: the input's own.
        strict: whether a case that is unlike the training data fails.
        copies: tell the Dice to expect from mirrored copies, for a page.
        limit: bytes of memory of one process; None for what the machine has.
        pseudonymise: the file of pseudonyms.
        shares: of the round.
        careful: processes were killed before: each takes a case when it is done with the last one, so that what kills it is
            known.
        name: of the round, which a process is begun with, so that it never works on another one.
        about: tells whether an earlier round was of the same masks.
    """

    asked: Asked
    digest: str
    data: Path
    out: Path
    probabilities: bool
    formats: tuple[str, ...]
    strict: bool
    copies: bool
    limit: float | None
    pseudonymise: Path | None
    shares: int = 0
    careful: bool = False
    name: str = ""
    about: str = ""

    def about_cases(self, cases: Sequence[str], options: Mapping[str, Any]) -> Task:
        """The same, with what tells it from one of other cases, or with other options."""
        told = json.dumps([self._plain(), list(cases), dict(options)], sort_keys=True)
        return replace(self, about=hashlib.sha256(told.encode()).hexdigest())

    def write(self, folder: Path) -> None:
        """Into the folder of a round."""
        write_text(folder / TASK, json.dumps(self._plain(), indent=1))

    def _plain(self) -> dict[str, Any]:
        asked = {**self.asked._asdict(), "runs": list(map(str, self.asked.runs))}
        values = {**asdict(self), "asked": asked, "data": str(self.data), "out": str(self.out)}
        values["pseudonymise"] = None if self.pseudonymise is None else str(self.pseudonymise)
        return values

    @classmethod
    def read(cls, folder: Path) -> Task:
        """That of a round.

        Raises:
            UsageError: if there is none, or it is damaged.
        """
        path = folder / TASK
        try:
            # of ulna's own; a path may have bytes that are no text, which `read_json` refuses
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{printable(path)}: cannot be read ({error.strerror}); predict again") from None
        except ValueError:
            values = {}
        try:
            asked = Asked(**{**values["asked"], "runs": tuple(map(Path, values["asked"]["runs"]))})
            key = values["pseudonymise"]
            read = {
                "asked": asked,
                "data": Path(values["data"]),
                "out": Path(values["out"]),
                "formats": tuple(values["formats"]),
                "pseudonymise": None if key is None else Path(key),
            }
            return cls(**{**values, **read})
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UsageError(f"{printable(path)}: is not what ulna predict writes; predict again") from None


class Item(NamedTuple):
    """One case of a round.

    Args:
        case: with its image.
        entry: what is to be made of it.
        known: name of a file -> digests of what ulna wrote under it, which may be replaced.
        tries: how often a process was killed or stopped while it predicted the case, in earlier rounds.
    """

    case: Case
    entry: Entry
    known: Mapping[str, Sequence[str]]
    tries: int = 0

    def to_line(self) -> str:
        """As one line of cases.jsonl."""
        images = [
            [str(one.path), one.row, one.series and [list(map(str, one.series.files)), one.series.fixes]]
            for one in self.case.images
        ]
        values = {"id": self.case.id, "images": images, "spatial_dims": self.case.spatial_dims}
        return json.dumps({**values, "entry": self.entry.to_json(), "known": dict(self.known), "tries": self.tries})

    @classmethod
    def parse(cls, line: bytes) -> Item:
        """From one line of cases.jsonl."""
        values = json.loads(line)
        images = []
        for path, row, series in values["images"]:
            known = None
            if series is not None:
                files, fixes = series
                known = Series(tuple(map(Path, files)), tuple((str(name), str(how)) for name, how in fixes))
            images.append(Source(Path(path), row, known))
        case = Case(values["id"], tuple(images), None, spatial_dims=values["spatial_dims"])
        return cls(case, Entry.parse(values["entry"]), values["known"], int(values["tries"]))


def write_cases(folder: Path, items: Iterable[Item]) -> None:
    """The cases of a round, in their order."""
    (folder / TAKEN).mkdir(parents=True, exist_ok=True)
    write_text(folder / CASES, "".join(f"{item.to_line()}\n" for item in items))


class Queue:
    """The cases of a round, as one process takes them; of a line, no more is held than where it begins.

    Args:
        folder: of the round.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._next = folder, 0
        self._places: list[int] = []
        place = 0
        with (folder / CASES).open("rb") as file:
            for line in file:
                self._places.append(place)
                place += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> Item:
        with (self._folder / CASES).open("rb") as file:
            file.seek(self._places[number])
            return Item.parse(file.readline())

    def left(self) -> bool:
        """Whether there may be a case that nobody has."""
        try:
            return sum(1 for _ in (self._folder / TAKEN).iterdir()) < len(self)
        except OSError:
            return False

    def take(self) -> int | None:
        """The number of a case that nobody else has or gets; None when there is none.

        Raises:
            UsageError: if nothing can be written.
        """
        while self._next < len(self):
            number, self._next = self._next, self._next + 1
            try:
                (self._folder / TAKEN / str(number)).open("x").close()
            except FileExistsError:
                continue
            except OSError as error:
                raise unwritable(self._folder, error) from None
            return number
        return None


class Teller:
    """Writes what becomes of the cases of a process, a line each, from whichever of its threads."""

    def __init__(self, share: Path) -> None:
        self._path = share / TOLD
        self._file = self._path.open("ab", buffering=0)
        self._lock = threading.Lock()

    def __call__(self, **values: Any) -> None:
        """Add a line: `begun`, `left` or `ended` with the number of a case, and what is known of it.

        Raises:
            UsageError: if it cannot be written.
        """
        with self._lock:  # a line of its own, also after one that was cut short
            try:
                self._file.write(f"\n{json.dumps(values)}\n".encode())
            except OSError as error:
                raise unwritable(self._path, error) from None

    def close(self) -> None:
        """After the last line."""
        self._file.close()


class Listener:
    """Reads what was told since it was read last.

    Args:
        share: folder of a process, which need not have begun.
    """

    def __init__(self, share: Path) -> None:
        self.share, self._read = share, 0

    def __call__(self) -> Iterator[Mapping[str, Any]]:
        """Whole lines alone."""
        path = self.share / TOLD
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            if line:
                try:
                    values = parse_json(line.decode("utf-8"), str(path))
                except ValueError:  # cut short by a full disk
                    continue
                if isinstance(values, dict):
                    yield values


class Tries:
    """How often the cases of a process were begun and not ended: each time but the last it was killed meanwhile.

    A case that it left when it was asked to stop is open as well, with no kill counted.
    """

    def __init__(self) -> None:
        self.open: dict[int, int] = {}  # number -> times; those that are not ended
        self.ended: set[int] = set()

    def add(self, told: Mapping[str, Any]) -> None:
        """A line of told.jsonl."""
        if "begun" in told:
            number = int(told["begun"])
            self.open[number] = self.open.get(number, 0) + 1
        elif "left" in told:  # it was asked to stop
            number = int(told["left"])
            self.open[number] = self.open.get(number, 1) - 1
        elif "ended" in told:
            number = int(told["ended"])
            self.open.pop(number, None)
            self.ended.add(number)
