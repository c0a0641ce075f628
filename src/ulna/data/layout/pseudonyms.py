"""Pseudonyms: ids of cases and patients as keyed hashes, in all that is written; the key and the way back stay with the user.

The file that the user names holds a random key and, for every pseudonym, the id that it stands for. Who has a run folder and
not this file cannot tell ids, nor try names against the hashes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

from ulna.data.layout.dataset import Dataset
from ulna.data.layout.groups import Grouping
from ulna.data.layout.masks import Masks
from ulna.errors import UsageError, printable
from ulna.recipe import Split
from ulna.system.files import unwritable
from ulna.system.passed_on import Shown, without_places
from ulna.system.reading import read_json_object

ABOUT = "key and meaning of pseudonyms, made by ulna: keep it where the patients' names may be, and never pass it on"
DATA_FILE = "data.json"  # of a run: which data it was begun with, and under which key
PREFIX = "case_"
_SHORTEST = 3  # signs of an id that is looked for in texts: shorter ones stand in numbers and words
_FLAG = "--pseudonymise"


class Pseudonyms:
    """Ids and their pseudonyms under one key.

    Args:
        path: the user's file.
        key: secret.
        names: pseudonym -> id.
    """

    def __init__(self, path: Path, key: bytes, names: dict[str, str]) -> None:
        self.path, self._key, self._names = path, key, names
        self._saved = len(names) if path.exists() else -1

    @classmethod
    def open(cls, path: Path, *written: Path) -> Pseudonyms:
        """The user's file, made where there is none.

        Args:
            path: the file.
            written: folders that are passed on, in which it must not lie.

        Raises:
            UsageError: if it lies there, or is not such a file.
        """
        for folder in written:
            if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
                what = f"lies in {printable(folder)}, which would be passed on with the key to its pseudonyms"
                raise UsageError(f"{_FLAG} {printable(path)}: {what}; name a file elsewhere")
        if not os.path.lexists(path):
            return cls(path, secrets.token_bytes(32), {})  # written with the first names
        what = f"{_FLAG} {printable(path)}: is no file of pseudonyms made by ulna; name a new file, or the one that it made"
        if not path.is_file():
            raise UsageError(what)
        stored = read_json_object(path)
        key, names = stored.get("key"), stored.get("names")
        if not isinstance(key, str) or not re.fullmatch("[0-9a-f]{64}", key) or not isinstance(names, dict):
            raise UsageError(what)
        if not all(isinstance(name, str) for name in names.values()):
            raise UsageError(what)
        return cls(path, bytes.fromhex(key), names)

    @property
    def digest(self) -> str:
        """Of the key: tells whether a run was begun with it, and nothing else."""
        return self._hash("the key itself")[:16]

    def of(self, id: str) -> str:
        """The pseudonym of an id; a pseudonym is its own."""
        if id in self._names:
            return id
        name = PREFIX + self._hash(id)[:12]
        self._names[name] = id
        return name

    def remembered(self, id: str) -> str:
        """The pseudonym of an id, which the file holds from now on."""
        name = self.of(id)
        self._save()
        return name

    def apply(self, dataset: Dataset) -> Dataset:
        """The same cases under pseudonyms, in the order of these, so that neither names nor order tell ids; remembered."""
        cases = sorted(
            (replace(c, id=self.of(c.id), group=None if c.group is None else self.of(c.group)) for c in dataset.cases),
            key=lambda case: case.id,
        )
        splits = tuple(self._split(one) for one in dataset.given_splits)
        self._save()
        shown = self.shown(dataset.root)
        notes = tuple(map(shown, dataset.notes))
        return replace(dataset, cases=tuple(cases), given_splits=splits, notes=notes)

    def apply_to_masks(self, masks: Masks) -> Masks:
        """The same masks by pseudonyms."""
        sources = {self.of(id): source for id, source in masks.sources.items()}
        images = {self.of(id): source for id, source in masks.images.items()}
        cases = {self.of(id): case for id, case in masks.cases.items()}
        self._save()
        return Masks(sources, masks.labels, images, cases)

    def apply_to_groups(self, groups: Grouping) -> Grouping:
        """The same groups, of pseudonyms and patients named by them; sites and scanners keep their names."""
        patients = {self.of(id): self.of(group) for id, group in groups.patients.items()}
        fields = {self.of(id): of for id, of in groups.fields.items()}
        self._save()
        return Grouping(patients, fields)

    def shown(self, *folders: Path) -> Shown:
        """Texts for what is passed on: no place, nothing that lies in these folders, pseudonyms in place of known ids."""
        placeless = without_places(*folders)
        names = [folder.resolve().name for folder in folders]
        inside = re.compile(rf"(?<![\w.-])({'|'.join(map(re.escape, names))})/[^\s:;,)'\"]+")
        ids = {id: name for name, id in self._names.items() if len(id) >= _SHORTEST}
        longest = sorted(ids, key=len, reverse=True)
        known = re.compile(f"(?<![^\\W_])(?:{'|'.join(map(re.escape, longest))})(?![^\\W_])") if ids else None

        def shown(text: str) -> str:
            text = inside.sub(r"\1/...", placeless(text))
            return text if known is None else known.sub(lambda match: ids[match[0]], text)

        return shown

    def _split(self, split: Split) -> Split:
        return Split(**{name: tuple(map(self.of, ids)) for name, ids in split})

    def _hash(self, text: str) -> str:
        return hmac.new(self._key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def _save(self) -> None:
        if len(self._names) != self._saved:
            self._write()

    def _write(self) -> None:
        """Whole or not at all, and readable by its owner alone from the first byte on."""
        values: dict[str, Any] = {"about": ABOUT, "key": self._key.hex(), "names": dict(sorted(self._names.items()))}
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(json.dumps(values, indent=1))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise unwritable(self.path, error) from None
        self._saved = len(self._names)


def check_key(run: Path, pseudonyms: Pseudonyms | None) -> None:
    """Refuse to go on with a run, or to choose cases by its split, without the key that it was begun with.

    A run without `data.json` (pruned, or of an earlier version) does not say; its ids then fit, or are not found.

    Raises:
        UsageError: saying which is missing, or does not fit.
    """
    if not (run / DATA_FILE).exists():
        return
    digest = read_json_object(run / DATA_FILE).get("pseudonyms")
    given = None if pseudonyms is None else pseudonyms.digest
    if given == digest:
        return
    if digest is None:
        raise UsageError(f"{_FLAG}: {printable(run)} was begun with the ids of the data; leave it out, or train anew")
    file = "the file that it was begun with"
    if pseudonyms is None:
        raise UsageError(f"{printable(run)}: its ids are pseudonyms; name {file}: {_FLAG} FILE")
    raise UsageError(
        f"{_FLAG} {printable(pseudonyms.path)}: holds another key than {printable(run)} began with; name {file}"
    )


def named(names: Pseudonyms | None, dataset: Dataset) -> Dataset:
    """A data set under pseudonyms, where they are asked for."""
    return dataset if names is None else names.apply(dataset)


def opened(path: Path | str | None, *written: Path | None, dry_run: bool = False) -> Pseudonyms | None:
    """The file of `--pseudonymise`, where it is given, which a dry run does not make; see `Pseudonyms.open`."""
    if path is None:
        return None
    if dry_run and not Path(path).exists():
        raise UsageError(f"--dry-run: {printable(path)} is not there, and would be made; leave one of the two out")
    return Pseudonyms.open(Path(path), *(folder for folder in written if folder is not None))


def texts_of(names: Pseudonyms | None, *folders: Path) -> Shown:
    """How texts are written into what is passed on."""
    return without_places(*folders) if names is None else names.shown(*folders)
