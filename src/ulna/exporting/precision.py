"""Smaller numbers in a graph: weights in half precision, or convolutions in 8 bits."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from ulna.system.extras import need

LEAST = 64  # values of a tensor that is worth storing in half precision
LARGEST = 65504.0  # of float16


def half_weights(model: bytes) -> bytes:
    """The graph with its weights stored in float16, and read as float32: half the bytes, and the speed that it had.

    Few processors multiply float16, and onnxruntime none on a CPU, so nothing is gained by computing in it.
    """
    onnx = need("onnx")
    graph = (made := onnx.load_from_string(model)).graph
    casts, kept = [], []
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < LEAST or not (np.abs(values) <= LARGEST).all():
            kept.append(tensor)
            continue
        half = f"{tensor.name}.half"
        kept.append(onnx.numpy_helper.from_array(values.astype(np.float16), half))
        casts.append(onnx.helper.make_node("Cast", [half], [tensor.name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    return bytes(made.SerializeToString())


def weights_of(network: nn.Module, precision: str) -> bytes:
    """The weights as a safetensors file: in half precision where the graph is not in full."""
    half = precision != "fp32"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    return save(
        {
            name: tensor.half() if half and tensor.dtype == torch.float32 and tensor.abs().max() <= LARGEST else tensor
            for name, tensor in tensors.items()
        }
    )


def quantized(model: bytes, windows: Sequence[NDArray[np.float32]]) -> bytes:
    """The graph with its convolutions in 8 bits: weights by channel, maps by the range that they have on `windows`.

    Args:
        model: of float32.
        windows: (1, C, *S) each, as the network sees them.
    """
    quantization: Any = need("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(windows)

        def get_next(self) -> dict[str, Any] | None:
            window = next(self.left, None)
            return None if window is None else {"image": window}

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(model)
        quantization.quantize_static(
            source,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        return target.read_bytes()
