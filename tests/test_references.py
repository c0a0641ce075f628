"""Every citation leads somewhere: keys to docs/references.bib, pages and sections to docs/papers, counts to the networks."""

from __future__ import annotations

import io
import re
import tokenize
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.places import ROOT
from ulna.blocks.spatial_dependency import SpatialDependency
from ulna.networks.build import count_parameters, validate
from ulna.networks.catalog import NAMED
from ulna.networks.profile.cost import models
from ulna.recipe import Recipe
from ulna.recipe.changing import set_value

PAPERS = ROOT / "docs" / "papers"
PAGES = sorted(PAPERS.glob("*.md"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
NETWORKS = ROOT / "docs" / "networks.md"
SOURCES = sorted(
    path
    for room, kinds in (("src", "py cpp yaml"), ("tests", "py"), ("benchmarks", "py"))
    for kind in kinds.split()
    for path in (ROOT / room).rglob(f"*.{kind}")
    if path != Path(__file__)
)
KEY = re.compile(r"\b[a-z]{2,}(?:18|19|20)\d\d\b")
SPELT_OUT = re.compile(r"\b[A-ZÀ-Ž]\w+(?: et al\.| and [A-Z]\w+)?,? \(?(?:18|19|20)\d\d\b")  # Zhou 2018, Zhou (2018)
MILLIONS = re.compile(r"\b\d{1,3}(?:,\d{3}){2,}\b")
INDEX = ("key", "networks of `ulna models`", "page")
COUNTED = ("network", "for", "parameters")
PLACED = ("base", "at a node", "form", "parameters")
LAYERS = ("channels", "plain layer", "residual layer")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def remarks(path: Path) -> list[str]:
    """The paragraphs of comments and docstrings, each as one line."""
    text = path.read_text(encoding="utf-8")
    blocks: list[str] = []
    if path.suffix == ".py":
        last = (-1, -1)
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.STRING and '"""' in token.string:
                blocks.append(token.string.strip('rf"'))
            elif token.type == tokenize.COMMENT:
                line, column = token.start
                if last == (line - 1, column):
                    blocks[-1] += "\n" + token.string[1:]
                else:
                    blocks.append(token.string[1:])
                last = token.start
    else:
        mark = "//" if path.suffix == ".cpp" else "#"
        blocks = ["\n".join(line.partition(mark)[2] for line in text.splitlines())]
    paragraphs = [" ".join(part.split()) for block in blocks for part in re.split(r"\n\s*\n", block)]
    return [paragraph for paragraph in paragraphs if paragraph]


@cache
def entries() -> dict[str, dict[str, str]]:
    """Key -> fields of its entry in references.bib."""
    text = (ROOT / "docs" / "references.bib").read_text(encoding="utf-8")
    found = {}
    for key, body in re.findall(r"^@\w+\{(\w+),\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
        assert key not in found, f"{key} is there twice"
        found[key] = dict(re.findall(r"(\w+)\s*=\s*\{(.*?)\},?\n", body, re.DOTALL))
    return found


def surname(key: str) -> str:
    """Of the first author, without accents."""
    first = entries()[key]["author"].partition(",")[0]
    return re.sub(r"\\[a-zA-Z]+|[\\{}'\"~^]", "", first)


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Those that GitHub gives the headings of a page."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(page)}


def tables(page: Path, columns: tuple[str, ...]) -> list[dict[str, list[str]]]:
    """Rows of the tables that have all these columns: column -> its cells, for two columns may have one name."""
    rows, head = [], None
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            head = None
        elif head is None:
            head = cells
        elif set(columns) <= set(head) and not set(line) <= set("|- "):
            row: dict[str, list[str]] = {}
            for name, cell in zip(head, cells, strict=True):
                row.setdefault(name, []).append(cell)
            rows.append(row)
    return rows


def rows_of(columns: tuple[str, ...]) -> list:
    return [
        pytest.param(row, id=f"{page.stem}: {row[columns[0]][0]}") for page in PAGES for row in tables(page, columns)
    ]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def count(name: str, settings: list[str], channels: int, maps: int, dims: int, head: str | None = None) -> str:
    recipe = Recipe(model=name, architecture=NAMED[name].architecture)
    for setting in settings:
        recipe = set_value(recipe, setting)
    network = validate(recipe.architecture, in_channels=channels, classes=maps, spatial_dims=dims)
    return f"{count_parameters(network if head is None else network.prune(head)):,}"


def test_nothing_cites_a_document_that_does_not_ship():
    cited = "specs" + ","
    assert [relative(path) for path in [*SOURCES, *DOCUMENTS] if cited in path.read_text(encoding="utf-8")] == []


def faults(said: str) -> list[str]:
    """What a comment or docstring cites that is not there, or cites without a key."""
    found = [f"{key} is not in docs/references.bib" for key in KEY.findall(said) if key not in entries()]
    found += [f"{name}: cite by a key of docs/references.bib" for name in SPELT_OUT.findall(said)]
    source = said.partition("Source: ")[2]
    if source and not KEY.search(source) and "docs/papers/" not in source:
        found.append("a source without a key of docs/references.bib")
    found += [f"{file} is not there" for file in re.findall(r"\bdocs/[\w/.-]*\w", said) if not (ROOT / file).exists()]
    for name, sections in re.findall(r"docs/papers/(\w+\.md)((?:,? (?:and )?section \d+)*)", said):
        page = PAPERS / name
        numbers = {heading.partition(".")[0] for heading in headings(page)} if page.exists() else set()
        found += [f"{name} has no section {number}" for number in re.findall(r"\d+", sections) if number not in numbers]
    return found


def test_what_comments_and_docstrings_cite_is_there():
    assert [(relative(path), fault) for path in SOURCES for said in remarks(path) for fault in faults(said)] == []


@pytest.mark.parametrize(
    "said",
    [
        "Source: UNet++, Eq. 1.",
        "as Zhou et al. 2018 have it",
        "Source: UNet++ (zhou" + "2017), Eq. 1",
        "docs/papers/unetpp.md, section 9",
        "docs/papers/unetpp.md, section 1 and section 9",
        "docs/papers/nothing.md",
    ],
)
def test_a_wrong_citation_is_found(said):
    assert faults(said)
    assert not faults("Source: UNet++ (zhou2018), Eq. 1. Reading: docs/papers/unetpp.md, section 1 and section 2.")


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_of_a_document_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith(("http:", "https:")):
            continue
        file, _, anchor = target.partition("#")
        page = (path.parent / file) if file else path
        assert page.exists(), target
        assert not anchor or anchor in anchors(page), target


@pytest.mark.parametrize("key", entries())
def test_an_entry_is_complete_and_cited(key):
    entry = entries()[key]
    assert {"author", "title", "year"} <= set(entry)
    assert key == surname(key).split()[-1].lower() + entry["year"]
    cited = any(key in said for path in SOURCES for said in remarks(path))
    assert cited or any(f"`{key}`" in page.read_text(encoding="utf-8") for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_a_page_names_keys_that_exist_and_counts_that_are_checked(page):
    text = page.read_text(encoding="utf-8")
    assert set(KEY.findall(text)) <= set(entries())
    checked = [row for kind in (COUNTED, PLACED, LAYERS) for row in tables(page, kind)]
    assert set(MILLIONS.findall(text)) == set(MILLIONS.findall(str(checked)))
    numbers = [int(heading.partition(".")[0]) for heading in headings(page) if heading[0].isdigit()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_index_has_every_network_and_the_list_every_paper():
    rows = tables(PAPERS / "README.md", INDEX)
    patterns = [pattern for row in rows for pattern in code(row[INDEX[1]][0])]
    assert [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in NAMED)] == []
    assert [name for name in NAMED if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    (papers,) = re.findall(r"^- Papers: .*?(?=^\S|\Z)", NETWORKS.read_text("utf-8"), re.M | re.S)
    for row in rows:
        (key,) = code(row["key"][0])
        listed = rf"{surname(key)}(?: et al\.| and \w+)?\s+{entries()[key]['year']} \("
        assert re.search(listed, re.sub(r"\s+", " ", papers)), key


@pytest.mark.parametrize("name", NAMED)
def test_the_paper_of_a_network_is_in_the_references(name):
    for author, year in re.findall(r"(\w+) ((?:19|20)\d\d)\b", NAMED[name].paper):
        assert author.lower() + year in entries()


@pytest.mark.parametrize("row", rows_of(COUNTED))
def test_a_network_has_the_counted_parameters(row):
    name, *more = code(row["network"][0])
    settings = [setting for setting in more if "=" in setting]
    (head,) = [node for node in more if "=" not in node] or [None]
    channels, maps, dims = map(int, re.fullmatch(r"(\d) → (\d+), (\d)D", row["for"][0]).groups())
    assert count(name, settings, channels, maps, dims, head) == row["parameters"][0]
    (model,) = models(name)
    printed = row.get("printed", [""])
    assert printed[0] in ("", f"{model.entry.published} M")
    assert printed[1:] in ([], [model.entry.published_gmacs])
    for column, work in (("ptflops", model.ptflops_gmacs), ("GMACs", model.gmacs)):
        assert column not in row or f"{work():.2f}" == row[column][0]


@pytest.mark.parametrize("row", rows_of(PLACED))
def test_a_network_with_its_layers_there_has_the_counted_parameters(row):
    (name,), nodes = code(row["base"][0]), code(row["spatial dependency layers at"][0])
    options = f"{{sdn_layers: {row['at a node'][0]}, residual: {str(row['form'] == ['residual']).lower()}, "
    options += "state_channels: 150, directions: [right, down]}"
    layers = f"{{kind: sdn, nodes: [{', '.join(nodes)}], options: {options}}}"
    assert count(name, [f"architecture.conv=[{layers}, double_conv]"], 3, 1, 2) == row["parameters"][0]


@pytest.mark.parametrize("row", rows_of(LAYERS))
def test_a_spatial_dependency_layer_has_the_counted_parameters(row):
    width = int(row["channels"][0])
    for column, residual in (("plain layer", False), ("residual layer", True)):
        with torch.device("meta"):
            layer = SpatialDependency(2, width, width, state_channels=150, directions=2, residual=residual)
        assert f"{count_parameters(layer):,}" == row[column][0]


@pytest.mark.parametrize("row", tables(NETWORKS, ("name", "network", "parameters", "published")))
def test_the_list_of_networks_has_the_counted_parameters(row):
    (model,) = models(*code(row["name"][0]))
    assert f"{model.parameters():,}" == row["parameters"][0]
    assert row["published"][0] in ("", "not printed", f"{model.entry.published} M")


def test_the_readme_has_every_recommended_network_as_the_list_has_it():
    columns = ("name", "network", "parameters")
    shown = {row["name"][0]: row["parameters"] for row in tables(ROOT / "README.md", columns)}
    listed = {row["name"][0]: row["parameters"] for row in tables(NETWORKS, (*columns, "published"))}
    assert shown == {f"`{name}`": listed.get(f"`{name}`") for name in NAMED if "/" not in name}
