"""JSON and YAML that others wrote, read in bounded time and memory: every fault is one clear DataError.

A run folder or a data set may come from anyone. A file of a few hundred bytes can stand for gigabytes (aliases of aliases in
YAML), exhaust the stack (brackets in brackets) or never end (a pipe).
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ulna.errors import DataError, Problem, printable

LARGEST_JSON = 1 << 28  # bytes
LARGEST_YAML = 1 << 22  # bytes
DEEPEST = 64  # levels of lists in lists
MOST_NODES = 100_000  # values and keys of a YAML file, each alias counted with all that it stands for

REMEDY = "restore or rewrite it"
_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # both make plain values alone


def read_text(path: Path, largest: int) -> str:
    """The text of a regular file of at most `largest` bytes, with or without a byte order mark.

    Raises:
        DataError: if it is missing, larger, of another kind, or not UTF-8.
    """
    try:
        found = path.stat()  # before it is opened: a pipe would never end
        if not stat.S_ISREG(found.st_mode):
            raise _fault(path, "is not a file")
        if found.st_size > largest:
            raise _fault(path, f"has {found.st_size:,} bytes; at most {largest:,} are read")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _fault(path, f"cannot be read ({error.strerror or error})", "check the path") from None
    except UnicodeDecodeError as error:
        raise _fault(path, f"cannot be read (not UTF-8 text at byte {error.start})") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        DataError: if it cannot be read, or is not JSON.
    """
    return parse_json(read_text(path, LARGEST_JSON), str(path))


def read_json_object(path: Path) -> dict[str, Any]:
    """The fields of a JSON file.

    Raises:
        DataError: if it cannot be read, or is not a JSON object.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise _fault(path, f"holds {type(value).__name__} and no fields")
    return value


def parse_json(text: str, source: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text; `pairs` makes the objects, a dict where it is left out.

    Raises:
        DataError: naming `source`, if it is not JSON, or lists lie too deep in lists.
    """
    try:
        value = json.loads(text, object_pairs_hook=pairs)
        if _depth_above(value, DEEPEST):
            raise RecursionError
        if "\\ud" in text.lower():  # half of a character, written as an escape, is no text
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        what = f"is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg})"
    except RecursionError:
        what = f"cannot be read (more than {DEEPEST} levels of lists in lists)"
    except ValueError as error:  # a whole number of thousands of digits, or what `pairs` refuses
        what = f"cannot be read ({printable(error)})"
    raise _fault(source, what) from None


def _depth_above(value: Any, most: int) -> bool:
    layer = [value]
    for _ in range(most):
        layer = [
            inner
            for outer in layer
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not layer:
            return False
    return True


def read_yaml(path: Path) -> dict[str, Any]:
    """The fields of a YAML file, as they stand there; none for an empty file.

    Raises:
        DataError: if it cannot be read, or holds no YAML mapping.
    """
    values = parse_yaml(read_text(path, LARGEST_YAML), str(path))
    if not isinstance(values, dict | None):
        raise _fault(path, f"holds {type(values).__name__} and no fields", "write `field: value` lines")
    return values or {}


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text; no code in it is ever run.

    Raises:
        DataError: naming `source`, if it is not YAML, or stands for more than it says.
    """
    try:
        _check_bounds(text)
        return yaml.load(text, Loader=_SAFE)
    except yaml.MarkedYAMLError as error:
        place = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        why = place + (error.problem or "not YAML")
    except RecursionError:
        why = f"more than {DEEPEST} levels of lists in lists"
    except Exception as error:
        # values that no type takes: dates of month 13, numbers without digits, keys that are lists
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise _fault(source, f"not readable as YAML ({printable(why)})") from None


def _check_bounds(text: str) -> None:
    """Go through a YAML text without making anything of it, and raise where it goes too deep or stands for too much."""
    # of the document and of the collections that are open: values, each alias counted with all that it means
    sizes = [0]
    names: list[str | None] = []  # the anchors of those collections
    known: dict[str, int] = {}  # anchor -> size
    for event in yaml.parse(text, Loader=_SAFE):
        if isinstance(event, yaml.CollectionStartEvent):
            if len(sizes) > DEEPEST:
                raise RecursionError
            sizes.append(1)
            names.append(event.anchor)
            if event.anchor is not None:
                known[event.anchor] = MOST_NODES + 1  # an alias of itself never ends
        elif isinstance(event, yaml.CollectionEndEvent):
            size, name = sizes.pop(), names.pop()
            sizes[-1] += size
            if name is not None:
                known[name] = size
        elif isinstance(event, yaml.AliasEvent):
            sizes[-1] += known.get(str(event.anchor), 1)
        elif isinstance(event, yaml.ScalarEvent):
            sizes[-1] += 1
            if event.anchor is not None:
                known[event.anchor] = 1
        if sizes[-1] > MOST_NODES:
            raise ValueError(f"it stands for more than {MOST_NODES:,} values")


def _fault(source: object, what: str, remedy: str = REMEDY) -> DataError:
    return DataError([Problem(printable(source), what, remedy)])
