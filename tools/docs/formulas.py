"""Formulas of the pages as MathML, which browsers draw themselves: no script, no font, no network.

GitHub's ways of writing them are read: blocks of ```math, and $...$ within a line.
"""

from __future__ import annotations

import html
import re
from typing import Any

INLINE = re.compile(r"(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?![\w$])")
CODE = re.compile(r"(^```.*?^```[ ]*$|`[^`\n]+`)", re.M | re.S)


def to_mathml(latex: str, *, block: bool) -> str:
    from latex2mathml.converter import convert  # only where pages are built

    return str(convert(latex.strip(), display="block" if block else "inline"))


def fence(source: str, language: str, css_class: str, options: Any, md: Any, **kwargs: Any) -> str:
    """A block of ```math, as the extension of fences asks for it."""
    return f'<div class="formula">{to_mathml(source, block=True)}</div>'


def inline(text: str) -> str:
    """A page whose $...$ outside of code are MathML."""
    parts = CODE.split(text)
    for number in range(0, len(parts), 2):
        parts[number] = INLINE.sub(lambda match: _in_a_line(match[1]), parts[number])
    return "".join(parts)


def _in_a_line(latex: str) -> str:
    made = to_mathml(html.unescape(latex), block=False)
    made = f'<span class="math">{made}</span>'  # a line that begins with it stays a line
    return made.replace("|", "&#x7C;").replace("*", "&#x2A;").replace("_", "&#x5F;")  # marks of tables and emphasis
