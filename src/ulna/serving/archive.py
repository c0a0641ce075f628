"""A zip of a DICOM series: everything that it promises is looked at before a file is made; its names are never paths."""

from __future__ import annotations

import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ulna.errors import UsageError

END = struct.Struct("<4s4H2LH")  # the end of the central directory
MOST_NAME = 400  # bytes of the central directory that a member may take, on average
_PIECE = 1 << 20
_ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_AGAIN = "zip the folder of the series again, alone"


def unpack(path: Path, folder: Path, limits: Mapping[str, Any]) -> Path:
    """Write the members of a zip into a new folder, under numbers in place of their names.

    Args:
        path: the zip.
        folder: is made; what a worker that died left in it is gone over.
        limits: `members`, `unpacked`, `ratio` and `left_free` of `Limits`.

    Returns:
        The folder.

    Raises:
        UsageError: if it is damaged, promises more than it may, or holds what a series does not.
    """
    _check_end(path, int(limits["members"]))
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            _check_members(path, members, limits)
            folder.mkdir(exist_ok=True)
            for number, info in enumerate(members):
                _write(path, archive, info, folder / f"{number:06d}")
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        struct.error,
        ValueError,
    ) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path}: is damaged or no zip that is read here; {_AGAIN}") from None
    return folder


def _check_end(path: Path, most: int) -> None:
    """The end of the directory, which says how long it is: that is read in one piece."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - END.size - 20))
        tail = file.read()
    end = tail[-END.size :]
    if len(end) < END.size or end[:4] != b"PK\x05\x06" or end[-2:] != b"\0\0":
        raise UsageError(f"{path}: is cut short, or ends in a comment; {_AGAIN}")
    _, disk, first_disk, here, count, length, _, _ = END.unpack(end)
    if disk or first_disk or here != count or b"PK\x06\x07" in tail[: -END.size] or length == 0xFFFFFFFF:
        raise UsageError(f"{path}: is a zip of several parts or in zip64; {_AGAIN}")
    if count > most or length > most * MOST_NAME:
        raise UsageError(
            f"{path}: holds {count} files in a directory of {length} bytes, of which {most} files are read; {_AGAIN}"
        )


def _check_members(path: Path, members: list[zipfile.ZipInfo], limits: Mapping[str, Any]) -> None:
    if not members:
        raise UsageError(f"{path}: holds no file; {_AGAIN}")
    if len(members) > limits["members"]:
        raise UsageError(f"{path}: holds {len(members)} files, of which {limits['members']} are read; {_AGAIN}")
    for info in members:
        name, mode = info.filename.replace("\\", "/"), info.external_attr >> 16
        if name.startswith("/") or name[1:2] == ":" or ".." in name.split("/"):
            raise UsageError(f"{path}: has a member whose name leads out of it; {_AGAIN}")
        if stat.S_IFMT(mode) and not stat.S_ISREG(mode):
            raise UsageError(f"{path}: has a member that is a link or no plain file; {_AGAIN}")
        if info.flag_bits & 1:
            raise UsageError(f"{path}: is encrypted; zip the series without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UsageError(f"{path}: is packed in a way that is not read here; {_AGAIN}")
    whole = sum(info.file_size for info in members)
    if whole > limits["unpacked"]:
        raise UsageError(
            f"{path}: unpacks to {whole / 1e6:.0f} MB, of which {limits['unpacked'] / 1e6:.0f} MB are read; send fewer slices"
        )
    if whole > limits["ratio"] * max(path.stat().st_size, 1):
        raise UsageError(f"{path}: unpacks to more than {limits['ratio']} times its size; {_AGAIN}")
    if whole + limits["left_free"] > shutil.disk_usage(path.parent).free:
        raise UsageError(f"{path}: there is no room to unpack it now; send it again later")


def _write(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    """One member, never more of it than it promises."""
    left = info.file_size
    with archive.open(info) as member, target.open("wb") as file:
        first = True
        while data := member.read(_PIECE):
            if first and data.startswith(_ARCHIVES):
                raise UsageError(f"{path}: holds an archive in it; {_AGAIN}")
            first, left = False, left - len(data)
            if left < 0:
                raise UsageError(f"{path}: has a member that is longer than it says; {_AGAIN}")
            file.write(data)
