"""Which part of the body an image shows, in the words of BodyPartExamined, wherever its header says so.

Enhanced (multi-frame) objects name it by a code, mostly in the frame anatomy of their functional groups; the words that
the standard has for such a code (PS3.16, Annex L) let them be compared with the slices of other files.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ulna.data.formats.dicom.identity import code_of
from ulna.data.formats.dicom.library import pydicom

_TERMS = {  # meaning of a code, letters alone -> its term; of all others the letters of the meaning are the term
    "CERVICALSPINE": "CSPINE",
    "CERVICOTHORACICSPINE": "CTSPINE",
    "THORACICSPINE": "TSPINE",
    "THORACOLUMBARSPINE": "TLSPINE",
    "LUMBARSPINE": "LSPINE",
    "LUMBOSACRALSPINE": "LSSPINE",
    "CHESTABDOMENPELVIS": "CHESTABDPELVIS",
    "NECKCHESTABDOMENPELVIS": "NECKCHESTABDPELV",
    "ENTIREBODY": "WHOLEBODY",
    "ANKLEJOINT": "ANKLE",
    "ELBOWJOINT": "ELBOW",
    "HIPJOINT": "HIP",
    "WRISTJOINT": "WRIST",
    "LOWERLEG": "LEG",
}


def body_part_of(dataset: Any, said: str) -> str:
    """`said` (its BodyPartExamined), or else what its anatomic region's code stands for; no word that may name somebody."""
    groups = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    items = [_first(_first(dataset, name), "FrameAnatomySequence") for name in groups]
    regions = [_first(item, "AnatomicRegionSequence") for item in (*items, dataset)]
    for region in [] if said else [one for one in regions if one is not None]:
        meaning = _meanings().get(str(region.get("CodeValue", ""))) or str(region.get("CodeMeaning", ""))
        term = "".join(word for word in code_of(meaning, dataset).split() if word != "AND")
        return _TERMS.get(term, term)
    return code_of(said, dataset)


@cache
def _meanings() -> dict[str, str]:
    """Code -> meaning of the common anatomic regions, as pydicom ships them; files may hold the meaning in any language."""
    pydicom()
    from pydicom.sr.codedict import codes

    return {code.value: code.meaning for code in codes.cid4031.concepts.values()}


def _first(holder: Any, sequence: str) -> Any:
    """The first item of a sequence; None where there is none."""
    found = None if holder is None else holder.get(sequence)
    return found[0] if found and hasattr(found[0], "get") else None
