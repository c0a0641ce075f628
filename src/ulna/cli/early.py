"""What is told of a command line before its verb is imported, which takes seconds: flags, paths and names that cannot be."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ulna.errors import UsageError, printable, unknown
from ulna.system.names import is_of_the_zoo
from ulna.system.order import check_words
from ulna.verbs import PATH_FLAGS, VERBS, Verb

DATA_FIRST = ("check", "plan", "train", "compare")  # verbs whose word is a data set


class Words(NamedTuple):
    """A command line as far as it is understood without the verb.

    Args:
        plain: words that follow no flag.
        flags: the flags, with their values.
    """

    plain: list[str]
    flags: list[str]

    def paths(self, verb: Verb) -> list[str]:
        """What it names that must be there, but for recipes."""
        of_flags = () if verb.gone else [word for flag in PATH_FLAGS for word in self.of(flag)]
        return [*(self.plain if verb.paths else ()), *of_flags]

    def of(self, wanted: str) -> list[str]:
        """The values of a flag."""
        values = [value for flag, value in itertools.pairwise(self.flags) if flag == wanted and value[:1] != "-"]
        return values + [flag.partition("=")[2] for flag in self.flags if flag.startswith(f"{wanted}=")]


def check_early(name: str, arguments: Sequence[str]) -> None:
    """Refuse what can be seen to be wrong by names and folders alone.

    Args:
        name: of the verb.
        arguments: behind it, without `--quiet` and `--json`.

    Raises:
        UsageError: with what is wrong.
    """
    words = words_of(VERBS[name], arguments)
    _check_flags(name, words.flags)
    data_of_bench = words.plain[1:] if name == "bench" else ()  # NAME DATA
    require([*words.paths(VERBS[name]), *data_of_bench], words.of("--recipe"))
    check_words(name, words.plain, words.flags)
    _check_names(name, words)
    _check_layout(name, words.plain)


def words_of(verb: Verb, arguments: Sequence[str]) -> Words:
    """Tell the words of a command line from its flags, which have at most one value."""
    words = Words([], [])
    for before, word in itertools.pairwise(["", *arguments]):
        valued = before.startswith("-") and "=" not in before and before not in verb.switches.split()
        (words.flags if word.startswith("-") or valued else words.plain).append(word)
    return words


def require(paths: Sequence[str], recipes: Sequence[str] = ()) -> None:
    """Raises UsageError that names every path that is not there, and every recipe that is neither a file nor a name."""
    there = [path for path in paths if os.path.lexists(path) or is_of_the_zoo(path)]
    missing = [f"{printable(path)}: does not exist; check the path" for path in paths if path not in there]
    missing += [said for recipe in recipes if (said := _no_recipe(recipe))]
    if missing:
        raise UsageError("\n".join(missing))


def _no_recipe(word: str) -> str:
    """What is wrong with a word that names no recipe; else nothing."""
    from ulna.recipe.library import recipe_file  # only where one is named: starting is quick

    try:
        recipe_file(word)
    except UsageError as error:
        return str(error)
    return ""


def _check_flags(name: str, words: Iterable[str]) -> None:
    known = f"{VERBS[name].flags} {VERBS[name].switches}".split()
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            raise unknown(f"flag of ulna {name}", flag, known)


def _check_names(name: str, words: Words) -> None:
    """Names of networks. What stands for networks of others (`module:FILE`) is the verb's to read."""
    models = [*words.of("--model"), *(one.strip() for given in words.of("--models") for one in given.split(","))]
    models += words.plain[:1] if name == "models" else []
    if models:
        from ulna.networks.catalog import NAMED

        for model in models:
            if model and ":" not in model and model not in NAMED:
                raise unknown("model", model, NAMED)


def _check_layout(name: str, words: Sequence[str]) -> None:
    """A folder that is no data set, and an image that is none."""
    if len(words) == 1 and name in DATA_FIRST:
        path, need_labels = Path(words[0]), True
    elif len(words) > 1 and name == "predict":
        path, need_labels = Path(words[-1]), False
    else:
        return
    from ulna.data.layout.layouts import check_layout

    check_layout(path, need_labels=need_labels)
