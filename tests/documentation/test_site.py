"""What `make docs` adds to the pages: tables from schema, functions and registries; links; formulas. Without mkdocs."""

import inspect
import re
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import Field

from tests.places import ROOT
from tools.docs import commands, formulas, links, parts, recipe_keys
from ulna.blocks import SLOTS
from ulna.losses import LOSSES
from ulna.recipe import Frozen, Recipe
from ulna.verbs import VERBS

DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", *(ROOT / name for name in links.ELSEWHERE)]


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, in which some values name functions."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def addresses(nav) -> list[str]:
    """The pages of a menu, however deep."""
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [address for entry in entries for address in addresses(entry)]


def test_every_page_has_a_place_in_the_menu():
    shown = addresses(yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"])
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} | set(links.ELSEWHERE.values())
    assert sorted(pages - set(shown)) == [], "name it under `nav` in mkdocs.yml"
    assert sorted(set(shown) - pages) == []
    assert len(shown) == len(set(shown))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_row_of_a_table_is_one_line_with_all_cells(page):
    """What is left of a row that was broken in two becomes a row of its own in the site."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for table in re.findall(r"^\|.*\n\|[-:|]+\|\n(?:.+\n?)*", text, re.M):
        cells = [len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", row))) for row in table.splitlines()]
        assert set(cells) == {cells[0]}, table.splitlines()[cells.index(min(cells))]


def test_nothing_in_the_site_comes_from_a_server():
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    assert config["theme"]["font"] is False
    assert "offline" in config["plugins"]
    files = [*config["extra_css"], *config["extra"]["polyfills"]]
    assert [name for name in files if not (DOCS / name).is_file()] == []
    assert [name for name in files if "http" in (DOCS / name).read_text(encoding="utf-8")] == []


def paths(model: type[Frozen], values: dict, before: str = "") -> set[str]:
    found = set()
    for name in model.model_fields:
        value = values.get(name)  # `foreign` is left out where there is none
        inner = type(getattr(model(), name)) if not before else None
        if inner is not None and issubclass(inner, Frozen):
            found |= paths(inner, value, f"{name}.")
        else:
            found.add(before + name)
    return found


def test_every_key_of_a_recipe_is_there_with_its_default_and_meaning():
    assert recipe_keys.missing() == []
    keys = {key.path: key for keys in recipe_keys.sections().values() for key in keys}
    assert paths(Recipe, Recipe().model_dump()) == {path for path in keys if not path.startswith("slot.")}
    assert keys["optimizer.lr"].default == "`0.001`" and keys["optimizer.lr"].values == "number, above 0"
    assert keys["schedule.kind"].values == "`cosine`, `poly`, `constant`"
    assert keys["training.epochs"].default == "left open"
    assert keys["model"].default == "by the images"  # of a command that names none; planning/default_network.py
    assert keys["architecture.conv"].default == "`double_conv`"
    page = recipe_keys.page()
    assert all(f"<code>{path.replace('.', '.<wbr>')}</code>" in page for path in keys)


class Sample(Frozen):
    # above it
    first: int = 1
    second: float = Field(default=0.5, ge=0)  # behind it
    third: Literal["a", "b"] = "a"


def test_what_a_key_means_is_read_from_the_comment_at_it():
    assert recipe_keys.comments(Sample) == {"first": "above it", "second": "behind it"}


def test_a_key_without_a_meaning_is_told(monkeypatch):
    monkeypatch.delitem(recipe_keys.MEANINGS, "optimizer.lr")
    monkeypatch.setitem(recipe_keys.MEANINGS, "optimizer.speed", "gone")
    assert [fault.partition(":")[0] for fault in recipe_keys.missing()] == ["optimizer.lr", "optimizer.speed"]


def test_blocks_and_losses_are_there_with_their_options():
    page = parts.page()
    for name in [*LOSSES, *(kind for blocks in SLOTS.values() for kind in blocks)]:
        assert f"| `{name}` | " in page
    assert "`kernel_size=3`" in page and "`residual=True`" in page
    assert "in_channels" not in parts.table("kind", SLOTS["conv"])
    assert re.search(r"\| `dice_squared` \| .*\| `smooth=1.0`", page)


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_is_there_with_its_flags_and_its_example(verb):
    told = commands.section(verb)
    about, said, example = commands.split_docstring(commands.find(VERBS[verb].place))
    assert about.splitlines()[0] == VERBS[verb].summary
    assert example.startswith(f"ulna {verb}") and example in told
    for name in said:
        flag = f"--{name.replace('_', '-')}"
        (row,) = re.findall(rf"^\| `(?:{flag}|{name.upper()})[ `].*$", told, re.M)
        assert said[name].replace("|", "\\|").removesuffix(".") in row
        assert ".;" not in row
    parameters = inspect.signature(commands.find(VERBS[verb].place)).parameters.values()
    must = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.default is one.empty]
    assert re.findall(r"^\| `--(\w+) [^|]*\| required \|", told, re.M) == must


@pytest.mark.parametrize(
    "source, address, link, becomes",
    [
        ("CONTRIBUTING.md", "contributing.md", "[a](docs/architecture.md)", "[a](architecture.md)"),
        ("docs/papers/README.md", "papers/README.md", "[a](../recipes.md#x)", "[a](../recipes.md#x)"),
        ("docs/papers/README.md", "papers/README.md", "[a](#x)", "[a](#x)"),
        ("docs/concepts.md", "concepts.md", "[a](https://example.org/b)", "[a](https://example.org/b)"),
        ("docs/concepts.md", "concepts.md", "[a](../CONTRIBUTING.md)", "[a](contributing.md)"),
        ("docs/concepts.md", "concepts.md", "[a](../README.md)", "[a](index.md)"),
        ("docs/concepts.md", "concepts.md", "[a](../src/ulna/recipe/files)", "a"),
        (
            "docs/papers/laird.md",
            "papers/laird.md",
            "[a](../../src/ulna/recipe/files/laird.yaml)",
            "[a](../files/src/ulna/recipe/files/laird.yaml)",
        ),
        ("docs/concepts.md", "concepts.md", "```\n[a](../README.md)\n```", "```\n[a](../README.md)\n```"),
    ],
)
def test_links_lead_to_where_the_site_has_it(source, address, link, becomes):
    assert links.rewritten(link, source, address) == becomes


def test_files_that_pages_link_come_along():
    found = links.linked_files()
    assert Path("src/ulna/recipe/files/laird.yaml") == found["files/src/ulna/recipe/files/laird.yaml"].relative_to(ROOT)
    assert all(path.is_file() for path in found.values())


def test_formulas_become_mathml():
    pytest.importorskip("latex2mathml", reason="latex2mathml comes with the extra docs")
    text = "costs `$a$` $5, and $x_1$ | $\\alpha$\n```\n$b$\n```\n"
    made = formulas.inline(text)
    assert made.count("<math") == 2 and "`$a$` $5, and" in made and "```\n$b$\n```" in made
    assert "<msub>" in made and "_" not in made
    for page in (DOCS / "papers").glob("*.md"):
        for block in re.findall(r"^```math\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            assert 'display="block"' in formulas.to_mathml(block, block=True)
