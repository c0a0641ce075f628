"""The exported file: a zip whose members are all listed with their sizes and digests, and nothing else.

manifest.json lists the members; pipeline.json says how an image becomes a mask; card.json is the model card; networks/*.onnx
are the graphs; weights.safetensors, where it is, begins another training. Everything is checked before anything is run: what
is no such file is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ulna_runtime.errors import UsageError
from ulna_runtime.graph_check import check_graph

FORMAT = "ulna-export"
OLDEST, VERSION = 1, 2  # 2 may hold a calibration: a program that does not apply it would write other masks
MANIFEST, PIPELINE, CARD = "manifest.json", "pipeline.json", "card.json"
WEIGHTS = "weights.safetensors"
GRAPHS = "networks/"
MOST_MEMBERS = 256
MOST_TEXT = 1 << 24  # bytes of a JSON member
MOST_GRAPH = (1 << 31) - 1  # bytes of a graph: what a protocol buffer holds
MOST_PACKED = 100  # bytes of a graph or of weights that one byte of the file stands for: numbers are packed less
SMALL = 1 << 20  # bytes of a member that may be packed more
MOST_NESTED = 64
AGAIN = "copy it again from where it came, or export the run again"


class Bundle(NamedTuple):
    """An exported file, read and checked.

    Args:
        path: of the file.
        digest: of all its members together.
        pipeline: how an image becomes a mask.
        card: the model card.
        graphs: name -> bytes of an ONNX model.
        weights: of the network as it was trained, a safetensors file; None where it has none.
    """

    path: Path
    digest: str
    pipeline: dict[str, Any]
    card: dict[str, Any]
    graphs: dict[str, bytes]
    weights: bytes | None = None


def members_digest(members: Mapping[str, Mapping[str, Any]]) -> str:
    """The digest of everything: of the names, sizes and digests of all members, in the order of their names."""
    lines = [f"{name}\0{facts['bytes']}\0{facts['sha256']}\n" for name, facts in sorted(members.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_bundle(path: Path, members: Mapping[str, bytes]) -> str:
    """Write members and their manifest as an exported file; the same members make the same bytes. Returns the digest."""
    listed = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in members.items()}
    digest = members_digest(listed)
    manifest = {"format": FORMAT, "version": VERSION, "digest": digest, "members": listed}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {MANIFEST: json.dumps(manifest, indent=1).encode(), **members}.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, data)
    return digest


def is_bundle(path: Path) -> bool:
    """Whether a path is a file that begins as a zip does."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def read_bundle(path: str | Path, *, graphs: bool = True) -> Bundle:
    """Read an exported file and check all of it.

    Args:
        path: the file.
        graphs: False reads and checks what is said alone, for the card.

    Raises:
        UsageError: if it is missing, cut short, changed, or holds what an exported file does not.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive, graphs)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; name a file that `ulna export` wrote") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, RuntimeError) as error:
        raise UsageError(f"{path}: is damaged or no exported file ({error}); {AGAIN}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}); {AGAIN}") from None


def _read(path: Path, archive: zipfile.ZipFile, graphs: bool) -> Bundle:
    infos = archive.infolist()
    if len(infos) > MOST_MEMBERS:
        raise UsageError(f"{path}: has {len(infos)} members, more than the {MOST_MEMBERS} that are read; {AGAIN}")
    names = [info.filename for info in infos]
    for info in infos:
        _check_member(path, info)
    if len(set(names)) < len(names):
        raise UsageError(f"{path}: has two members of one name; {AGAIN}")
    if MANIFEST not in names:
        raise UsageError(f"{path}: has no {MANIFEST}, so it is no file of `ulna export`; {AGAIN}")
    manifest = _object(path, MANIFEST, _bytes(path, archive, MANIFEST, None))
    if manifest.get("format") != FORMAT:
        raise UsageError(f"{path}: is no file of `ulna export` (its manifest says so); {AGAIN}")
    version = manifest.get("version")
    if type(version) is not int or not OLDEST <= version <= VERSION:
        raise UsageError(
            f"{path}: has version {str(version)[:40]} of the format, this program reads {OLDEST} to {VERSION}; "
            "install a newer ulna-runtime, or export the run again"
        )
    listed = _listed(path, manifest)
    if set(listed) | {MANIFEST} != set(names):
        odd = sorted(set(listed) ^ (set(names) - {MANIFEST}))[0]
        raise UsageError(f"{path}: its manifest and its members differ ({odd[:80]!r}); {AGAIN}")
    if manifest.get("digest") != members_digest(listed):
        raise UsageError(f"{path}: its digest does not fit its members, so it was changed; {AGAIN}")
    for name in (PIPELINE, CARD):
        if name not in listed:
            raise UsageError(f"{path}: has no {name}; {AGAIN}")
    found = {name: _bytes(path, archive, name, listed[name]) for name in listed if graphs or not _is_large(name)}
    for name, data in found.items():
        if _is_graph(name):
            check_graph(data, f"{path}: {name}")
    texts = {name: _object(path, name, data) for name, data in found.items() if not _is_large(name)}
    kept = {name: data for name, data in found.items() if _is_graph(name)}
    return Bundle(path, str(manifest["digest"]), texts[PIPELINE], texts[CARD], kept, found.get(WEIGHTS))


def _is_graph(name: str) -> bool:
    return name.startswith(GRAPHS) and name.endswith(".onnx")


def _is_large(name: str) -> bool:
    return name == WEIGHTS or _is_graph(name)


def _check_member(path: Path, info: zipfile.ZipInfo) -> None:
    name, mode = info.filename, info.external_attr >> 16
    plain = name in (MANIFEST, PIPELINE, CARD, WEIGHTS) or (_is_graph(name) and "/" not in name[len(GRAPHS) :])
    if not plain or "\\" in name or ".." in name or info.is_dir():
        raise UsageError(f"{path}: has a member {name[:80]!r}, which an exported file does not have; {AGAIN}")
    if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
        raise UsageError(f"{path}: its member {name!r} is a link or no plain file; {AGAIN}")
    if info.flag_bits & 1:
        raise UsageError(f"{path}: its member {name!r} is encrypted; {AGAIN}")
    most = MOST_GRAPH if _is_large(name) else MOST_TEXT
    if info.file_size > most:
        raise UsageError(f"{path}: its member {name!r} has {info.file_size} bytes, of which {most} are read; {AGAIN}")
    if _is_large(name) and info.file_size > SMALL + MOST_PACKED * info.compress_size:
        told = f"would unpack {info.compress_size} bytes to {info.file_size}"
        raise UsageError(f"{path}: its member {name!r} {told}, which no network does; {AGAIN}")


def _listed(path: Path, manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    listed = manifest.get("members")
    fits = isinstance(listed, dict) and all(
        isinstance(facts, dict) and isinstance(facts.get("sha256"), str) and type(facts.get("bytes")) is int
        for facts in listed.values()
    )
    if not fits:
        raise UsageError(f"{path}: its {MANIFEST} lists no members with sizes and digests; {AGAIN}")
    return listed  # type: ignore[return-value]


def _bytes(path: Path, archive: zipfile.ZipFile, name: str, facts: Mapping[str, Any] | None) -> bytes:
    """A member as its directory and the manifest promise it, never more."""
    promised = archive.getinfo(name).file_size
    if facts is not None and promised != facts["bytes"]:
        raise UsageError(f"{path}: {name} has {promised} bytes, its manifest says {facts['bytes']}; {AGAIN}")
    with archive.open(name) as member:
        data = member.read(promised + 1)
    if len(data) != promised:
        raise UsageError(f"{path}: {name} is not as long as it says; {AGAIN}")
    if facts is not None and hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise UsageError(f"{path}: the digest of {name} does not fit, so it was changed or damaged; {AGAIN}")
    return data


def _object(path: Path, name: str, data: bytes) -> dict[str, Any]:
    def refuse(text: str) -> float:
        raise ValueError(text)

    try:
        value = json.loads(data.decode(), parse_constant=refuse)
        if not isinstance(value, dict) or _depth(value) > MOST_NESTED:
            raise ValueError("no object")
    except (ValueError, RecursionError):
        raise UsageError(f"{path}: {name} is no JSON object that can be read; {AGAIN}") from None
    return value


def _depth(value: Any) -> float:
    inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inside), default=0) if not isinstance(value, float) or math.isfinite(value) else math.inf
