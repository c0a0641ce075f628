"""The files of the page, by the paths that they are served under. They hold no data, so they need no token."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ulna.evaluation.colours import CLASS_COLOURS
from ulna.version import version
from ulna.viewer.headers import POLICY

FOLDER = Path(__file__).parent / "static"
ABOUT = "/page/about.json"  # what kind of server it is, see `about`
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Served(NamedTuple):
    """A file as it is answered.

    Args:
        body: its bytes.
        headers: what is said of them.
    """

    body: bytes
    headers: dict[str, str]


@cache
def page_files() -> dict[str, Path]:
    """Path -> file, but for `ABOUT`; the page itself is `/`."""
    files = {f"/page/{path.name}": path for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES}
    return {"/": files.pop("/page/index.html"), **files}


def page_paths() -> tuple[str, ...]:
    """All paths of the page."""
    return (*page_files(), ABOUT)


@cache
def read_page(path: str) -> Served:
    """A file of the page."""
    file = page_files()[path]
    body = file.read_bytes()
    digest = hashlib.sha256(body).hexdigest()[:24]
    kept = {"ETag": f'"{digest}"', "Cache-Control": "no-cache"}  # asked for again, and answered 304
    return Served(body, {"Content-Type": TYPES[file.suffix], "Content-Security-Policy": POLICY, **kept})


def about(mode: str, *, token: bool = False) -> dict[str, Any]:
    """What the page has to know before it asks for anything.

    Args:
        mode: "serve", or "view" for files at hand.
        token: whether requests must bring one.
    """
    return {"mode": mode, "token": token, "version": version("ulna"), "colours": CLASS_COLOURS}


def about_body(mode: str, *, token: bool = False) -> bytes:
    """The same as JSON."""
    return json.dumps(about(mode, token=token)).encode()
