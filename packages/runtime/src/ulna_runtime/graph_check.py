"""What an ONNX file refers to, read from its bytes before onnxruntime sees them.

A graph may name files beside it that hold its weights (external data), and operators of foreign domains. Neither belongs into
an exported file, so the bytes are walked field by field: ONNX is a protocol buffer, of which a handful of fields matter here.
"""

from __future__ import annotations

from collections.abc import Iterator

from ulna_runtime.errors import UsageError

MOST_DEPTH = 32
DOMAINS = ("", "ai.onnx")  # of operators; functions of the file itself have domains of their own
EXTERNAL = 1  # TensorProto.DataLocation

# message -> field -> the message that lies in it
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 9: "opset", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}


def check_graph(data: bytes, name: str) -> None:
    """Refuse a graph that refers to other files or to operators that onnxruntime does not bring.

    Args:
        data: the bytes of an ONNX model.
        name: of the file, for messages.

    Raises:
        UsageError: if it does, or is no ONNX model.
    """
    view = memoryview(data)
    try:
        own = {_text(value) for number, value in _fields(view) if number == 25 for value in _texts(value, 10)}
        _walk(view, "model", name, own, 0)
        if not any(number == 7 for number, _ in _fields(view)):
            raise ValueError("no graph")
    except UsageError:
        raise
    except (ValueError, IndexError, UnicodeDecodeError):
        raise UsageError(f"{name}: is no ONNX graph that can be read; export the run again") from None


def _walk(view: memoryview, message: str, name: str, own: set[str], depth: int) -> None:
    if depth > MOST_DEPTH:
        raise UsageError(f"{name}: its graphs are nested too deeply; export the run again")
    inside = _INSIDE.get(message, {})
    for number, value in _fields(view):
        if message == "tensor" and (number == 13 or (number == 14 and value == EXTERNAL)):
            raise UsageError(
                f"{name}: its graph reads values from another file (external data), which an exported file never does; "
                "do not use it, and export the run again"
            )
        if message == "node" and number == 7 and not isinstance(value, int):
            domain = _text(value)
            if domain not in DOMAINS and domain not in own:
                raise UsageError(f"{name}: its graph uses operators of {domain[:80]!r}; export the run again")
        if number in inside:
            if isinstance(value, int):
                raise ValueError("a number where a message is expected")
            _walk(value, inside[number], name, own, depth + 1)


def _texts(view: memoryview | int, wanted: int) -> Iterator[memoryview]:
    if not isinstance(view, int):
        yield from (value for number, value in _fields(view) if number == wanted and not isinstance(value, int))


def _text(value: memoryview | int) -> str:
    return str(value) if isinstance(value, int) else bytes(value).decode()


def _fields(view: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Number and value of every field of a message; a value of fixed length counts as 0."""
    at, end = 0, len(view)
    while at < end:
        key, at = _varint(view, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(view, at)
            yield number, value
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            yield number, 0
        elif wire == 2:
            length, at = _varint(view, at)
            if at + length > end:
                raise ValueError("cut short")
            yield number, view[at : at + length]
            at += length
        else:
            raise ValueError("an unknown kind of field")
    if at != end:
        raise ValueError("cut short")


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number that is too long")
