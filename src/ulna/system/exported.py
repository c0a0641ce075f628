"""Files of `ulna export` where something else is wanted: known by their first bytes, and refused alike by every verb."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ulna.errors import UsageError, printable
from ulna.system.names import is_of_the_zoo
from ulna.verbs import command

FIRST_MEMBER = b"manifest.json"  # of an exported file, a zip; its name stands behind 30 bytes
_BEFORE_NAME = 30
WANTED = {
    "run": ("the folder of a run", "name the run that it was exported from"),
    "data": ("a data set", "name the folder of the images"),
    "plan": ("a plan", "name the plan.yaml of the run that it was exported from"),
    "recipe": ("a recipe", "name the recipe.yaml of the run that it was exported from"),
    "study": ("the folder of a study", "name one that `ulna compare` wrote"),
}
TAKEN = "predict, info and train --init take exported files"


def is_exported(word: str | Path) -> bool:
    """Whether a word is `zoo:NAME`, or names a file that begins as those of `ulna export` do."""
    if is_of_the_zoo(word):
        return True
    path = Path(word)
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            start = file.read(_BEFORE_NAME + len(FIRST_MEMBER))
    except OSError:
        return False
    return start[:4] == b"PK\x03\x04" and start[_BEFORE_NAME:] == FIRST_MEMBER


def not_taken(word: str | Path, wanted: str) -> UsageError:
    """The error for an exported file where something else is wanted.

    Args:
        word: as it was named.
        wanted: a key of `WANTED`.
    """
    what, remedy = WANTED[wanted]
    return UsageError(f"{printable(word)}: is an exported file, where {what} is wanted; {remedy} ({TAKEN})")


def refuse_exported(words: Iterable[str | Path], wanted: str) -> None:
    """Raises UsageError for the first word that names an exported file, see `not_taken`."""
    for word in words:
        if is_exported(word):
            raise not_taken(word, wanted)


def no_masks(word: str | Path, labels: str | Path) -> UsageError:
    """The error for an exported file where masks are wanted, with the commands that make and score them."""
    first = command(["predict", word, "INPUT", "--out", "MASKS"])
    then = command(["evaluate", "MASKS", labels])
    return UsageError(
        f"{printable(word)}: is an exported file, where masks are wanted; predict first: {first}; then: {then} ({TAKEN})"
    )
