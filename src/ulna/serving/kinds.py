"""Kinds of uploads: known by the ending of the name and by the first bytes, which must agree. The name itself is no path."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

from ulna.data.formats.source import suffix_of
from ulna.serving.limits import Refused

HEAD = 352  # bytes that tell a kind
_GZIP, _ZIP = (b"\x1f\x8b",), (b"PK\x03\x04",)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NIFTI = tuple((size).to_bytes(4, order) for size in (348, 540) for order in ("little", "big"))  # type: ignore[arg-type]
# ending -> where the signature stands, and what it may be
KINDS: dict[str, tuple[int, tuple[bytes, ...]]] = {
    ".png": (0, (b"\x89PNG\r\n\x1a\n",)),
    ".jpg": (0, (b"\xff\xd8",)),
    ".jpeg": (0, (b"\xff\xd8",)),
    ".bmp": (0, (b"BM",)),
    ".tif": (0, _TIFF),
    ".tiff": (0, _TIFF),
    ".ome.tif": (0, _TIFF),
    ".ome.tiff": (0, _TIFF),
    ".nii": (0, _NIFTI),
    ".nii.gz": (0, _GZIP),
    ".mha": (0, (b"ObjectType", b"Comment", b"NDims")),
    ".nrrd": (0, (b"NRRD",)),
    ".npy": (0, (b"\x93NUMPY",)),
    ".npz": (0, _ZIP),
    ".dcm": (128, (b"DICM",)),
    ".zip": (0, _ZIP),
}
# of a body; what follows a semicolon does not count
BODY_TYPES = (
    "application/octet-stream",
    "application/gzip",
    "application/x-gzip",
    "application/zip",
    "application/dicom",
)
_KNOWN = ", ".join(KINDS)


class Named(NamedTuple):
    """What is kept of a client's file name.

    Args:
        stem: letters, digits, dots, dashes and underscores, for the name of the download.
        suffix: one of `KINDS`.
    """

    stem: str
    suffix: str


def named(given: str | None) -> Named:
    """What is kept of the name that a client gives.

    Raises:
        Refused: if it gives none, or the ending is unknown.

    Example:
        >>> named("../../Fr%C3%A4nk 1.NII.GZ")
        Named(stem='Fr_nk_1', suffix='.nii.gz')
    """
    if not given:
        raise Refused(400, f"the upload has no name; send its name, which ends in one of {_KNOWN}, as X-File-Name")
    last = re.split(r"[/\\]", unquote(given)[:1000])[-1]
    suffix = suffix_of(last)
    if suffix not in KINDS:
        raise Refused(415, f"this kind of file is not read here; send one of {_KNOWN}, and a DICOM series as a .zip")
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", last[: len(last) - len(suffix)]).strip("._")[:100]
    return Named(stem or "image", suffix)


def check_head(head: bytes, suffix: str) -> None:
    """Hold the first bytes of an upload to the ending of its name.

    Raises:
        Refused: if they do not fit.
    """
    place, signatures = KINDS[suffix]
    if not head:
        raise Refused(400, "the upload is empty; send the file as the body")
    if not head[place:].startswith(signatures):
        raise Refused(415, f"the bytes are those of no {suffix} file; send the file as it is, under its own name")


def check_type(content_type: str) -> bool:
    """Whether a body is a form; what is neither a form nor plain bytes is refused.

    Raises:
        Refused: for any other type.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return True
    if not kind or kind in BODY_TYPES or kind.startswith("image/"):
        return False
    raise Refused(415, "the body is no file; send it as application/octet-stream, or as a form with the field `file`")
