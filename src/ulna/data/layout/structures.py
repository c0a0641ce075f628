"""Which structures of SEG and RTSTRUCT files are the classes of a data set.

`classes.json` may choose and rename them: {"kidney": ["Kidney_L", "Kidney_R"], "tumour": "SCT:86049000"}. Without it all
structures of all cases are classes, in the order in which they are found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ulna.data.formats.dicom.finding import holds_dicom, known_header, look
from ulna.data.formats.dicom.header import is_dicom, read_dataset
from ulna.data.formats.dicom.labels import named_in, overlap
from ulna.data.formats.dicom.naming import Named, class_of, plain
from ulna.data.formats.source import ARRAY_SUFFIX, IMAGE_SUFFIXES, Series, Source, Structure, suffix_of
from ulna.data.layout.declared import parse_classes
from ulna.data.layout.metadata import read_json
from ulna.data.layout.pairing import Found
from ulna.errors import DataError, listed
from ulna.recipe import Labels

LABEL_KINDS = ("seg", "rtstruct")


def declared_structures(value: Any) -> dict[str, tuple[str, ...]] | None:
    """Class -> names of its structures, where a JSON value says that; None where it says something else.

    Example:
        >>> declared_structures({"kidney": ["Kidney_L", "Kidney_R"], "tumour": "GTV"})
        {'kidney': ('Kidney_L', 'Kidney_R'), 'tumour': ('GTV',)}
        >>> declared_structures({"1": "liver"}) is None, declared_structures({"tumour": [1, 2]}) is None
        (True, True)
    """
    if not isinstance(value, Mapping) or not value:
        return None
    lists = {str(key): [one] if isinstance(one, str) else one for key, one in value.items()}
    if any(_is_number(key) for key in lists) or not all(
        isinstance(names, list) and names and all(isinstance(name, str) and not _is_number(name) for name in names)
        for names in lists.values()
    ):
        return None
    return {key: tuple(names) for key, names in lists.items()}


def _is_number(text: str) -> bool:
    return text.strip().lstrip("+-").isdigit()


def name_structures(
    found: Found, labels: Mapping[str, Sequence[Path]], sources: Mapping[str, Source]
) -> dict[str, Source]:
    """The label sources of all cases with their classes; sets `found.labels`.

    Args:
        labels: case -> its label files.
        sources: case -> its label source, without classes.
    """
    named = {case: _named(found, files) for case, files in labels.items()}
    everything = [one for of_case in named.values() for one in of_case]
    declared, mode = _declared(found)
    if declared is None:
        structures: list[Structure] = []
        for one in everything:
            if class_of(one._replace(others=()), structures) is None:
                structures.append(Structure(one.label, ()))
        _tell_rare(found, named, structures)
    else:
        structures = [Structure(name, names) for name, names in declared.items()]
        for structure in structures:
            if everything and not any(class_of(one, [structure]) is not None for one in everything):
                there = listed(dict.fromkeys(one.label for one in everything), most=8)
                what = f"names the structure {structure.name!r}, which no label file holds; they hold {there}"
                found.wrong(found.root / "classes.json", what, "write the name as the label files have it, or its code")
    if not structures:
        return {}
    chosen = tuple(structures)
    sources = {
        case: source._replace(series=source.series._replace(structures=chosen))
        for case, source in sources.items()
        if source.series is not None
    }
    multilabel = mode == "multilabel" or (mode is None and len(chosen) > 1 and any(map(_overlaps, sources.values())))
    if multilabel and mode is None:
        found.notes.append("structures may overlap: each class is a channel of its own (multilabel)")
    names = tuple(structure.name for structure in chosen)
    found.labels = Labels(names=names if multilabel else ("background", *names), multilabel=multilabel)
    return {
        case: source._replace(series=source.series._replace(overlapping=multilabel))
        for case, source in sources.items()
        if source.series is not None
    }


def name_labels(found: Found) -> None:
    """Give the DICOM labels of pairs their classes and the grid of their images; sets `found.labels` where there are some."""
    files: dict[str, tuple[Path, ...]] = {}
    sources: dict[str, Source] = {}
    for case in found.cases:
        if case.label is None or case.label.series is not None or not _is_label(case.label.path):
            continue
        path, grid = case.label.path, case.images[0].series
        own = (path,) if path.is_file() else tuple(h.path for h in look(path).headers if h.kind in LABEL_KINDS)
        if not own:
            found.wrong(path, "holds no SEG and no RTSTRUCT", "put the labels of the case there")
            continue
        files[case.id] = own
        fixes = () if grid is None else grid.fixes
        sources[case.id] = Source(path, None, Series(own, fixes, () if grid is None else grid.files))
    if sources:
        named = name_structures(found, files, sources)
        found.cases = [replace(case, label=named.get(case.id, case.label)) for case in found.cases]


def are_structures(found: Found) -> bool:
    """Whether classes.json names structures of DICOM labels, and there are some."""
    if not any(case.label is not None and (case.label.series or _is_label(case.label.path)) for case in found.cases):
        return False
    path = found.root / "classes.json"
    value = read_json(path, []) if path.is_file() else None
    inner = value.get("labels", value.get("classes")) if isinstance(value, Mapping) else None
    return declared_structures(inner if isinstance(inner, Mapping) else _classes_of(value)) is not None


def _classes_of(value: Any) -> Any:
    return {key: name for key, name in value.items() if key != "mode"} if isinstance(value, Mapping) else value


def _is_label(path: Path) -> bool:
    """Whether a label is DICOM: a SEG or RTSTRUCT, or a folder of them; a single DICOM image is a label map of its own."""
    if suffix_of(path) in (*IMAGE_SUFFIXES, ARRAY_SUFFIX):
        return False
    if path.is_dir():
        return holds_dicom(path)
    if not is_dicom(path):
        return False
    try:
        return known_header(path).kind in LABEL_KINDS
    except DataError:  # it is told where the case is read
        return False


def _named(found: Found, files: Sequence[Path]) -> list[Named]:
    """The structures of the files of a case; one name in two files is a problem."""
    named: list[Named] = []
    owners: dict[str, Path] = {}
    for file in files:
        try:
            own = named_in(file)
        except DataError as error:
            found.problems += error.problems
            continue
        if not own:
            found.wrong(file, "describes no segment and no closed contour", "take it out, or draw the structures")
        for one in own:
            other = owners.setdefault(plain(one.label), file)
            if other != file:
                what = f"holds the structure {one.label!r}, which {other.name} of the same series holds too"
                found.wrong(file, what, "keep the labels of one reader, or give the structures other names")
            named.append(one)
    return named


def _declared(found: Found) -> tuple[dict[str, tuple[str, ...]] | None, str | None]:
    """The classes of classes.json, each with the names of its structures, and the mode."""
    path = found.root / "classes.json"
    if not path.exists():
        return None, None
    value = read_json(path, found.problems)
    if value is None:
        return None, None
    mode = value.get("mode") if isinstance(value, Mapping) else None
    inner = value
    if isinstance(value, Mapping):
        inner = value.get("labels", value.get("classes"))
        if not isinstance(inner, Mapping | list):
            inner = _classes_of(value)
    structures = declared_structures(inner)
    if structures is not None:
        if mode not in (None, "multilabel", "exclusive", "multiclass"):
            found.wrong(path, f"has the mode {mode!r}", "leave `mode` out, or write multilabel or exclusive")
            mode = None
        return structures, mode
    labels = parse_classes(inner, {"mode": mode}, path, found.problems)
    if labels is None:
        return None, mode
    return {name: (name,) for name in labels.foreground}, mode or "exclusive"


def _overlaps(source: Source) -> bool:
    """Whether the structures of a case overlap: RTSTRUCT may always; a SEG says so, or its pixels are looked at."""
    series = source.series
    assert series is not None
    if any(known_header(file).kind == "rtstruct" for file in series.files):
        return True
    said = {
        str(read_dataset(file, pixels=False, tags=["SegmentsOverlap"]).get("SegmentsOverlap")) for file in series.files
    }
    if len(series.files) == 1 and said == {"NO"}:
        return False
    try:
        return "YES" in said or overlap(source)
    except DataError:  # it is told where the case is read
        return False


def _tell_rare(found: Found, named: Mapping[str, Sequence[Named]], structures: Sequence[Structure]) -> None:
    """A structure that few cases have may be missing in others, where it would count as background."""
    rare = []
    for structure in structures:
        have = [
            case
            for case, own in named.items()
            if any(class_of(one._replace(others=()), [structure]) == 0 for one in own)
        ]
        if len(have) < len(named):
            rare.append(f"{structure.name!r} ({len(have)})")
    if rare:
        found.notes.append(
            f"structures that are not drawn in all {len(named)} cases are background in the others: {listed(rare)}"
        )
