"""Links of the pages in the site: files outside docs/ come along, and pages outside it have an address there."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# pages that lie elsewhere in the repository, and where the site has them
ELSEWHERE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
    "benchmarks/results/README.md": "benchmarks.md",
}
FRONT = {"README.md": "index.md"}  # the site says the same on a page of its own
FILES = "files"  # where other linked files come along
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)?(#[^)\s]*)?\)")


def linked_files() -> dict[str, Path]:
    """Address in the site -> file: whatever the pages link outside docs/ that is no page."""
    found = {}
    for page in [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in ELSEWHERE)]:
        if not page.exists():
            continue
        for _, _, target, _ in LINK.findall(page.read_text(encoding="utf-8")):
            if name := _outside(page.relative_to(ROOT).as_posix(), target):
                path = ROOT / name
                if path.is_file() and path.suffix != ".md" and not name.startswith("docs/"):
                    found[f"{FILES}/{name}"] = path
    return found


def rewritten(text: str, source: str, address: str) -> str:
    """The links of a page in the site.

    Args:
        text: Markdown.
        source: where the page lies in the repository.
        address: where it lies under docs/, or would.
    """

    def changed(match: re.Match[str]) -> str:
        mark, words, target, anchor = match.groups()
        name = _outside(source, target or "")
        if name is None:
            return match[0]
        if name.startswith("docs/"):
            place = name.removeprefix("docs/")
            if (ROOT / name).is_dir():
                place = f"{place.rstrip('/')}/README.md"
        elif name in ELSEWHERE or name in FRONT:
            place = ELSEWHERE.get(name) or FRONT[name]
        elif (ROOT / name).is_file() and not name.endswith(".md"):
            place = f"{FILES}/{name}"
        else:
            return words  # a folder, or a page that the site leaves out
        where = posixpath.relpath(place, posixpath.dirname(address) or ".")
        return f"{mark}[{words}]({where}{anchor or ''})"

    parts = re.split(r"(^```.*?^```$|`[^`\n]+`\S)", text, flags=re.M | re.S)  # code stays as it is
    return "".join(part if part.startswith("```") else LINK.sub(changed, part) for part in parts)


def _outside(source: str, target: str) -> str | None:
    """The file that a link leads to, from the root; None for addresses and anchors."""
    if not target or re.match(r"[a-z]+:", target):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
