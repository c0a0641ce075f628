"""The sweep line by line on a GPU without Triton: recorded once for every shape as a CUDA graph, and replayed.

A line is a dozen launches of little work, so by itself a GPU waits for launches most of the time. A graph holds them ready.
It works on memory of its own: what is swept is copied in, and the answer copied out. Layers of one shape share a recording.

None of it is measured yet: `python benchmarks/sweep_gpu.py` does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ulna.kernels import native
from ulna.kernels.sweep import lines as sweep_lines

log = logging.getLogger(__name__)

MOST = 64  # recordings that are kept, the first ones; what comes later goes line by line
Tensors = tuple[Tensor, ...]
_kept: dict[Any, Recording] = {}
_met: set[Any] = set()
_broken: list[str] = []


class Recording(NamedTuple):
    """A graph, the memory that it reads, and the memory that it writes."""

    replay: Callable[[], object]
    inputs: Tensors
    outputs: Tensors


def available(x: Tensor) -> bool:
    """Whether sweeps of this map can be recorded: on a GPU, and not within another recording."""
    if not x.is_cuda or _broken:
        return False
    with _on(x.device):
        return not torch.cuda.is_current_stream_capturing()


def forward(x: Tensor, weights: Tensors, axis: int, reverse: bool, keep: bool, operands: torch.dtype) -> Tensors:
    """As `sweep_lines.forward`."""
    return _replayed(_forward, (x, *weights), axis, reverse, keep, operands)


def backward(
    grad: Tensor,
    x: Tensor,
    swept: Tensor,
    gates: Tensor,
    weights: Tensors,
    axis: int,
    reverse: bool,
    operands: torch.dtype,
) -> Tensors:
    """As `sweep_lines.backward`."""
    return _replayed(_backward, (grad, x, swept, gates, *weights), axis, reverse, operands)


def _forward(tensors: Tensors, *settings: Any) -> Tensors:
    x, *weights = tensors
    return sweep_lines.forward(x, tuple(weights), *settings)


def _backward(tensors: Tensors, *settings: Any) -> Tensors:
    grad, x, swept, gates, weight_in, weight_hidden = tensors
    return sweep_lines.backward(grad, x, swept, gates, (weight_in, weight_hidden), *settings)


def _replayed(work: Callable[..., Tensors], tensors: Tensors, *settings: Any) -> Tensors:
    """Recorded when a shape comes for the second time: images that all differ in size are never worth it."""
    key = (work, settings, *((t.shape, t.dtype, t.device) for t in tensors))
    recording = _kept.get(key)
    if recording is None:
        if key not in _met:
            _met.add(key)
            return work(tensors, *settings)
        if len(_kept) >= MOST:
            return work(tensors, *settings)
    # memory made in inference mode could not be written outside it
    with torch.inference_mode(False), torch.no_grad(), _on(tensors[0].device):
        if recording is None:
            try:
                recording = _kept[key] = _record(work, tensors, *settings)
            except RuntimeError as error:  # out of memory too: lines need less
                _kept.clear()
                _broken.append(native.first_line(error))
                log.warning("sweeps cannot be recorded as a CUDA graph, they run line by line (%s)", _broken[0])
                return work(tensors, *settings)
        for memory, tensor in zip(recording.inputs, tensors, strict=True):
            memory.copy_(tensor)
        recording.replay()
        return tuple(output.clone() for output in recording.outputs)


def _on(device: torch.device) -> AbstractContextManager[object]:
    """With that GPU as the current one, whose streams are recorded."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _record(work: Callable[..., Tensors], tensors: Tensors, *settings: Any) -> Recording:
    inputs = tuple(t.detach().clone() for t in tensors)
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        work(inputs, *settings)  # libraries make their buffers before the recording
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = work(inputs, *settings)
    return Recording(graph.replay, inputs, outputs)
