"""Words of a header that name a person are taken out of what is shown of it."""

from __future__ import annotations

import re
from typing import Any

NAMING = ["PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "OtherPatientIDs", "OtherPatientNames"]
HIDDEN = "(hidden)"
_SHORTEST = 3  # signs of a word that may name somebody


def without_names(text: str, dataset: Any) -> str:
    """A text of a file, such as the description of its series, without the words of its patient's name, ids and birth date.

    Technicians write names into descriptions; only what the same file calls a name is known to be one.
    """
    named = _words(dataset)
    return re.sub(r"[^\W_]+", lambda word: HIDDEN if word[0].casefold() in named else word[0], text)


def code_of(text: str, dataset: Any) -> str:
    """A code of a file, such as that of the body part, without what may name somebody: its words of letters alone that do not
    name the patient.

    Anything can be typed into such a field, and plans and predict.json keep it; codes of the standard hold no digit.
    """
    named = _words(dataset)
    words = re.findall(r"[^\W_]+", text.upper())
    return " ".join(word for word in words if word.isalpha() and word.casefold() not in named)


def _words(dataset: Any) -> set[str]:
    words: set[str] = set()
    for keyword in NAMING:
        try:
            words |= {word.casefold() for word in re.findall(r"[^\W_]+", str(dataset.get(keyword) or ""))}
        except Exception:  # bytes that are no text
            continue
    return {word for word in words if len(word) >= _SHORTEST}
