"""What is passed on (run folders, masks, studies, pages) names files and folders, not where they lie on this machine.

A path tells who worked where, and the folders of a hospital are often named after patients.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ulna.verbs import command

Shown = Callable[[str], str]


def as_it_is(text: str) -> str:
    """Text for this machine alone."""
    return text


def stored_command(words: Iterable[object]) -> str:
    """A command line for a file that is passed on: an absolute path is its last name; put the place before it to run it.

    Example:
        >>> stored_command(["train", Path("/home/me/data/liver"), "--out", "runs/a"])
        'ulna train liver --out runs/a'
    """
    return command(without_place(str(word)) for word in words)


def without_places(*folders: Path) -> Shown:
    """A function that writes paths in these folders as beginning with the folder's own name.

    Example:
        >>> without_places(Path("/home/me/data"))("/home/me/data/images/a.png: is empty")
        'data/images/a.png: is empty'
    """
    found: dict[str, str] = {}
    for folder in folders:
        absolute = folder.absolute()
        for place in (folder, absolute, folder.resolve()):
            if place.is_absolute() and absolute.name:
                found[str(place)] = absolute.name
    if not found:
        return as_it_is
    longest = sorted(found, key=len, reverse=True)
    pattern = re.compile(f"(?:{'|'.join(map(re.escape, longest))})(?![^/\\s:;,)'\"])")
    return lambda text: pattern.sub(lambda match: found[match[0]], text)


def without_places_of(recipe: Mapping[str, Any]) -> Shown:
    """A function that writes where a training began, and the file of a network, by their last names: a path tells who worked
    where."""
    training = recipe.get("training")
    init, model = training.get("init") if isinstance(training, Mapping) else None, recipe.get("model")
    named = [init, model.removeprefix("module:") if isinstance(model, str) else None]
    folders = {str(Path(one).parent) for one in named if isinstance(one, str) and Path(one).is_absolute()}
    if not folders:
        return as_it_is
    longest = sorted(folders, key=len, reverse=True)
    folded = [r"\s+".join(map(re.escape, folder.split())) for folder in longest]  # over lines, as YAML does
    return partial(re.compile(f"(?:{'|'.join(folded)})/").sub, "")


def without_place(word: str) -> str:
    """A path without the folders it lies in, where it is absolute; any other word as it is.

    Example:
        >>> without_place("/home/me/runs/a"), without_place("zoo:nuclei")
        ('a', 'zoo:nuclei')
    """
    return Path(word).name or word if Path(word).is_absolute() else word
