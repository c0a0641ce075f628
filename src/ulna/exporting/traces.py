"""What torch's exporter writes about the machine in a graph, taken out of it."""

from __future__ import annotations

from typing import Any


def without_traces(model: Any) -> Any:
    """An ONNX model without remarks, of which torch makes many: files and lines of this machine, for every node.

    Args:
        model: a ModelProto; the same is returned.
    """
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    _clear_graph(model.graph)
    for function in model.functions:
        _clear(function)
        _clear_nodes(function.node)
    return model


def _clear_graph(graph: Any) -> None:
    _clear(graph)
    for one in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        _clear(one)
    _clear_nodes(graph.node)


def _clear_nodes(nodes: Any) -> None:
    for node in nodes:
        _clear(node)
        for attribute in node.attribute:  # of loops, which have graphs of their own
            _clear(attribute)
            for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                _clear_graph(graph)


def _clear(message: Any) -> None:
    for field in ("doc_string", "metadata_props"):
        if field in message.DESCRIPTOR.fields_by_name:
            message.ClearField(field)
