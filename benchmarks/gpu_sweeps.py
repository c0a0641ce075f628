"""Sweeps of a spatial dependency layer on a GPU: the loop as published against ours, and the tiles of the Triton kernels.

"captured" is our sweep within a CUDA graph, as in a training step that is captured whole: without the time that Python
takes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from gpu_timing import DEVICE, GPU, Found, in_turn, ratio, spread
from sweep import published
from torch import Tensor, nn

from ulna.kernels.sweep import triton
from ulna.kernels.sweep.dispatch import Direction, Gates, describe, force, sweep
from ulna.system.graphs import CudaGraphs

CHANNELS, BATCH, SIZES = 150, 20, (48, 24, 12)
SWEEPS = (Direction(1), Direction(0))  # one after the other, as in a layer
TILES = ((16, 16), (16, 32), (32, 16), (32, 32), (64, 16), (64, 32), (128, 32))  # positions, channels
Work = Callable[[], object]


class Layer:
    """Two sweeps over a map, by one path, with everything that a forward and a backward pass needs."""

    def __init__(self, path: str, size: int, channels: int, batch: int) -> None:
        torch.manual_seed(0)
        self.path = path
        self.cells = [nn.GRUCell(3 * channels, channels).to(DEVICE) for _ in SWEEPS]
        x = torch.randn(batch, channels, size, size, device=DEVICE)
        if path != "published":
            x = x.contiguous(memory_format=torch.channels_last)
        self.x, self.weights = x.requires_grad_(), torch.randn_like(x)

    def run(self) -> Tensor:
        """The map after both."""
        x = self.x * 1  # the published loop writes into its input, which in a network is what a convolution gave
        # a graph must not hold casts that autocast would keep for other calls
        cast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU, cache_enabled=False)
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


def captured(work: Work) -> Work:
    """The same work, replayed from a CUDA graph."""
    graphs = CudaGraphs(draws=False)
    for _ in range(3):
        graphs.run(work)
    return graphs.record(work)


def compare(found: Path, *, tiny: bool) -> None:
    """The published loop, and ours as called and captured, at three sizes."""
    sizes, channels, batch = ((6,), 8, 2) if tiny else (SIZES, CHANNELS, BATCH)
    ours = ["triton"] if GPU and triton.available(torch.empty(0, device=DEVICE)) else ["lines"]
    print(f"sweeps: {describe(DEVICE.type)}\n")
    report = Found(found, ("map", "way", "forward, ms", "forward + backward, ms", "times published"))
    for size in sizes:
        layers = {way: Layer(way, size, channels, batch) for way in ("published", *ours)}
        forth: dict[str, Work] = {way: layer.forward for way, layer in layers.items()}
        both: dict[str, Work] = {way: layer.both for way, layer in layers.items()}
        for way in ours if GPU else ():
            forth[f"{way}, captured"] = captured(layers[way].forward)
            both[f"{way}, captured"] = captured(layers[way].both)
        in_turn(forth | both, 1)
        one, two = (in_turn(works, 2 if tiny else 15) for works in (forth, both))
        for way in forth:
            (f, f_spread), (b, b_spread) = spread(one[way]), spread(two[way])
            faster = {"forward": ratio(one["published"], one[way]), "both": ratio(two["published"], two[way])}
            times = f"{faster['forward']['median']:.1f} / {faster['both']['median']:.1f}"
            row = {
                "map": size,
                "way": way,
                "forward_ms": [f, f_spread],
                "both_ms": [b, b_spread],
                "times_faster": faster,
            }
            cells = (f"{f:.3f} ± {f_spread:.3f}", f"{b:.3f} ± {b_spread:.3f}", times)
            report.add(row, f"{size}×{size}", way, *cells)


def compare_tiles(found: Path, *, tiny: bool) -> None:
    """The Triton kernels in a CUDA graph, for every size and tile."""
    if not (GPU and triton.available(torch.empty(0, device=DEVICE))):
        print("skipped: tiles are those of the Triton kernels, which do not run here")
        Found(found).note(skipped="the Triton kernels do not run here")
        return
    report = Found(found, ("map", "positions × channels", "forward, ms", "forward + backward, ms"))
    usual = triton.tiles
    for size in SIZES[: 1 if tiny else None]:
        layer = Layer("triton", size, CHANNELS, BATCH)
        forth: dict[str, Work] = {}
        both: dict[str, Work] = {}
        for tile in TILES:
            triton.tiles = lambda rows, tile=tile: tile
            try:
                name = f"{tile[0]} × {tile[1]}{' (taken)' if tile == usual(size * BATCH) else ''}"
                forth[name], both[name] = captured(layer.forward), captured(layer.both)
            finally:
                triton.tiles = usual
        one, two = in_turn(forth, 15), in_turn(both, 15)
        for name in forth:
            (f, f_spread), (b, b_spread) = spread(one[name]), spread(two[name])
            row = {"map": size, "tile": name, "forward_ms": [f, f_spread], "both_ms": [b, b_spread]}
            report.add(row, f"{size}×{size}", name, f"{f:.3f} ± {f_spread:.3f}", f"{b:.3f} ± {b_spread:.3f}")
