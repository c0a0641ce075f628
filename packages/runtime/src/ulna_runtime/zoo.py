"""The segmenters that come with this package, by name: `zoo:nuclei` stands for a file of `ulna export`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulna_runtime.bundle import read_bundle
from ulna_runtime.errors import UsageError

PREFIX = "zoo:"
FOLDER = Path(__file__).parent / "zoo_files"


@dataclass(frozen=True)
class Entry:
    """A segmenter of the zoo.

    Args:
        name: as in `zoo:NAME`.
        file: of `ulna export`.
        bytes: of the file.
        card: the model card.
    """

    name: str
    file: Path
    bytes: int
    card: Mapping[str, Any]

    @property
    def images(self) -> str:
        """What it reads, in a few words."""
        images = self.card.get("images", {})
        channels = images.get("channels", [])
        return f"{images.get('dimensions')}D, {len(channels)} channel{'s' if len(channels) > 1 else ''}"

    @property
    def structures(self) -> str:
        """What it finds."""
        return ", ".join(self.card.get("structures", []))

    @property
    def dice(self) -> str:
        """On cases that it never saw, with the interval."""
        return str(self.card.get("scores", {}).get("dice", "not known"))

    @property
    def examples(self) -> Path | None:
        """A folder of images that it never saw, with their labels beside; None where it has none."""
        folder = self.file.with_name(f"{self.name}_images")
        return folder if folder.is_dir() else None

    @property
    def licence(self) -> str:
        """Of the weights."""
        return str(self.card.get("licence", "not stated"))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        told = {"images": self.images, "structures": self.structures, "dice": self.dice, "licence": self.licence}
        told |= {} if self.examples is None else {"examples": str(self.examples / "images")}
        return {"name": PREFIX + self.name, "file": str(self.file), "bytes": self.bytes, **told}


def names() -> list[str]:
    """Of all segmenters."""
    return sorted(path.stem for path in FOLDER.glob("*.ulna"))


def entries() -> list[Entry]:
    """All segmenters, with their cards."""
    files = [FOLDER / f"{name}.ulna" for name in names()]
    return [Entry(file.stem, file, file.stat().st_size, read_bundle(file, graphs=False).card) for file in files]


def is_named(path: str | Path) -> bool:
    """Whether a word names a segmenter of the zoo rather than a path."""
    return str(path).startswith(PREFIX)


def located(path: str | Path) -> Path:
    """The file that a word means: that of a segmenter of the zoo, or the path that it is.

    Raises:
        UsageError: for a name that the zoo does not have, with the nearest.
    """
    if not is_named(path):
        return Path(path)
    name, known = str(path).removeprefix(PREFIX), names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        meant = f"; did you mean {PREFIX}{near[0]}?" if near else ""
        raise UsageError(
            f"{path}: no segmenter of this name comes with ulna-runtime{meant} (there are: {_told(known)})"
        )
    return FOLDER / f"{name}.ulna"


def _told(known: list[str]) -> str:
    return ", ".join(PREFIX + name for name in known) or "none"
