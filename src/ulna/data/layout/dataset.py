"""A data set: its cases, its classes, its splits. Opening it reads names and JSON, no pixel."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ulna.data.formats.dicom.choosing import Wishes
from ulna.data.formats.source import all_errors, id_problem, is_zarr, readable, shown
from ulna.data.layout.case import Case
from ulna.data.layout.declared import CLASSES_FILE, recipe_classes
from ulna.data.layout.groups import read_groups
from ulna.data.layout.layouts import find
from ulna.data.layout.metadata import check_split, read_splits, split_file
from ulna.data.layout.pairing import Found
from ulna.data.layout.splitting import (
    AS_IT_IS,
    Division,
    check_counted,
    check_divisible,
    choose_split,
    split_hash,
    united,
)
from ulna.data.layout.unread import unread
from ulna.errors import Problem, UsageError, counted, listed, unknown
from ulna.recipe import Labels, Split

RECIPE = "the recipe"  # where classes are declared

__all__ = ["Case", "Dataset", "Division", "split", "split_hash"]


@dataclass(frozen=True)
class Dataset:
    """Cases, in the order of their ids.

    Args:
        root: the folder or the npz file.
        layout: "pairs", "decathlon", "nnunet", "case folders", "npz", "dicom", "cvc-clinicdb", "lits", "kits"; for
            prediction also "images" (a flat folder) and "image".
        labels: the classes as declared; None where nothing declares them.
        declared_in: the file that declares them, or the recipe; None where no file does.
        channel_names: as declared.
        given_splits: one split, or several folds.
        notes: what was passed over or assumed.
    """

    root: Path
    layout: str
    cases: tuple[Case, ...]
    labels: Labels | None = None
    declared_in: str | None = None
    channel_names: tuple[str, ...] | None = None
    given_splits: tuple[Split, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def from_folder(
        cls,
        path: Path | str,
        *,
        need_labels: bool = True,
        channels: int | None = None,
        wishes: Wishes | None = None,
    ) -> Dataset:
        """Open a folder, an npz file or, without `need_labels`, any image file.

        Args:
            need_labels: False for prediction: images need no label map, splits are not read, a flat folder will do.
            channels: files per case where images `CASE_0000` stand without label maps; left out, the names tell.
            wishes: which DICOM series are taken, and what may be done about odd slices; `dicom.json` beside the data says
                the rest.

        Raises:
            DataError: with everything that is wrong.
        """
        dataset, problems = cls.scan(path, need_labels=need_labels, channels=channels, wishes=wishes)
        if problems:
            raise all_errors(problems, dataset.root)
        return dataset

    @classmethod
    def scan(
        cls,
        path: Path | str,
        *,
        need_labels: bool = True,
        channels: int | None = None,
        wishes: Wishes | None = None,
    ) -> tuple[Dataset, tuple[Problem, ...]]:
        """As `from_folder`, but what can be read comes back together with what is wrong.

        Raises:
            DataError: only if nothing can be read.
        """
        found = find(Path(path), need_labels=need_labels, channels=channels, wishes=wishes)
        cases = _without_doubles(found)
        for case in cases:
            problem = id_problem(case.images[0], case.id)
            if problem:
                found.problems.append(problem)
        splits: tuple[Split, ...] = ()
        if need_labels:
            ids = [case.id for case in cases]
            folder = found.root if found.root.is_dir() else found.root.parent
            with readable(folder):
                named = read_groups(folder, ids, found.problems, found.notes)
                groups = named.patients or found.groups
                cases = [
                    replace(
                        case,
                        group=groups.get(case.id, case.group),
                        fields=tuple(named.fields.get(case.id, {}).items()),
                    )
                    for case in cases
                ]
                splits = _splits(found, folder, cases, groups)
            found.notes += unread(found.root, cases)
        found.notes += _links_outside(found.root, cases)
        notes = tuple(found.notes)
        dataset = cls(
            found.root, found.layout, tuple(cases), found.labels, found.declared_in, found.channel_names, splits, notes
        )
        return dataset, tuple(found.problems)

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def labelled(self) -> tuple[Case, ...]:
        """The cases that have a label map."""
        return tuple(case for case in self.cases if case.label is not None)

    def grouped(self, copies: Iterable[Sequence[str]]) -> Dataset:
        """The same cases, with those that show one image in one group, so that no split parts them.

        Args:
            copies: ids of cases that belong together, from `Report.copies`.
        """
        patients: dict[str, list[str]] = {}
        for case in self.cases:
            if case.group is not None:
                patients.setdefault(case.group, []).append(case.id)
        patient = {case.id: case.group for case in self.cases}
        names: dict[str, str] = {}
        for members in united([*patients.values(), *copies]):
            known = [group for name in members if (group := patient.get(name)) is not None]
            names |= dict.fromkeys(members, min(known, default=f"copies of {members[0]}"))
        return replace(self, cases=tuple(replace(case, group=names.get(case.id)) for case in self.cases))

    def declaring(self, classes: Any) -> Dataset:
        """The same cases with the classes that a recipe declares, if it does.

        They take the place of what dataset.json says or the layout is known to hold, as classes.json does.

        Args:
            classes: the section `classes` of a recipe, or None.

        Raises:
            UsageError: if they make no sense, or a classes.json beside the data says something else.
        """
        if classes is None:
            return self
        labels = recipe_classes(classes)
        if self.declared_in == CLASSES_FILE and self.labels is not None:
            if labels != self.labels:
                folder = self.root if self.root.is_dir() else self.root.parent
                raise UsageError(
                    f"{shown(folder / CLASSES_FILE)}: declares the classes {listed(self.labels.described)}, the recipe "
                    f"{listed(labels.described)}; take the file away, write {json.dumps(labels.declared())} into it, or "
                    "go on by the file with --set classes=null"
                )
            return self
        if self.labels is None or labels == self.labels:
            return replace(self, labels=labels, declared_in=RECIPE)
        of = f", in place of the labels of {self.declared_in}" if self.declared_in else ""
        said = f"the recipe names the classes {listed(labels.described)}{of}"
        return replace(self, labels=labels, declared_in=RECIPE, notes=(*self.notes, said))

    def of_dims(self, spatial_dims: int | None) -> Dataset:
        """The same cases, with files that could be 2D or 3D (volumes of one slice) read as the others are.

        Args:
            spatial_dims: of the other cases (`Report.spatial_dims`) or of the model.
        """
        return replace(self, cases=tuple(replace(case, spatial_dims=spatial_dims) for case in self.cases))

    def case(self, id: str) -> Case:
        """The case of that id.

        Raises:
            UsageError: if there is none; names the nearest.
        """
        for case in self.cases:
            if case.id == id:
                return case
        raise unknown("case", id, [case.id for case in self.cases])

    def cases_of(self, ids: Iterable[str]) -> list[Case]:
        """The cases of these ids, in their order.

        Raises:
            UsageError: if there is none of an id; names the nearest.
        """
        by_id = {case.id: case for case in self.cases}
        return [by_id[id] if id in by_id else self.case(id) for id in ids]

    def check_divisible(self, wanted: Division = AS_IT_IS) -> None:
        """Refuse what `split` could not divide, before any case is read.

        Raises:
            UsageError: if there are too few cases or groups, or no such fold.
        """
        check_divisible(self.labelled, self.given_splits, wanted)
        check_counted(self.labelled, self.given_splits, wanted)


def _links_outside(root: Path, cases: Sequence[Case]) -> list[str]:
    """A data set of links is sound, but a copy of its folder is not."""
    inside = os.path.realpath(root if root.is_dir() and not is_zarr(root) else root.parent) + os.sep
    sources = [file for case in cases for one in (*case.images, case.label) if one is not None for file in one.files]
    outside = [path for path in dict.fromkeys(sources) if not os.path.realpath(path).startswith(inside)]
    if not outside:
        return []
    what = f"{counted(len(outside), 'link')} to files outside the folder, for example {shown(outside[0])}"
    return [f"{what}; a copy of the folder would miss them"]


def _without_doubles(found: Found) -> list[Case]:
    """One case per id; the others are problems."""
    kept: dict[str, Case] = {}
    for case in found.cases:
        if case.id in kept:
            what = f"has the id {case.id!r}, as {kept[case.id].images[0]} has"
            found.wrong(case.images[0], what, "give every case an id of its own")
        kept.setdefault(case.id, case)
    return list(kept.values())


def _splits(found: Found, folder: Path, cases: list[Case], groups: dict[str, str]) -> tuple[Split, ...]:
    labelled = {case.id: case.label is not None for case in cases}
    if (path := split_file(folder)) is not None:
        return read_splits(path, labelled, groups, found.problems, found.notes)
    if found.sets is None:
        return ()
    doubles = any(count > 1 for count in Counter(i for ids in found.sets.values() for i in ids).values())
    before = len(found.problems)
    if not doubles:  # told already, file by file
        check_split(found.sets, "names of the npz files", labelled, groups, found.problems)
    if doubles or len(found.problems) > before:
        return ()
    if not found.sets["val"]:
        found.notes.append("no val*.npz: 15 % of train are taken to choose the epoch")
    return (Split(**{name: tuple(ids) for name, ids in found.sets.items()}),)


def split(dataset: Dataset, seed: int, fold: int | None = None, wanted: Division = AS_IT_IS) -> Split:
    """The split to train on: what the data set brings, else one made by group and `seed`.

    Without a given split: the shares that are wanted, else 70 / 15 / 15 of the cases with 20 groups or more, 80 / 20 / 0 with
    fewer; with `fold`, one of five folds, or of as many as are wanted. A given split without val gives 15 % of its train to
    val.

    Raises:
        UsageError: if there are fewer than two labelled cases or groups, or no such fold.
    """
    wanted = wanted if fold is None else wanted._replace(fold=fold)
    return choose_split(dataset.labelled, dataset.given_splits, seed, wanted)
