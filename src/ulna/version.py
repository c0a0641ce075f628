"""Which ulna this is: as it is installed, or as the project file of its checkout says."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def version(name: str) -> str:
    """The version of a package, as `importlib.metadata` says it; of ulna also where it runs without an installation.

    Raises:
        PackageNotFoundError: if it is neither installed nor this checkout.
    """
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        if name == "ulna" and PROJECT.is_file():
            return str(tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["version"])
        raise
