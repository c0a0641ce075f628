"""The prepared cases of a training in the cache: found where they were made before, kept where the training wants it.

Whatever is wrong with the cache costs time alone: a case is prepared anew, and that is said once.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ulna.data.layout.case import Case
from ulna.data.pipeline.cropping import Crop
from ulna.data.pipeline.orientation import Turn
from ulna.data.pipeline.preprocess import Prepared
from ulna.data.prepared import folder as places
from ulna.data.prepared.contents import Contents
from ulna.data.prepared.entry import SUFFIX, Damaged, Draft, read_entry, write_entry
from ulna.data.prepared.key import Form, files_of, key_of
from ulna.errors import UsageError, printable
from ulna.recipe import Plan

log = logging.getLogger(__name__)

SWITCH = "ULNA_CACHE"  # 0: nothing is read or kept; 1: all cases of every training are
Keeps = Literal["none", "large", "all"]


class Found(NamedTuple):
    """A prepared case, mapped from the disk.

    Args:
        prepared: the image on the grid of the plan.
        maps: labels by name.
    """

    prepared: Prepared
    maps: dict[str, Tensor]


def kept_cases(wanted: bool | Literal["auto"], *, shared: bool = False) -> Keeps:
    """Which cases of a training are kept: none, those that the memory has no room for, or all.

    Args:
        wanted: by the recipe; `ULNA_CACHE` and it can each switch off and, before "auto", on.
        shared: whether other trainings of these cases follow, for which "auto" keeps all.

    Raises:
        UsageError: if the variable says neither 0 nor 1.
    """
    said = os.environ.get(SWITCH, "")
    if said not in ("", "0", "1"):
        raise UsageError(f"{SWITCH}={printable(said)[:40]}: is neither 0 (no cache) nor 1 (all prepared cases)")
    if said == "0" or wanted is False:
        return "none"
    return "all" if said == "1" or wanted is True or shared else "large"


class CaseStore:
    """The cache as one training uses it. Its methods may be called by several threads.

    Args:
        plan: of the training.
        contents: digests of the files of its cases.
        data: the data set, by which `ulna cache` lists entries.
        every: keep all cases, not only those that the memory has no room for.
    """

    def __init__(self, plan: Plan, contents: Contents, data: Path, *, every: bool) -> None:
        self.plan, self.contents, self.data, self.every = plan, contents, data, every
        self._closed = False  # to further entries
        self._own: set[str] = set()  # entries in use here
        self._noted: set[str] = set()
        self._lock = threading.Lock()

    @classmethod
    def of(
        cls, plan: Plan, contents: Contents, data: Path, wanted: bool | Literal["auto"], *, shared: bool = False
    ) -> CaseStore | None:
        """That of a training, by `kept_cases`; None where nothing is kept.

        Raises:
            UsageError: if an environment variable says what it cannot.
        """
        keeps = kept_cases(wanted, shared=shared)
        places.wanted_limit()
        return None if keeps == "none" else cls(plan, contents, data, every=keeps == "all")

    def get(self, case: Case, form: Form) -> Found | None:
        """A case that was kept before; None where there is none, or it is not as it was written."""
        name = self._name(case, form)  # hashed before it is read, so that `put` sees whether it was changed meanwhile
        try:
            folder = None if name is None else places.opened(make=False)
            if name is None or folder is None:
                return None
            path = folder / name
            entry = read_entry(path)
            found = Found(_prepared(entry.tensors.pop("image"), entry.facts), entry.tensors)
        except FileNotFoundError:
            return None
        except (Damaged, LookupError, TypeError, ValueError) as error:
            if isinstance(error, UsageError):  # a file that cannot be read, as its reader will say
                return None
            places.removed(path)
            self._note("damaged", f"{printable(path)}: {error}; what is damaged there is prepared again")
            return None
        except places.Unusable as error:
            self._close(_reason(error))
            return None
        except OSError as error:
            self._note(
                "damaged",
                f"{printable(path)}: cannot be read ({_reason(error)}); what is damaged there is prepared again",
            )
            return None
        places.touch(path)
        self._own.add(name)
        return found

    def put(self, case: Case, form: Form, prepared: Prepared, maps: Mapping[str, Tensor]) -> Found | None:
        """Keep a case; the same, mapped from the disk, or None where it is not kept.

        Args:
            case: that was read just now.
            form: of `image` and `maps`.
            prepared: on the CPU.
            maps: labels by name.
        """
        with self._lock:  # one at a time: else two would look for room and find the same
            if self._closed:
                return None
            try:
                name = self._name(case, form)
                if name is None or not self._is_unchanged(case):
                    return None
                folder = places.opened(make=True)
                assert folder is not None
                places.remove_abandoned(folder)
                facts = {**_facts(prepared), "data": str(self.data.absolute())}
                draft = Draft.of({"image": prepared.image, **maps}, facts)
                if not write_entry(folder / name, draft, lambda: places.make_room(folder, self._own)):
                    self._close(
                        "its limit is reached by what this training uses; a higher ULNA_CACHE_GB keeps all of it"
                    )
                    return None
            except UsageError:
                raise
            except KeyError:  # labels of a type that entries do not have
                return None
            except OSError as error:
                self._close(_reason(error))
                return None
        return self.get(case, form)

    def _name(self, case: Case, form: Form) -> str | None:
        try:
            key = key_of(case, self.plan, form, self.contents)
        except UsageError:  # its reader says what is wrong with a file
            return None
        return None if key is None else key + SUFFIX

    def _is_unchanged(self, case: Case) -> bool:
        """Whether what was read is what its key was made of."""
        if all(map(self.contents.holds, files_of(case))):
            return True
        self._note("changed", f"case {printable(case.id)}: its files are changing, so that it is not kept in the cache")
        return False

    def _close(self, why: str) -> None:
        self._closed = True
        self._note("closed", f"the cache takes no further prepared case: {why}")

    def _note(self, kind: str, text: str) -> None:
        if kind not in self._noted:
            self._noted.add(kind)
            log.warning("note: %s", text)


def _reason(error: OSError) -> str:
    return printable(str(error) if isinstance(error, places.Unusable) else error.strerror or str(error))


def _facts(prepared: Prepared) -> dict[str, Any]:
    return {name: value for name, value in prepared._asdict().items() if name != "image"}


def _prepared(image: Tensor, facts: Mapping[str, Any]) -> Prepared:
    turn, step, crop = facts["turn"], facts["step"], facts["crop"]
    return Prepared(
        image,
        tuple(facts["size"]),
        _pairs(facts["margins"]),
        Turn(*map(tuple, turn)),
        None if step is None else tuple(step),
        None if crop is None else Crop(*map(_pairs, crop)),
    )


def _pairs(values: Any) -> tuple[tuple[int, int], ...]:
    return tuple((first, last) for first, last in values)
