"""The badges of the README, from what pyproject.toml states: `python -m tools.docs.badges`. No server draws them."""

from __future__ import annotations

import tomllib
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BADGES = ROOT / "docs" / "images"
FONT = "Verdana, DejaVu Sans, Geneva, sans-serif"
WIDTH, PAD = 6.4, 6  # of a letter at 11 px, and beside words

SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="20" role="img" aria-label="{said}: {value}">
<title>{said}: {value}</title>
<rect width="{whole}" height="20" rx="3" fill="{colour}"/>
<path d="M3 0h{inner}v20H3a3 3 0 0 1-3-3V3a3 3 0 0 1 3-3z" fill="#4a5360"/>
<g fill="#fff" font-family="{font}" font-size="11" text-anchor="middle">
<text x="{left}" y="14" textLength="{words}">{said}</text>
<text x="{right}" y="14" textLength="{values}">{value}</text>
</g>
</svg>
"""


def badge(said: str, value: str, colour: str = "#16665b") -> str:
    """One badge as SVG."""
    words, values = round(WIDTH * len(said)), round(WIDTH * len(value))
    first, second = words + 2 * PAD, values + 2 * PAD
    return SVG.format(
        whole=first + second, inner=first - 3, left=first / 2, right=first + second / 2, words=words, values=values,
        said=escape(said), value=escape(value), colour=colour, font=FONT,
    )  # fmt: skip


def badges(project: dict[str, Any]) -> dict[str, str]:
    """File name -> SVG: the licence, the versions of Python and torch, and whether it is typed."""
    torch = next(one for one in project["dependencies"] if one.startswith("torch"))
    made = {
        "licence": badge("licence", project["license"]),
        "python": badge("python", project["requires-python"].replace(">=", "≥ ")),
        "torch": badge("torch", torch.removeprefix("torch").replace(">=", "≥ ")),
    }
    if "Typing :: Typed" in project["classifiers"]:
        made["typed"] = badge("typed", "mypy")
    return {f"badge-{name}.svg": text for name, text in made.items()}


def project() -> dict[str, Any]:
    """`[project]` of pyproject.toml."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def main() -> None:
    """Write all of them anew."""
    for name, text in badges(project()).items():
        (BADGES / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
