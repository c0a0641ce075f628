"""The files of the page: nothing of another place, no markup of strings, and NiiVue as it was published."""

import hashlib
import re

import pytest

from ulna.evaluation.colours import CLASS_COLOURS
from ulna.viewer.headers import POLICY
from ulna.viewer.page import ABOUT, FOLDER, about, page_files, page_paths, read_page

OURS = sorted(
    path for path in FOLDER.iterdir() if path.suffix in (".js", ".css", ".html") and "niivue" not in path.name
)


def test_niivue_is_the_file_that_the_note_names():
    (file,) = FOLDER.glob("niivue-*.js")
    note = (FOLDER / "niivue.txt").read_text()
    assert hashlib.sha256(file.read_bytes()).hexdigest() in note
    assert file.name in note
    assert "BSD 2-Clause" in (FOLDER / "niivue.LICENSE.txt").read_text()
    assert b"sourceMappingURL" not in file.read_bytes()[-2000:]


def test_one_file_alone_knows_niivue():
    knowing = [path.name for path in OURS if re.search(r"\bniivue\b(?!\.txt)|\bNiivue\b|NVImage", path.read_text())]
    assert knowing == ["volume.js"]


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_no_string_becomes_markup_and_nothing_comes_from_elsewhere(path):
    text = path.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    assert re.findall(r"(?:https?:)?//[\w-]+\.\w+", text) == []
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|<style|\sstyle=", text) or path.suffix == ".js"


def test_every_file_is_served_with_a_policy_and_a_tag():
    assert {"/", "/page/main.js", "/page/page.css", "/page/icon.svg"} <= set(page_files())
    assert set(page_paths()) == {*page_files(), ABOUT}
    assert not [path for path in page_files() if path.endswith(".txt")]
    for path in page_files():
        headers = read_page(path).headers
        assert headers["Content-Security-Policy"] == POLICY and headers["ETag"].startswith('"')
    assert "unsafe" not in POLICY and "http" not in POLICY and "default-src 'none'" in POLICY


def test_all_that_a_script_or_the_page_names_is_served():
    for path in OURS:
        for name in re.findall(r"""(?:from |import )"\./([\w.-]+)"|"page/([\w.-]+)\"""", path.read_text()):
            name = "".join(name)
            assert f"/page/{name}" in (*page_files(), ABOUT), (path.name, name)


def test_the_page_has_the_colours_of_all_pictures():
    assert about("view")["colours"] == CLASS_COLOURS
    assert about("serve", token=True)["token"] is True
