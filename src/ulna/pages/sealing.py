"""The last line of a page: who wrote it, and a digest of all before it, by which ulna knows a page of its own."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

PAGE_FILE = "report.html"
_SEAL = re.compile(rb"<!-- ulna ([a-z]+) ([0-9a-f]{64}) -->\n\Z")


def sealed(text: str, verb: str) -> str:
    """A page with the seal of the verb that wrote it."""
    return f"{text}<!-- ulna {verb} {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def writer_of(path: Path) -> str:
    """The verb that wrote a page; empty where ulna did not write it, or it was changed since.

    Raises:
        OSError: if it cannot be read.
    """
    content = path.read_bytes()
    found = _SEAL.search(content)
    if found is None or hashlib.sha256(content[: found.start()]).hexdigest().encode() != found[2]:
        return ""
    return found[1].decode()
