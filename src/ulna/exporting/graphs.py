"""A network as ONNX graphs: for images of any size where the exporter can write them so, else for one window."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ulna.errors import UsageError
from ulna.exporting.traces import without_traces
from ulna.inference.folding import fuse_batchnorm
from ulna.networks.heads.points import Points
from ulna.networks.network import Network
from ulna.recipe import Plan
from ulna.system.extras import EXTRA, need

log = logging.getLogger(__name__)

LONGEST = 4096  # multiples of the divisor along an axis, of the sizes that a graph states to take
TOLERANCE = 1e-3  # of logits, times the largest: an exporter that is wrong is wrong by much more


class Graphs(NamedTuple):
    """The graphs of one network.

    Args:
        facts: as pipeline.json holds them, without the names of the files.
        models: the graph, or encoder and decoder, as ONNX files.
    """

    facts: dict[str, Any]
    models: tuple[bytes, ...]


def make_graphs(network: Network, plan: Plan) -> Graphs:
    """The graphs of a network, with batch norm folded into its convolutions.

    Padding to a multiple of the strides is left to who runs them: inside a graph it would be frozen as the example had it.

    Raises:
        UsageError: if the network cannot be exported, with the reason.
    """
    for module in EXTRA:
        need(module)
    network = fuse_batchnorm(network.cpu())
    size = tuple(-(-p // d) * d for p, d in zip(plan.patch, network.divisor, strict=True))
    facts: dict[str, Any] = {"divisor": list(network.divisor)}
    with _quiet(), torch.no_grad():
        if isinstance(network.head, Points):
            head = network.head
            facts |= {"kind": "points", "fixed": list(plan.patch), "frequencies": head.frequencies, "gather": head.mode}
            return Graphs(facts, _encoder_and_decoder(network, head, plan, size))
        facts["kind"] = "dense"
        found = _of_any_size(network, plan, size)
        if found is None:
            facts["fixed"] = list(size)
            found = _exported(network, torch.zeros(1, plan.inputs, *size), None)
            if found is None or not _agrees(network, found, plan, [size]):
                raise UsageError(
                    f"{network.origin or 'this network'}: its network cannot be written as an ONNX graph by torch "
                    f"{torch.__version__}; predict with the run itself, or export a network of another kind"
                )
            log.info("note: this network is exported for windows of one size, %s", " x ".join(map(str, size)))
    return Graphs(facts, (found,))


def _of_any_size(network: Network, plan: Plan, size: tuple[int, ...]) -> bytes | None:
    """The graph for every multiple of the divisor; None where the exporter or onnxruntime cannot do it, or does it wrong."""
    larger = tuple(n + d * (axis + 1) for axis, (n, d) in enumerate(zip(size, network.divisor, strict=True)))
    smaller = tuple(max(d, n - d) for n, d in zip(size, network.divisor, strict=True))
    shapes = {
        axis: d * torch.export.Dim(f"s{axis}", min=1, max=LONGEST)
        if d > 1
        else torch.export.Dim(f"s{axis}", min=1, max=LONGEST)
        for axis, d in enumerate(network.divisor, start=2)
    }
    example = _unequal(size, network.divisor)
    found = _exported(network, torch.zeros(1, plan.inputs, *example), ({**shapes},))
    return found if found is not None and _agrees(network, found, plan, [size, larger, smaller]) else None


def _unequal(size: tuple[int, ...], divisor: tuple[int, ...]) -> tuple[int, ...]:
    """Lengths like these, each another multiple: equal ones the exporter takes for one, and a length of one for fixed.

    Example:
        >>> _unequal((16, 16, 4), (2, 2, 4))
        (16, 18, 8)
    """
    example: list[int] = []
    for n, d in zip(size, divisor, strict=True):
        n = max(n, 2 * d, 2)
        while n in example:
            n += d
        example.append(n)
    return tuple(example)


def _encoder_and_decoder(network: Network, head: Points, plan: Plan, size: tuple[int, ...]) -> tuple[bytes, ...]:
    names = [f"map{number}" for number in range(len(head.nodes))]
    encoder, image = _Encoder(network, head), torch.zeros(1, plan.inputs, *size)
    first = _exported(encoder, image, None, names)
    entered = head.decoder.weights()[0].shape[1]
    decoder = _Decoder(head)
    second = _exported(decoder, torch.zeros(64, entered), ({0: torch.export.Dim("points", min=1, max=1 << 24)},))
    if first is None or second is None:
        raise UsageError(
            f"{network.origin or 'this network'}: its point decoder cannot be written as an ONNX graph by torch "
            f"{torch.__version__}; predict with the run itself"
        )
    return first, second


class _Encoder(nn.Module):
    """A window to the maps that the head reads, in its order."""

    def __init__(self, network: Network, head: Points) -> None:
        super().__init__()
        self.network, self.nodes = network, head.nodes

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.network.features(image)
        return tuple(maps[name] for name in self.nodes)


class _Decoder(nn.Module):
    """(P, vectors and place) -> (P, K)."""

    def __init__(self, head: Points) -> None:
        super().__init__()
        self.decoder = head.decoder

    def forward(self, entered: Tensor) -> Tensor:
        logits: Tensor = self.decoder(entered[None], self.decoder.weights())
        return logits[0]


def _exported(model: nn.Module, example: Tensor, shapes: Any, names: list[str] | None = None) -> bytes | None:
    """The model as the bytes of an ONNX file; None where the exporter fails."""
    try:
        program: Any = torch.onnx.export(
            model.eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=names or ["logits"],
            dynamic_shapes=shapes,
        )
        file = io.BytesIO()
        need("onnx").save(without_traces(program.model_proto), file)
    except UsageError:
        raise
    except Exception as error:  # the exporter raises many types
        log.debug("the exporter failed: %s", error)
        return None
    return file.getvalue()


def _agrees(network: Network, model: bytes, plan: Plan, sizes: list[tuple[int, ...]]) -> bool:
    """Whether the graph answers noise of these sizes as the network does."""
    generator = torch.Generator().manual_seed(0)
    try:
        run = session(model)
        for size in sizes:
            image = torch.randn(1, plan.inputs, *size, generator=generator)
            expected, found = network(image), torch.from_numpy(run({"image": image.numpy()})[0])
            if not float((expected - found).abs().max()) <= TOLERANCE * max(1.0, float(expected.abs().max())):
                return False
    except Exception as error:  # onnxruntime raises many types
        log.debug("onnxruntime failed: %s", error)
        return False
    return True


def session(model: bytes) -> Any:
    """A graph in onnxruntime: {input: array} -> [arrays]."""
    runtime = need("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    made = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Any]) -> Any:
        return made.run(None, dict(inputs))

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
