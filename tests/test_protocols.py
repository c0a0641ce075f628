"""Every line of the papers' protocols in docs/papers: what it names is there, and a recipe holds what its line says."""

from __future__ import annotations

import re
import shlex
from fnmatch import filter as matching
from functools import cache
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.places import ROOT
from ulna.errors import UsageError
from ulna.networks.catalog import NAMED
from ulna.planning.choosing import choose
from ulna.recipe import Recipe, stated
from ulna.recipe.changing import set_value
from ulna.recipe.library import names
from ulna.study.variants import make_variants
from ulna.verbs import VERBS, find

# page -> what the names of its recipes and of its networks begin with
PAGES = {
    "unetpp": "zhou",
    "sdu_net": "carvalho",
    "modular_unet": "laird",
    "omega_net": "wang",
    "implicit_unet": "marimont",
}
COLUMNS = ["of", "the paper says", "in ulna", "shown by", "deviation, and why"]
KINDS = ("data", "preparation", "network", "training", "inference", "metric", "ablation", "table", "figure")
NONE = "–"


class Line(NamedTuple):
    """A row of a protocol table."""

    kind: str
    claim: str
    place: str
    shown: str
    deviation: str


def lines_of(page: str) -> list[Line]:
    """The protocol table of a page."""
    text = (ROOT / "docs" / "papers" / f"{page}.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines() if row.startswith("|")]
    start = rows.index(COLUMNS)
    lines = []
    for row in rows[start + 2 :]:
        if row[0] not in KINDS:
            break
        lines.append(Line(*row))
    return lines


LINES = [
    pytest.param(page, line, id=f"{page} {number} {line.kind}")
    for page in PAGES
    for number, line in enumerate(lines_of(page), 1)
]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def is_setting(word: str) -> bool:
    return re.match(r"[a-z_]+(\.\w+)*=", word) is not None


@cache
def recipe(name: str) -> Recipe:
    return choose(model=None, recipe=name)


def wrong_path(word: str) -> str | None:
    """What is wrong with FILE, FILE::NAME; None if it is there."""
    file, _, name = word.partition("::")
    path = ROOT / file
    if not path.exists():
        return f"{file} is not there"
    if name and not re.search(rf"(^|\n)\s*(def|class) {name}\b|(^|\n){name}\b", path.read_text(encoding="utf-8")):
        return f"{file} has no {name}"
    return None


def wrong_command(word: str) -> str | None:
    """What is wrong with a command line of ulna; None if it can be typed so."""
    verb, *words = shlex.split(word)[1:]
    if verb not in VERBS:
        return f"no verb {verb}"
    taken = signature(find(VERBS[verb].place)).parameters
    flags = {flag: [] for flag in words if flag.startswith("--")}
    for flag, value in pairwise([*words, ""]):
        if flag in flags:
            flags[flag].append(value)
    if wrong := [flag for flag in flags if flag[2:].replace("-", "_") not in taken]:
        return f"{verb} has no {wrong[0]}"
    name = flags.get("--recipe", [None])[0]
    if name is not None and name not in names():
        return f"no recipe {name}"
    models = [model for value in flags.get("--model", []) + flags.get("--models", []) for model in value.split(",")]
    if unknown := set(models) - set(NAMED):
        return f"no network {', '.join(unknown)}"
    changes = flags.get("--set", [])
    if verb == "compare" and name is not None:
        one = "--one-at-a-time" in flags
        of_study = models or list(recipe(name).study.models) or [recipe(name).model]
        make_variants(of_study, stated(name), flags.get("--vary", []), changes, one_at_a_time=one)
    for change in changes:
        set_value(Recipe() if name is None else recipe(name), change)
    return None


def wrong(word: str, base: Recipe) -> str | None:
    """What a code word of a line names that is not there."""
    try:
        if word.startswith("ulna "):
            return wrong_command(word)
        if is_setting(word):
            set_value(base, word)
            return None
        if word.split("/")[0] in ("tests", "src", "docs", "benchmarks"):
            return wrong_path(word)
        if word.startswith("--"):
            return None if word[2:] in signature(find(VERBS["compare"].place)).parameters else f"no flag {word}"
    except UsageError as error:
        return str(error)
    if matching(NAMED, word) or matching(names(), word):
        return None
    return None if word in KNOWN or word in data_words() else f"nothing is called {word}"


# files beside data and in the folders of runs and studies, keys within them, and what papers call things
KNOWN = {
    "classes.json", "groups.json", "splits.json", "dataset.json", "summary.json", "cases.csv", "metrics.csv", "table.md",
    "results.csv", "figures/", "prune.csv", "val_dice", "val_iou", "figures/worst.png", "requires",
}  # fmt: skip


@cache
def data_words() -> set[str]:
    """Keys of the recipe's sections, as in `evaluation.by`."""
    return {
        f"{section}.{field}"
        for section, owner in Recipe.model_fields.items()
        if isinstance(owner.annotation, type) and hasattr(owner.annotation, "model_fields")
        for field in owner.annotation.model_fields
    }


def recipes_in(line: Line) -> list[str]:
    return [name for word in code(line.place) for name in matching(names(), word)]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_lines_of_every_kind_and_names_every_recipe_and_network_of_its_paper(page):
    lines = lines_of(page)
    assert {line.kind for line in lines} == set(KINDS)
    order = [KINDS.index(line.kind) for line in lines]
    assert order == sorted(order)
    said = [word for line in lines for cell in line for word in code(cell)]
    of_paper = [name for name in names() if name.split("_")[0] == PAGES[page]]
    of_paper += [name for name in NAMED if name.startswith(f"{PAGES[page]}/")]
    assert [name for name in of_paper if not any(matching([name], word) for word in said)] == []


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_line_says_where_it_lives_what_shows_it_and_how_it_differs(page, line):
    assert all(line), "an empty cell"
    assert "missing" not in " ".join(line).lower()
    if line.place == NONE:
        assert line.deviation != NONE, "what ulna does not have needs a reason"
    else:
        assert any(word.startswith(("tests/", "ulna ")) for word in code(line.shown)), "a test or a command"


@pytest.mark.parametrize(("page", "line"), LINES)
def test_all_that_a_line_names_is_there(page, line):
    of_paper = [name for name in names() if name.split("_")[0] == PAGES[page]]
    base = recipe((recipes_in(line) or of_paper)[-1])
    faults = [fault for cell in line for word in code(cell) if (fault := wrong(word, base))]
    assert faults == []


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("planning.sice=3", "did you mean 'size'?"),
        ("planning.size=3", "planning.size"),
        ("zhou/unetppp", "nothing is called zhou/unetppp"),
        ("tests/test_nothing.py", "tests/test_nothing.py is not there"),
        ("tests/test_protocols.py::test_nothing", "has no test_nothing"),
        ("ulna tain DATA", "no verb tain"),
        ("ulna train DATA --recipe laird --fast", "train has no --fast"),
        ("ulna train DATA --recipe lairt", "no recipe lairt"),
        ("ulna compare DATA --models unet,vnet", "no network vnet"),
        ("ulna train DATA --set optimizer.rl=3", "did you mean 'lr'?"),
        ("ulna compare DATA --recipe laird --vary training.monitor=dice,jaccard", "training.monitor"),
        ("--sets", "no flag --sets"),
    ],
)
def test_what_is_not_there_is_told(word, said):
    assert said in (wrong(word, Recipe()) or "")


@pytest.mark.parametrize(("page", "line"), [one for one in LINES if recipes_in(one.values[1])])
def test_recipes_hold_what_their_line_says(page, line):
    """Laid over a recipe that its line names, a setting changes nothing."""
    for name in recipes_in(line):
        for setting in filter(is_setting, code(line.place)):
            assert set_value(recipe(name), setting) == recipe(name), f"{name}: {setting}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_commands_on_pages_name_recipes_that_there_are(page: Path):
    text = page.read_text(encoding="utf-8")
    said = set(re.findall(r"--recipe (\w+)(?![\w./])", text))
    assert said <= set(names())
