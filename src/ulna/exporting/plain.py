"""The network alone, for other programs, as an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ulna.errors import UsageError
from ulna.system.extras import need

ABOUT = ("pipeline.json", "card.json")


def only_graph(members: Mapping[str, bytes], format: str) -> bytes:
    """The graph of an export that has one.

    Raises:
        UsageError: if it has several.
    """
    graphs = [name for name in members if name.endswith(".onnx")]
    if len(graphs) != 1:
        raise UsageError(f"--format {format} holds one graph, and this export has {len(graphs)}; take --format ulna")
    return members[graphs[0]]


def write_onnx(path: Path, graph: bytes, about: Mapping[str, bytes]) -> None:
    """Write a graph with what is said about it as metadata."""
    onnx = need("onnx")
    model = onnx.load_from_string(graph)
    onnx.helper.set_model_props(model, {name: text.decode() for name, text in about.items()})
    path.write_bytes(model.SerializeToString())
