"""predict.json: which masks in a folder are ulna's own, and of which run, options and image each of them is.

While `predict` works, every mask is first noted in a journal beside it and then put in place, so that a process killed at
any moment leaves no file that nobody knows. Processes that share the cases of one `predict` have a journal each, in folders
of their own.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from ulna.data.layout.journals import end_shares, journals, not_ours, noted, state_of
from ulna.errors import UsageError
from ulna.system.files import staged, unwritable, write_text
from ulna.system.locking import locked
from ulna.system.outputs import JOURNAL, PREDICT_FILE, SHARES, file_digest, is_plain
from ulna.system.reading import read_json_object
from ulna.system.trees import is_own_tree, put_in_place, stamp


@dataclass(frozen=True)
class Entry:
    """One mask that `predict` wrote.

    Args:
        case: its id.
        file: name of the mask's file; several rows of an npz share one.
        files: name -> SHA-256 of all files of the case; empty text where an earlier version kept none.
        size: of the image.
        seconds: that it took.
        input: SHA-256 of the image's files.
        run: SHA-256 of the weights, plan and recipe of all runs.
        options: what changes the answer: level, tta, probabilities.
        version: of ulna.
        verified: name -> how a DICOM file was compared with the mask after it was written.
        notes: what the reader of a DICOM series changed or took for granted.
        trust: how far the mask can be trusted, see `ulna.trust.report`; empty where an earlier version wrote it.
    """

    case: str
    file: str
    files: dict[str, str]
    size: tuple[int, ...]
    seconds: float
    input: str = ""
    run: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    version: str = ""
    verified: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    trust: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, values: Mapping[str, Any], run: str = "", options: Mapping[str, Any] | None = None) -> Entry:
        """A row of predict.json or of the journal; `run` and `options` stand above the rows of the newest call."""
        file = str(values["file"])
        files = {str(name): str(digest) for name, digest in values.get("files", {file: ""}).items()}
        if any(name in ("", "..") or "\0" in name or name != Path(name).name for name in (file, *files)):
            raise ValueError(f"{file} is no name of a file in this folder")
        return cls(
            str(values["case"]),
            file,
            files,
            tuple(values.get("size", ())),
            float(values.get("seconds", 0.0)),
            str(values.get("input", "")),
            str(values.get("run", run)),
            dict(values.get("options", options or {})),
            str(values.get("version", "")),
            {str(name): str(how) for name, how in dict(values.get("verified", {})).items()},
            tuple(map(str, values.get("notes", ()))),
            dict(values.get("trust", {})),
        )

    def to_json(self, *, whole: bool = True) -> dict[str, Any]:
        """Plain values; without run and options where those stand above all rows."""
        values = {**asdict(self), "size": list(self.size), "notes": list(self.notes)}
        values = {name: value for name, value in values.items() if value or name not in ("verified", "notes", "trust")}
        return values if whole else {name: v for name, v in values.items() if name not in ("run", "options")}

    def made_as(self, other: Entry) -> bool:
        """Whether both are of one case, run, image and options, in files of the same names."""
        same = all(getattr(self, name) == getattr(other, name) for name in ("case", "file", "input", "run", "options"))
        return same and self.files.keys() == other.files.keys()


class Record:
    """What is known of a folder of masks.

    Args:
        folder: the folder.
        entries: the masks that ulna wrote into it, of earlier calls first.
        facts: predict.json as it was read; empty where there is none.

    Attributes:
        unfinished: names of the files that a `predict` noted which has not ended.
    """

    def __init__(self, folder: Path, entries: Sequence[Entry] = (), facts: Mapping[str, Any] | None = None) -> None:
        self.folder, self.facts = folder, dict(facts or {})  # predict.json as it was read
        self.unfinished: frozenset[str] = frozenset()
        self._by_case: dict[str, dict[str, Entry]] = {}  # case -> file -> entry
        self._owners: dict[str, dict[str, None]] = {}  # name -> cases, in their order
        self._noted: dict[str, set[str]] = {}  # name -> every digest that a file of ulna had under it
        self._digests: dict[Path, tuple[int, int, str]] = {}
        self._heard: dict[Path, int] = {}  # journal -> bytes that were read of it
        self._journal: IO[str] | None = None
        self._seen: tuple[str, ...] | None = None  # digests of predict.json and the journal as they were read
        for entry in entries:
            self._add(entry)

    @property
    def entries(self) -> list[Entry]:
        """Every mask that ulna wrote into the folder, of the newest and of earlier calls."""
        return [entry for of_case in self._by_case.values() for entry in of_case.values()]

    def current(self) -> list[Entry]:
        """The masks of the newest call, in its order."""
        rows = [(str(row["case"]), str(row["file"])) for row in self.facts.get("cases", [])]
        return [found for case, file in rows if (found := self._by_case.get(case, {}).get(file)) is not None]

    def of_file(self, name: str) -> list[Entry]:
        """The masks that a file belongs to."""
        owners = self._owners.get(name, ())
        return [entry for case in owners for entry in self._by_case[case].values() if name in entry.files]

    @classmethod
    def read(cls, folder: Path) -> Record:
        """The record of a folder, also of one in which `predict` was killed.

        Raises:
            UsageError: if predict.json is damaged, or not of ulna.
        """
        seen = state_of(folder)  # before they are read: what changes in between is found in `writing`
        facts = read_facts(folder)
        path = folder / PREDICT_FILE
        try:
            run, options = str(facts.get("digest", "")), facts.get("options", {})
            matters = {name: value for name, value in options.items() if name != "split"}
            entries = [Entry.parse(row) for row in facts.get("earlier", [])]
            entries += [_with_maps(folder, Entry.parse(row, run, matters)) for row in facts.get("cases", [])]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise not_ours(path) from None
        record = cls(folder, entries, facts)
        record._seen = seen
        record.hear()
        return record

    def hear(self) -> None:
        """Know what the journals of the folder say, and of those that jobs go on with, what they have said since."""
        for journal in journals(self.folder):
            with suppress(FileNotFoundError):  # one that ends meanwhile
                size = journal.stat().st_size
                if self._heard.get(journal) != size:
                    self.take_journal(journal)
                    self._heard[journal] = size

    def take_journal(self, path: Path, cases: Collection[str] | None = None) -> list[Entry]:
        """Know what a process has noted in its journal, and keep what it put in place; returns that.

        Args:
            path: the journal.
            cases: those alone; None: all.
        """
        kept = []
        for values in noted(path):
            try:
                entries = [Entry.parse(one) for one in values]
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                continue
            if not entries or (cases is not None and not any(entry.case in cases for entry in entries)):
                continue
            self.unfinished |= {name for entry in entries for name in entry.files}
            for entry in entries:
                self._note(entry)
            if all(map(self.holds, entries)):
                self.take(entries)  # else it was killed before they were in place
                kept += entries
        return kept

    def find(self, wanted: Entry) -> Entry | None:
        """The entry that was made as `wanted` is to be made, if all its files are as they were written."""
        for entry in self._by_case.get(wanted.case, {}).values():
            if entry.made_as(wanted) and self.holds(entry):
                return entry
        return None

    def holds(self, entry: Entry) -> bool:
        """Whether all files of an entry are as they were written."""
        return all(self._holds(name, digest) for name, digest in entry.files.items())

    def owns(self, name: str) -> bool:
        """Whether a file (or a folder that is one image) is one that ulna wrote: no link, with a digest that was noted."""
        return any(digest and self._holds(name, digest) for digest in self._noted.get(name, ()))

    def undigested(self, name: str) -> bool:
        """Whether an earlier version of ulna wrote a file of that name, and kept no digest of it."""
        return "" in self._noted.get(name, ()) and is_plain(self.folder / name)

    def known(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Name -> digests of all that ulna wrote under it."""
        return {name: sorted(self._noted[name]) for name in names if name in self._noted}

    def know(self, known: Mapping[str, Sequence[str]]) -> None:
        """Take over what another process knows."""
        for name, digests in known.items():
            self._noted.setdefault(name, set()).update(digests)

    def changed(self, entry: Entry) -> bool:
        """Whether a mask is no longer what was written; False where no digest was kept."""
        digest = entry.files.get(entry.file, "")
        return bool(digest) and not self._holds(entry.file, digest)

    def _holds(self, name: str, digest: str) -> bool:
        path = self.folder / name
        if is_plain(path):
            return self._digest(path) == digest
        try:
            return is_own_tree(path) and self._digest(path) == digest
        except OSError:  # a part of it is no file, or nobody may read it
            return False

    def _digest(self, path: Path) -> str:
        found, known = stamp(path), self._digests.get(path)
        if known is None or known[:2] != found:
            self._digests[path] = known = (*found, file_digest(path))
        return known[2]

    @contextmanager
    def writing(self, *, beside: bool = False) -> Iterator[Path]:
        """Be the folder's one writer, with a folder for files that are not yet in place.

        Args:
            beside: processes that an earlier command has begun may go on with their shares meanwhile.

        Raises:
            UsageError: if another command writes into the folder, or a `predict` did since the record was read (its masks
                would be forgotten), or it cannot be written to.
        """
        path = self.folder / JOURNAL
        with locked(self.folder), staged(self.folder, "predict") as staging:
            if os.path.lexists(path) and not is_plain(path):
                raise UsageError(f"{path}: is no file of ulna; move it, or choose another --out")
            if not beside:
                end_shares(self.folder)
            known = 2 if beside else None
            if self._seen is not None and self._seen[:known] != state_of(self.folder)[:known]:
                raise UsageError(
                    f"{self.folder}: another ulna predict wrote into it since this one looked; run the command again"
                )
            with self._noting(path):
                yield staging

    @contextmanager
    def sharing(self, share: Path) -> Iterator[Path]:
        """Write beside others among whom the folder's one writer has divided its cases; as `writing`.

        Args:
            share: a folder of this process, which it has locked.
        """
        staging = share / "staging"
        shutil.rmtree(staging, ignore_errors=True)  # of one that was killed
        staging.mkdir()
        with self._noting(share / JOURNAL):
            yield staging

    @contextmanager
    def _noting(self, path: Path) -> Iterator[None]:
        try:
            self._journal = path.open("a", encoding="utf-8")
        except OSError as error:
            raise unwritable(path.parent, error) from None
        try:
            yield
        finally:
            with suppress(OSError):  # a full disk, which was told
                self._journal.close()
                if not path.stat().st_size:  # nothing was begun, or all is recorded
                    path.unlink()
            self._journal = None

    def put(self, entries: Sequence[Entry], staging: Path, *, free: Sequence[str] = ()) -> list[Entry]:
        """Note the files of some entries with their digests and put them in place, whole or not at all.

        Args:
            entries: that share their files; the digests are filled in.
            staging: where the files lie.
            free: names that may replace what is there: ulna's own.

        Raises:
            UsageError: if somebody else's file has one of the names, or the folder cannot be written to.
        """
        assert self._journal is not None
        names = list(dict.fromkeys(name for entry in entries for name in entry.files))
        new = [name for name in names if (staging / name).exists()]
        for name in new:
            if os.path.lexists(self.folder / name) and name not in free:
                raise UsageError(
                    f"{self.folder / name}: already exists and was not written by ulna; move it and run the command again"
                )
        try:
            digests = {name: file_digest(staging / name) for name in new}
            digests |= {name: entry.files[name] for entry in entries for name in entry.files if name not in digests}
            done = [replace(entry, files={name: digests[name] for name in entry.files}) for entry in entries]
            # a line of its own, also after one that a full disk cut short
            self._journal.write("\n" + json.dumps([entry.to_json() for entry in done]) + "\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())
            for name in new:
                put_in_place(staging / name, self.folder / name)
        except OSError as error:
            raise unwritable(self.folder / names[0], error) from None
        self.take(done)
        return done

    def write(self, facts: Mapping[str, Any], current: Sequence[Entry], *, beside: bool = False) -> None:
        """Write predict.json: the facts, `current` as `cases`, all other masks as `earlier`; the journals end.

        Args:
            facts: of this call.
            current: its masks.
            beside: other processes go on with their shares, and with their journals.

        Raises:
            UsageError: if it cannot be written; the journals stay then.
        """
        now = {(entry.case, entry.file) for entry in current}
        earlier = [entry.to_json() for entry in self.entries if (entry.case, entry.file) not in now]
        rows = [entry.to_json(whole=False) for entry in current]
        write_text(self.folder / PREDICT_FILE, json.dumps({**facts, "cases": rows, "earlier": earlier}, indent=1))
        with suppress(OSError):  # what is left of it says what predict.json says
            if self._journal is not None:
                self._journal.truncate(0)
            (self.folder / JOURNAL).unlink()
        if not beside:
            shutil.rmtree(self.folder / SHARES, ignore_errors=True)

    def take(self, entries: Sequence[Entry]) -> None:
        """Know of masks that are in place; they take the place of those whose files they replaced."""
        for name in {name for entry in entries for name in entry.files}:
            for case in self._owners.pop(name, ()):
                kept = self._by_case.get(case, {})
                self._by_case[case] = {file: old for file, old in kept.items() if name not in old.files}
        for entry in entries:
            self._add(entry)

    def _add(self, entry: Entry) -> None:
        self._by_case.setdefault(entry.case, {})[entry.file] = entry
        for name in entry.files:
            self._owners.setdefault(name, {})[entry.case] = None
        self._note(entry)

    def _note(self, entry: Entry) -> None:
        for name, digest in entry.files.items():
            self._noted.setdefault(name, set()).add(digest)


def read_facts(folder: Path) -> dict[str, Any]:
    """predict.json of a folder as it stands there; empty where there is none.

    Raises:
        UsageError: if it is damaged, or not of ulna.
    """
    path = folder / PREDICT_FILE
    if not os.path.lexists(path):
        return {}
    if not is_plain(path):
        raise not_ours(path)
    facts = read_json_object(path)
    asked = facts.get("asked", [])
    lists = isinstance(facts.get("cases"), list) and isinstance(asked, list)
    if not lists or not all(isinstance(case, str) for case in asked):
        raise not_ours(path)
    return facts


def _with_maps(folder: Path, entry: Entry) -> Entry:
    """Earlier versions listed no probabilities."""
    if any(entry.files.values()):
        return entry
    names = [f"{entry.case}_probabilities{suffix}" for suffix in (".nii.gz", ".npz")]
    return replace(entry, files=entry.files | {name: "" for name in names if os.path.lexists(folder / name)})
