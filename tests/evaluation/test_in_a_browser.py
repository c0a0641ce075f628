"""What a browser makes of a page: it sorts without a script, and no page is wider than a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

from tests.evaluation.test_report import EPOCHS, case, evaluation, page, row, run  # noqa: F401 - a fixture

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no chromium")]

CASES = {"a": (0.9, 2.0), "b": (0.2, 3.0), "c": (0.5, 9.0)}  # Dice, HD95
LOOK = """<script>
onload = () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument, find = (id) => page.getElementById(id);
  const rows = () => [...page.querySelectorAll('[role=row]:not(.head)')]
    .sort((one, other) => one.getBoundingClientRect().top - other.getBoundingClientRect().top)
    .map((row) => row.firstChild.textContent);
  const said = {width: page.documentElement.scrollWidth, ran: page.title, dice: rows()};
  find("by-7").click(); said.hd95 = rows();
  find("other-way").click(); said.turned = rows();
  find("by-0").click(); find("other-way").click(); said.name = rows();
  document.title = JSON.stringify(said);
};
</script>"""


def seen(text: str, tmp_path) -> dict:
    """What the frame around a page finds in it, 400 pixels wide."""
    outer = tmp_path / "outer.html"
    frame = f'<iframe style="width:400px;height:900px;border:0" srcdoc="{html.escape(text)}"></iframe>'
    outer.write_text(f"<!doctype html><title>none</title>{LOOK}{frame}", encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [str(BROWSER), *flags, outer.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout)[1]))


def test_cases_are_sorted_by_any_column_both_ways_and_a_phone_does_not_scroll_sideways(run, tmp_path):  # noqa: F811
    (run / "metrics.csv").write_text(EPOCHS)
    long = "a_class_with_a_very_long_name_as_they_come"
    rows = [row(name, of, dice, hd95=distance) for name, (dice, distance) in CASES.items() for of in ("liver", long)]
    text = page(run, evaluation(("liver", long), rows), [case(name, dice) for name, (dice, _) in CASES.items()])
    said = seen(text, tmp_path)
    assert said["width"] <= 400
    assert said["dice"] == ["b", "c", "a"]
    assert said["hd95"] == ["c", "b", "a"] and said["turned"] == ["a", "b", "c"]
    assert said["name"] == ["a", "b", "c"]
