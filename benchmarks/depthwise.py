"""Depthwise convolutions in training: forward and backward of ulna's beside torch's, in turn in one process.

    python benchmarks/depthwise.py                    # the layers of NASNet and MBConv cells, in bf16 and float32

Both read maps that lie channels last; torch's are `nn.Conv2d` and `nn.Conv3d` with default settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from measure import conditions, interleaved, ratio, write
from torch import Tensor, nn

from ulna.blocks import nd

# (N, C, *S), kernel, stride
LAYERS = [
    ((8, 5, 96, 96), 3, 1),
    ((8, 5, 96, 96), 5, 1),
    ((8, 16, 48, 48), 7, 2),
    ((8, 96, 48, 48), 3, 1),
    ((8, 96, 48, 48), 5, 1),
    ((2, 8, 32, 32, 32), 3, 1),
    ((2, 8, 32, 32, 32), 5, 1),
    ((2, 48, 16, 16, 16), 5, 1),
    ((2, 48, 16, 16, 16), 7, 2),
]


def step(conv: nn.Module, x: Tensor, low: bool) -> Callable[[], None]:
    """Forward and backward once."""

    def run() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            y = conv(x)
        y.backward(torch.ones_like(y))

    return run


def measure(size: tuple[int, ...], kernel: int, stride: int, low: bool, rounds: int) -> dict[str, Any]:
    """Times of one layer."""
    dims, channels = len(size) - 2, size[1]
    ours = nd.conv(dims, channels, channels, kernel_size=kernel, stride=stride, groups=channels, bias=False)
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    peer = kind(channels, channels, kernel, stride=stride, padding=kernel // 2, groups=channels, bias=False)
    peer.load_state_dict(ours.state_dict())
    layout: Any = torch.channels_last if dims == 2 else torch.channels_last_3d
    x = torch.randn(size).contiguous(memory_format=layout).requires_grad_()
    seconds = interleaved({"torch": step(peer, x, low), "ulna": step(ours, x, low)}, rounds, warm_up=2)
    return {
        "size": size,
        "kernel": kernel,
        "stride": stride,
        "precision": "bf16" if low else "float32",
        "seconds": {name: [round(s, 6) for s in each] for name, each in seconds.items()},
        "times_faster": ratio(seconds["torch"], seconds["ulna"]),
    }


def main() -> None:
    """Measure every layer, and write what `--out` names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", default=None, help="name of the result file, without .json")
    options = parser.parse_args()
    made = []
    for size, kernel, stride in LAYERS:
        for low in (True, False):
            made.append(measure(size, kernel, stride, low, options.rounds))
            times = made[-1]["times_faster"]
            print(
                f"{'x'.join(map(str, size)):16} kernel {kernel} stride {stride} {made[-1]['precision']:8} "
                f"{times['median']:6.2f} times faster [{times['low']:.2f}, {times['high']:.2f}]",
                flush=True,
            )
    if options.out:
        write(options.out, {"conditions": conditions(), "layers": made})


if __name__ == "__main__":
    main()
