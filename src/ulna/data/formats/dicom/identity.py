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


def _words(dataset: Any) -> set[str]:
    words: set[str] = set()
    for keyword in NAMING:
        try:
            words |= {word.casefold() for word in re.findall(r"[^\W_]+", str(dataset.get(keyword) or ""))}
        except Exception:  # bytes that are no text
            continue
    return {word for word in words if len(word) >= _SHORTEST}
