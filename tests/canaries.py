"""Canaries for the tests of privacy: a mark in every element that a DICOM file can hold, and where it turned up."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests import dicom_series as dicom
from ulna.data.formats.dicom.header import _TAGS

CANARY, DATE, NUMBER = dicom.CANARY, "19010203", 73190461
# the pixels and what says how they are stored; where frames lie; UIDs, by which files find each other
KEPT = {*_TAGS, "PixelData", "PlanarConfiguration", "PatientBirthDate", "SpecificCharacterSet"}
MARKS = (CANARY, CANARY.lower(), DATE, str(NUMBER))
TEXTS = {"AE": 16, "CS": 16, "LO": 60, "LT": 60, "PN": 60, "SH": 16, "ST": 60, "UC": 60, "UT": 60}
OTHERS: dict[str, Any] = {
    "AS": "073Y",
    "UR": f"http://{CANARY}/1",
    "DA": DATE,
    "DT": f"{DATE}120000",
    "TM": "120000",
    "UI": f"1.2.{NUMBER}",
    "DS": str(NUMBER),
    "IS": str(NUMBER),
    "AT": 0x00100010,
    "FD": float(NUMBER),
    "FL": float(NUMBER),
    **dict.fromkeys(("SL", "SV", "UL", "UV"), NUMBER),
    **dict.fromkeys(("SS", "US"), 7319),
    **dict.fromkeys(("OB", "OD", "OF", "OL", "OV", "OW", "UN"), CANARY.encode() + b"12"),
}


def plant(made: Any, number: int = 0) -> set[str]:
    """A canary in every element of the standard's dictionary that does not say where a pixel is, and in private ones of
    every kind; the kinds (VR) that were planted."""
    from pydicom import datadict

    planted = set()
    for tag, (kind, _, _, retired, keyword) in sorted(datadict.DicomDictionary.items()):
        vr = kind.split(" or ")[0]
        group = tag >> 16
        if (
            not keyword
            or keyword in KEPT
            or group in (0x0000, 0x0002, 0x0004, 0x0028, 0x7FE0, 0x5400)
            or group >= 0x5000
        ):
            continue
        if retired or keyword.endswith("UID") or vr == "SQ" or not (value := value_of(vr)):
            continue
        made.add_new(tag, vr, value)
        planted.add(vr)
    block = made.private_block(0x0011, f"{CANARY} creator", create=True)
    for place, vr in enumerate(sorted({*TEXTS, *OTHERS})):
        block.add_new(place, vr, value_of(vr))
    item = dicom.pydicom.Dataset()
    item.PatientName, item.PatientID, item.PatientBirthDate = f"{CANARY}^In^Sequence", f"{CANARY}{number}", DATE
    made.OtherPatientIDsSequence = made.RequestAttributesSequence = [item]
    made.SeriesDescription = f"axial {CANARY} 5 mm"
    made.BodyPartExamined = f"{CANARY} LEG"  # a plan keeps the rest of it
    return planted | {"SQ"}


def value_of(vr: str) -> Any:
    """A canary of that kind."""
    if vr in TEXTS:
        return f"{CANARY}^{vr}" if vr == "PN" else f"{CANARY} {vr}"[: TEXTS[vr]]
    return OTHERS.get(vr)


def found_in(roots: Iterable[Path], marks: Iterable[str] = MARKS) -> list[str]:
    """Where a mark stands: names of files, and what they hold, also packed."""
    told = []
    wanted = [mark.encode() for mark in marks]
    for root in roots:
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root)
            told += [f"{name}: in the name" for mark in wanted if mark in str(name).encode()]
            if path.is_file():
                held = _unpacked(path)
                told += [f"{name}: holds {mark.decode()}" for mark in wanted if mark in held]
    return told


def _unpacked(path: Path) -> bytes:
    held = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(held)
    if path.suffix == ".png":  # texts of a picture may be packed
        start = held.find(b"zTXt")
        return held + (zlib.decompress(held[start + 6 :].split(b"\0", 2)[-1]) if start > 0 else b"")
    return held
