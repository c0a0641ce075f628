"""Training steps and inference of ulna's networks beside the same networks of MONAI and nnU-Net.

    pip install --no-deps -r benchmarks/requirements.txt
    python benchmarks/networks.py                    # all; or some: unet-2d-96 unetpp-2d-96 ...
    python benchmarks/networks.py --peaks --out networks-memory     # memory alone

Three contenders run in turn: the peer with default settings (float32, torch's default layout, Adam), the peer with
matched settings (those of ulna: channels last in 2D, fused Adam, bf16 where the processor has instructions for it), and ulna
as `ulna train` and `ulna predict` run it. The loss is the same for all. Memory is the peak of a process of its own that does
two steps, less what it holds before the network is built.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from measure import allocator, conditions, has_bf16, in_own_process, interleaved, peak_mb, product_rate, ratio, write
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import ulna
from ulna.blocks import nd
from ulna.kernels.allocator import tune_memory

WIDTHS = (32, 32, 64, 128, 256)  # MONAI's defaults
LIKE_MONAI = {
    "channels": WIDTHS,
    "conv": {"kind": "double_conv", "options": {"norm": "instance", "activation": "leaky_relu"}},
}
CONTENDERS = ("peer", "peer, matched", "ulna")
KINDS = ("training", "inference")


@dataclass(frozen=True)
class Work:
    """One comparison: a network at an input size."""

    peer: Callable[[int], nn.Module]
    ours: Callable[[int], nn.Module]
    size: tuple[int, ...]  # (N, C, *S)
    rounds: int
    training: bool = True


def monai(name: str, **options: Any) -> Callable[[int], nn.Module]:
    def make(dims: int) -> nn.Module:
        import monai.networks.nets as nets

        return getattr(nets, name)(
            spatial_dims=dims, in_channels=3 if dims == 2 else 1, out_channels=1, features=(*WIDTHS, 32), **options
        )

    return make


def ours(name: str, **changes: Any) -> Callable[[int], nn.Module]:
    return lambda dims: ulna.build(name, spatial_dims=dims, in_channels=3 if dims == 2 else 1, **changes)


def nnunet_peer(dims: int) -> nn.Module:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dims == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    widths = (32, 64, 128, 256, 320)
    return PlainConvUNet(
        input_channels=3 if dims == 2 else 1, n_stages=5, features_per_stage=widths, conv_op=conv, kernel_sizes=3,
        strides=(1, 2, 2, 2, 2), n_conv_per_stage=2, num_classes=1, n_conv_per_stage_decoder=2, conv_bias=True,
        norm_op=norm, norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True}, deep_supervision=True,
    )  # fmt: skip


UNET = (monai("BasicUNet"), ours("unet", **LIKE_MONAI))
UNETPP = (monai("BasicUNetPlusPlus", deep_supervision=True), ours("unetpp", **LIKE_MONAI))
NNUNET = (nnunet_peer, ours("nnunet", channels=(32, 64, 128, 256, 320)))
WORKS = {
    "unet-2d-96": Work(*UNET, (8, 3, 96, 96), 7),
    "unet-2d-256": Work(*UNET, (2, 3, 256, 256), 5),
    "unet-2d-512": Work(*UNET, (1, 3, 512, 512), 5),
    "unetpp-2d-96": Work(*UNETPP, (8, 3, 96, 96), 5),
    "unetpp-2d-256": Work(*UNETPP, (2, 3, 256, 256), 5),
    "unetpp-2d-512": Work(*UNETPP, (1, 3, 512, 512), 3),
    "nnunet-2d-256": Work(*NNUNET, (2, 3, 256, 256), 5),
    "unet-3d-64": Work(*UNET, (1, 1, 64, 64, 64), 5),
    "unetpp-3d-64": Work(*UNETPP, (1, 1, 64, 64, 64), 3),
    "nnunet-3d-64": Work(*NNUNET, (1, 1, 64, 64, 64), 5),
    "nnunet-3d-160": Work(*NNUNET, (1, 1, 160, 160, 96), 2),
}


def network(work: Work, contender: str) -> nn.Module:
    """The network of a contender, in its memory layout."""
    torch.manual_seed(0)
    dims = len(work.size) - 2
    made = work.ours(dims) if contender == "ulna" else work.peer(dims)
    return made.to(memory_format=nd.layout(dims, channels_last=contender != "peer"))  # type: ignore[call-overload]


def step(work: Work, contender: str, *, training: bool) -> Callable[[], object]:
    """One training step, or one pass without gradients."""
    net, dims = network(work, contender), len(work.size) - 2
    image = torch.randn(work.size).contiguous(memory_format=nd.layout(dims, channels_last=contender != "peer"))
    target = (torch.rand(work.size[0], 1, *work.size[2:]) > 0.5).float()
    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=contender != "peer" and has_bf16())
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=contender != "peer")

    def train() -> None:
        allocator(keeps=contender == "ulna")
        with bf16:
            loss = sum(criterion(z, target) for z in heads(net, image))
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()

    def predict() -> None:
        allocator(keeps=contender == "ulna")
        with torch.inference_mode(), bf16:
            net(image)

    net.train(training)
    return train if training else predict


def heads(net: nn.Module, image: Tensor) -> list[Tensor]:
    """The logits of every supervised head."""
    out = net.outputs(image).heads if hasattr(net, "outputs") else net(image)
    if isinstance(out, dict):
        return list(out.values())
    return list(out) if isinstance(out, list | tuple) else [out]


def criterion(logits: Tensor, target: Tensor) -> Tensor:
    """Dice + cross-entropy."""
    target = F.interpolate(target, size=logits.shape[2:], mode="nearest")
    p, axes = logits.float().sigmoid(), tuple(range(1, target.ndim))
    dice = (2 * (p * target).sum(axes) + 1) / (p.sum(axes) + target.sum(axes) + 1)
    return 1 - dice.mean() + F.binary_cross_entropy_with_logits(logits.float(), target)


def gmacs(work: Work, contender: str) -> float:
    """Billions of multiply-accumulates of one forward pass over the batch."""
    with torch.device("meta"):
        net = work.ours(len(work.size) - 2) if contender == "ulna" else work.peer(len(work.size) - 2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.zeros(work.size, device="meta"))
    return counter.get_total_flops() / 2e9


def memory(name: str, contender: str, kind: str) -> float:
    """MB that two steps need; run in a process of its own."""
    work = WORKS[name]
    if contender == "ulna":
        tune_memory()  # as `ulna train` does; the allocator of tensors that comes with it stays for the whole process
    small = Work(work.peer, work.ours, (1, work.size[1], *(32 for _ in work.size[2:])), 1)
    step(small, contender, training=False)()  # libraries and kernels are loaded before the count begins
    before = peak_mb()
    run = step(work, contender, training=kind == "training")
    run()
    run()
    return peak_mb() - before


def compare(name: str, limit: float) -> list[dict[str, Any]]:
    """Training and inference of one comparison."""
    work, rows = WORKS[name], []
    work_gmacs = {c: gmacs(work, "ulna" if c == "ulna" else "peer") for c in CONTENDERS}
    for kind in KINDS:
        seconds = interleaved({c: step(work, c, training=kind == "training") for c in CONTENDERS}, work.rounds)
        peak = {c: in_own_process(__file__, "--memory", name, c, kind) for c in CONTENDERS}
        flops = 2 * work_gmacs["ulna"] * (3 if kind == "training" else 1)
        rate = flops / statistics.median(seconds["ulna"])
        rows.append(
            {
                "work": name,
                "kind": kind,
                "size": list(work.size),
                "gmacs": {"peer": round(work_gmacs["peer"], 2), "ulna": round(work_gmacs["ulna"], 2)},
                "seconds": {c: [round(s, 4) for s in seconds[c]] for c in CONTENDERS},
                "times_faster": ratio(seconds["peer"], seconds["ulna"]),
                "times_faster_matched": ratio(seconds["peer, matched"], seconds["ulna"]),
                "gflops": round(rate, 1),
                "share_of_product_rate": round(rate / limit, 2),
                "peak_mb": {c: round(peak[c]) for c in CONTENDERS},
            }
        )
        print(line(rows[-1]), flush=True)
    return rows


def peaks(name: str) -> dict[str, Any]:
    """The memory of one comparison alone."""
    most = {k: {c: round(in_own_process(__file__, "--memory", name, c, k)) for c in CONTENDERS} for k in KINDS}
    for kind, of in most.items():
        print(f"{name:15} {kind:9} " + ", ".join(f"{c} {mb} MB" for c, mb in of.items()), flush=True)
    return {"work": name, "size": list(WORKS[name].size), "peak_mb": most}


def line(row: dict[str, Any]) -> str:
    """One row for people."""
    first, second, peak = row["times_faster"], row["times_faster_matched"], row["peak_mb"]
    return (
        f"{row['work']:15} {row['kind']:9} {first['median']:.2f}x [{first['low']:.2f}, {first['high']:.2f}] default, "
        f"{second['median']:.2f}x [{second['low']:.2f}, {second['high']:.2f}] matched; "
        f"{row['gflops']:.0f} GFLOP/s = {row['share_of_product_rate']:.0%} of the product rate; "
        f"memory {peak['ulna']} MB, peer {peak['peer']} MB; GMACs {row['gmacs']['ulna']}, peer {row['gmacs']['peer']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", help=f"of {', '.join(WORKS)}; all by default")
    parser.add_argument("--peaks", action="store_true", help="memory alone")
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--out", default="networks", help="name of the file in benchmarks/results")
    arguments = parser.parse_args()
    if arguments.memory:
        print(json.dumps(memory(*arguments.memory)))
        return
    facts, kind = conditions(), torch.bfloat16 if has_bf16() else torch.float32  # what ulna multiplies
    if arguments.peaks:
        write(arguments.out, {"conditions": facts, "rows": [peaks(name) for name in arguments.works or WORKS]})
        return
    limit = product_rate(kind)
    print(f"{facts['processor']}, {facts['threads']} threads, product rate {limit:.0f} GFLOP/s ({kind})")
    rows: list[dict[str, Any]] = []
    for name in arguments.works or WORKS:
        rows += compare(name, limit)
        write(
            arguments.out, {"conditions": facts, "product_rate_gflops": round(limit, 1), "of": str(kind), "rows": rows}
        )


if __name__ == "__main__":
    main()
