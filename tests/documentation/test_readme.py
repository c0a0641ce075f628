"""The README: short, with pictures for light and dark pages, and no figure that its source does not have."""

import re

import pytest

from tests.places import ROOT
from tools.docs.badges import BADGES, badges, project
from ulna.networks.catalog import NAMED

README = (ROOT / "README.md").read_text(encoding="utf-8")
WHY = re.search(r"## Why ulna\n\n(.*?)\n\n## ", README, re.S)[1]
REASONS = [" ".join(reason.split()) for reason in re.split(r"^- ", WHY, flags=re.M)[1:]]


def section(heading: str) -> str:
    return README.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_it_is_read_in_a_minute():
    assert len(README.splitlines()) <= 130
    assert "make demo " in section("Install") and "make test " in section("Install")
    assert len(re.findall(r"^ulna \w+", section("Six commands"), re.M)) == 6
    lines = re.search(r"```python\n(.*?)```", section("Six lines of Python"), re.S)[1]
    assert len([line for line in lines.splitlines() if line.strip()]) == 6
    assert len(REASONS) == 5


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason[2:20])
def test_every_figure_stands_in_the_page_that_is_linked(reason):
    (target,) = re.findall(r"\]\(([^)#]+)#[^)]*\)", reason)
    page = " ".join((ROOT / target).read_text(encoding="utf-8").split())
    figures = re.findall(r"\b\d+\.\d+\b|\d+ %|\d,\d{3}", reason)
    assert figures
    assert [figure for figure in figures if figure not in page] == []


def test_the_number_of_networks_is_that_of_the_catalogue():
    named = [name for name in NAMED if "/" not in name]
    assert len(named) == 17 and section("Networks").strip().startswith("Seventeen by name")


def test_pictures_are_there_for_light_and_dark_pages():
    pairs = re.findall(r'srcset="([^"]+)">\s*<img alt="[^"]+" src="([^"]+)"', README)
    assert len(pairs) == 3
    for dark, light in pairs:
        assert light == dark.replace("-dark", "-light") and dark != light
        assert max((ROOT / name).stat().st_size for name in (dark, light)) < 100_000
    assert "CC0" in README and "creativecommons.org/licenses/by-sa/4.0" in README


def test_badges_say_what_the_project_says_and_come_from_no_server():
    made = badges(project())
    shown = set(re.findall(r"\[!\[[^\]]*\]\(([^)]+)\)\]", README))
    assert shown == {f"docs/images/{name}" for name in made}
    for name, text in made.items():
        assert (BADGES / name).read_text(encoding="utf-8") == text, "python -m tools.docs.badges writes them anew"
    assert "Apache-2.0" in made["badge-licence.svg"] and "≥ 3.11" in made["badge-python.svg"]
