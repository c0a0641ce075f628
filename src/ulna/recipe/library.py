"""The verb `recipes`: the protocols of the papers that come with the package, by name.

A recipe is a YAML file that opens with a comment: its title, then fields, each on lines of its own (`FIELDS`). The title and
the fields `Paper`, `Table` and `Data` are what the list shows.
"""

from __future__ import annotations

import difflib
import itertools
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ulna.errors import UsageError, printable, unknown
from ulna.system.exported import refuse_exported
from ulna.system.reading import parse_yaml

FOLDER = Path(__file__).parent / "files"
# the paper and its table, the data, the printed figures; settings that are printed, those that were chosen instead, and in
# what it departs from the paper
FIELDS = ("Paper", "Table", "Data", "Published", "Printed", "Chosen", "Deviations")
ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class Packaged:
    """A recipe that comes with the package.

    Args:
        name: for `--recipe`.
        text: the file.
    """

    name: str
    text: str

    @property
    def title(self) -> str:
        """What it trains, in one line."""
        return self.text.splitlines()[0].lstrip("# ").rstrip(".")

    @property
    def about(self) -> dict[str, str]:
        """The fields of its comment, those of `FIELDS` that are there."""
        found: dict[str, list[str]] = {}
        lines: list[str] = []
        for line in itertools.takewhile(lambda line: line.startswith("#"), self.text.splitlines()):
            said = line[1:].strip()
            name, colon, rest = said.partition(":")
            if colon and name in FIELDS:
                lines = found[name] = [rest.strip()]
            elif said:
                lines.append(said)
            else:  # an empty line ends a field
                lines = []
        return {name: "\n".join(found[name]).strip() for name in FIELDS if name in found}

    @property
    def values(self) -> dict[str, Any]:
        """What it states, under the names of recipes."""
        return dict(parse_yaml(self.text, self.name))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        about = {name.lower(): said for name, said in self.about.items()}
        return {"name": self.name, "title": self.title, **about, "recipe": self.values}


def recipes(name: str | None = None, /) -> list[Packaged]:
    """All recipes that come with ulna, or the one of that name: the protocols of the papers.

    `--recipe NAME` of plan, train and compare takes them by name. To change one, write what `ulna recipes NAME` prints into a
    file, and give its path.

    Args:
        name: a recipe; left out, all of them.

    Raises:
        UsageError: for an unknown name, with the nearest.

    Example:
        ulna recipes carvalho_nuclei
    """
    if name is not None and name not in names():
        raise unknown("recipe", name, names())
    return [Packaged(one, _read(one)) for one in names() if name in (None, one)]


@cache
def names() -> tuple[str, ...]:
    """Of all that come with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def recipe_file(recipe: Path | str) -> Path:
    """The file of `--recipe`: a path, or the name of a recipe that comes with the package. A file of that name comes first.

    Raises:
        UsageError: where there is neither, with the nearest name.

    Example:
        >>> recipe_file("laird").name
        'laird.yaml'
    """
    refuse_exported([recipe], "recipe")
    path, word = Path(recipe), str(recipe)
    if path.is_file() or (path.exists() and word not in names()):  # of a folder, reading it tells
        return path
    if word in names():
        return FOLDER / f"{word}.yaml"
    if path.name == word and path.suffix not in ENDINGS:
        raise unknown("recipe", word, names())
    near = difflib.get_close_matches(path.stem, names(), n=1, cutoff=0.5)
    hint = (
        f"--recipe {near[0]} is one that comes with ulna" if near else "`ulna recipes` lists those that come with ulna"
    )
    raise UsageError(f"{printable(word)}: no such file; {hint}")


def _read(name: str) -> str:
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
