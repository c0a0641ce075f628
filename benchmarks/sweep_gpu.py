"""Sweeps of a spatial dependency layer on a GPU: the loop as published against ours, interleaved in one process.

    python benchmarks/sweep_gpu.py                 # 48x48, 24x24, 12x12; C = 150, two directions, batch 20, bf16
    python benchmarks/sweep_gpu.py --tiles         # the Triton kernels with other tiles than `sweep/triton.py` takes
    python benchmarks/sweep_gpu.py --float32       # without autocast

Median of the repeats by CUDA events, with half the distance between the quartiles; factors against the published loop.
"captured" is our sweep within a CUDA graph, as in a training step that is captured whole: without the time that Python
takes. Without a GPU there is nothing to measure, and it says so.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from sweep import published
from torch import Tensor, nn

from ulna.kernels.sweep import triton as sweep_triton
from ulna.kernels.sweep.dispatch import Direction, Gates, describe, force, sweep

CHANNELS, BATCH = 150, 20
BARS = {48: 10, 24: None, 12: 20}  # times as fast as the published loop, forward and with the backward pass
SWEEPS = (Direction(1), Direction(0))  # one after the other, as in a layer
TILES = ((16, 16), (16, 32), (32, 16), (32, 32), (64, 16), (64, 32), (128, 32))  # positions, channels


class Layer:
    """Two sweeps over a map, by one path, with everything that a forward and a backward pass needs."""

    def __init__(self, path: str, size: int, device: str, operands: torch.dtype | None) -> None:
        torch.manual_seed(0)
        self.path, self.device, self.operands = path, device, operands
        self.cells = [nn.GRUCell(3 * CHANNELS, CHANNELS).to(device) for _ in SWEEPS]
        x = torch.randn(BATCH, CHANNELS, size, size, device=device)
        if path != "published":
            x = x.contiguous(memory_format=torch.channels_last)
        self.x, self.weights = x.requires_grad_(), torch.randn_like(x)

    def run(self) -> Tensor:
        """The map after both."""
        x = self.x * 1  # the published loop writes into its input, which in a network is what a convolution gave
        # a graph must not hold casts that autocast would keep for other calls
        cast = torch.autocast(self.device, self.operands, enabled=self.operands is not None, cache_enabled=False)
        with cast, force("auto" if self.path == "published" else self.path):
            for cell, direction in zip(self.cells, SWEEPS, strict=True):
                if self.path == "published":
                    x = published(x, cell, direction)
                else:
                    x = sweep(x, Gates(cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh), direction)
        return x

    def forward(self) -> Tensor:
        """As in prediction."""
        with torch.no_grad():
            return self.run()

    def both(self) -> None:
        """As in training; the backward pass by the same path."""
        y = self.run()
        with force("auto" if self.path == "published" else self.path):
            torch.autograd.grad(y, [self.x, *(p for cell in self.cells for p in cell.parameters())], self.weights)


def captured(work: Callable[[], object]) -> Callable[[], object]:
    """The same work, replayed from a CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def milliseconds(work: Callable[[], object]) -> float:
    """One call, between two events on an idle GPU."""
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def interleaved(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median and half the interquartile distance of every work, in turns, after three calls each."""
    for work in works.values():
        for _ in range(3):
            work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(milliseconds(work))
    found = {}
    for name, taken in times.items():
        low, middle, high = statistics.quantiles(taken, n=4, method="inclusive")
        found[name] = (middle, (high - low) / 2)
    return found


def peak_mb(work: Callable[[], object]) -> float:
    """Memory that one call takes beyond what is held, in MB."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def compare(repeats: int, operands: torch.dtype | None) -> None:
    """Print a table of the ways for every size."""
    print("| map | way | forward, ms | forward + backward, ms | times published | bar | peak, MB |")
    print("|---|---|---|---|---|---|---|")
    ours = ["lines"]
    if sweep_triton.available(torch.empty(0, device="cuda")):
        ours.insert(0, "triton")
    for size, bar in BARS.items():
        layers = {way: Layer(way, size, "cuda", operands) for way in ("published", *ours)}
        forth: dict[str, Callable[[], object]] = {way: layer.forward for way, layer in layers.items()}
        both: dict[str, Callable[[], object]] = {way: layer.both for way, layer in layers.items()}
        for way in ours:  # all of the work in one graph
            forth[f"{way}, captured"], both[f"{way}, captured"] = (
                captured(layers[way].forward),
                captured(layers[way].both),
            )
        one, two = interleaved(forth, repeats), interleaved(both, repeats)
        for way in forth:
            (f, f_spread), (b, b_spread) = one[way], two[way]
            factors = f"{one['published'][0] / f:.1f} / {two['published'][0] / b:.1f}"
            memory = f"{peak_mb(both[way]):.0f}" if way in layers else ""
            print(
                f"| {size}×{size} | {way} | {f:.3f} ± {f_spread:.3f} | {b:.3f} ± {b_spread:.3f} | {factors} | "
                f"{'' if bar is None or way == 'published' else f'≥ {bar}'} | {memory} |",
                flush=True,
            )


def compare_tiles(repeats: int, operands: torch.dtype | None) -> None:
    """Print the time of the Triton kernels in a CUDA graph, for every size and tile."""
    print("| map | positions × channels | forward, ms | forward + backward, ms |")
    print("|---|---|---|---|")
    usual = sweep_triton.tiles
    for size in BARS:
        layer = Layer("triton", size, "cuda", operands)
        forth: dict[str, Callable[[], object]] = {}
        both: dict[str, Callable[[], object]] = {}
        for tile in TILES:
            sweep_triton.tiles = lambda rows, tile=tile: tile
            try:
                name = f"{tile[0]} × {tile[1]}{' (taken)' if tile == usual(size * BATCH) else ''}"
                forth[name], both[name] = captured(layer.forward), captured(layer.both)
            finally:
                sweep_triton.tiles = usual
        one, two = interleaved(forth, repeats), interleaved(both, repeats)
        for name, (f, f_spread) in one.items():
            b, b_spread = two[name]
            print(f"| {size}×{size} | {name} | {f:.3f} ± {f_spread:.3f} | {b:.3f} ± {b_spread:.3f} |", flush=True)


def main() -> None:
    """Read the flags and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=51)
    parser.add_argument("--tiles", action="store_true")
    parser.add_argument("--float32", action="store_true")
    flags = parser.parse_args()
    if not torch.cuda.is_available():
        print("not measured yet: no GPU")
        return
    operands = None if flags.float32 else torch.bfloat16
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; sweeps: {describe('cuda')}")
    print(f"C = {CHANNELS}, batch {BATCH}, {len(SWEEPS)} sweeps, {'float32' if flags.float32 else 'bf16 products'}\n")
    (compare_tiles if flags.tiles else compare)(flags.repeats, operands)


if __name__ == "__main__":
    main()
