"""Hooks of mkdocs: what the pages under docs/ get when the site is built (`make docs`)."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tools.docs import commands, formulas, links, parts, recipe_keys  # noqa: E402


def recipe_page() -> str:
    """Keys and parts of recipes; a key that nothing explains ends the build."""
    if silent := recipe_keys.missing():
        raise PluginError("; ".join(silent))
    return f"{recipe_keys.page()}\n\n{parts.page()}"


def python_page() -> str:
    """The public functions and classes, for mkdocstrings."""
    import ulna

    blocks = []
    for name, place in ulna._PLACES.items():
        blocks.append(
            f"::: {place.replace(':', '.')}\n    options:\n      heading: ulna.{name}\n      toc_label: {name}"
        )
    return "\n\n".join(blocks)


def examples_page() -> str:
    """The scripts and the notebook of examples/, as they are."""
    scripts = {path.name: path.read_text(encoding="utf-8").strip() for path in sorted((ROOT / "examples").glob("*.py"))}
    said = [f"## {name}\n\n```python\n{text}\n```" for name, text in scripts.items()]
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        said.append(f"## {path.name}")
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            said.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text.replace("# ", "### ", 1))
    return "\n\n".join(said)


PICTURE = re.compile(r"!\[([^\]]*)\]\((\S+)-light\.png\)")  # which has a twin for dark pages

GENERATED: dict[str, Callable[[], str]] = {
    "<!-- generated: recipe -->": recipe_page,
    "<!-- generated: commands -->": commands.page,
    "<!-- generated: python -->": python_page,
    "<!-- generated: examples -->": examples_page,
}


def on_files(files: Files, config: Any) -> Files:
    """Pages and files from outside docs/."""
    for source, address in links.ELSEWHERE.items():
        if (ROOT / source).exists():
            files.append(File.generated(config, address, abs_src_path=str(ROOT / source)))
    for address, path in links.linked_files().items():
        files.append(File.generated(config, address, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links, pictures, generated parts, formulas."""
    address = page.file.src_uri
    if address == "index.md":
        page.meta["hide"] = ["navigation", "toc"]
    sources = {place: source for source, place in links.ELSEWHERE.items()}
    text = links.rewritten(markdown, sources.get(address, f"docs/{address}"), address)
    text = PICTURE.sub(r"![\1](\2-light.png#only-light)\n![\1](\2-dark.png#only-dark)", text)
    for mark, made in GENERATED.items():
        if mark in text:
            text = text.replace(mark, made())
    return formulas.inline(text)
