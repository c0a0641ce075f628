"""Training steps and predictions of ulna's networks on a GPU beside the same networks of MONAI and nnU-Net.

Contenders, in turn in one process: the peer with default settings (float32, torch's default layout, Adam); the peer with
bf16, channels last in 2D and fused Adam; the same compiled, where that is asked for; and ulna as its own training and
prediction run it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gpu_timing import DEVICE, GPU, Found, Memory, in_turn, limits, ratio, spread
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ulna
from networks import NNUNET, UNET, UNETPP, criterion, heads
from ulna.blocks import nd
from ulna.data.pipeline.points import count_points, sample_points
from ulna.inference.folding import fuse_batchnorm
from ulna.inference.forward import Forward
from ulna.losses import make_loss
from ulna.networks.network import Network
from ulna.recipe import Recipe
from ulna.system.device import choose_precision
from ulna.system.graphs import graphs_for
from ulna.training.optimizers import make_optimizer
from ulna.training.step import Step

DEFAULTS, MATCHED, COMPILED, OURS = "peer, defaults", "peer, bf16 + channels last", "peer, compiled too", "ulna"
PEERS = (DEFAULTS, MATCHED, COMPILED)
ROUNDS, WARM_UP = 7, 6
COPIES = {"step": 3, "prediction": 1}  # how often the operations of a forward pass are done


@dataclass(frozen=True)
class Work:
    """A network of a peer, ours with the same widths, and the input (N, C, *S)."""

    peer: Callable[[int], nn.Module]
    ours: Callable[[int], nn.Module]
    size: tuple[int, ...]

    def tiny(self) -> Work:
        """As small as the network allows."""
        return replace(self, size=(1, self.size[1], *(32 for _ in self.size[2:])))


WORKS = {
    "unet 8×3×96²": Work(*UNET, (8, 3, 96, 96)),
    "unet 32×3×256²": Work(*UNET, (32, 3, 256, 256)),
    "unetpp 16×3×256²": Work(*UNETPP, (16, 3, 256, 256)),
    "nnunet 2×1×128³": Work(*NNUNET, (2, 1, 128, 128, 128)),
    "unet 2×1×128³": Work(*UNET, (2, 1, 128, 128, 128)),
}


def our_step(network: Network, images: Tensor, labels: Tensor, points: Tensor | None = None) -> Callable[[], object]:
    """One training step as `ulna train` takes it."""
    step = stepper(network)
    return lambda: step(images, labels, points)


def stepper(network: Network) -> Step:
    """What takes the steps of a network as `ulna train` does."""
    recipe, recorder = Recipe(), graphs_for(DEVICE, draws=True)
    return Step(
        network,
        make_loss(recipe.loss.kind, options=recipe.loss.options, heads=recipe.loss.heads, multilabel=False),
        make_optimizer(recipe.optimizer, network.parameters(), recorded=recorder is not None),
        precision=choose_precision("auto", DEVICE),
        clip=recipe.training.clip_gradients,
        recorder=recorder,
    )


def recommended_step(name: str, size: tuple[int, ...]) -> Callable[[], object]:
    """A step of a network as it comes, with the points that it is asked for drawn anew for every step."""
    torch.manual_seed(0)
    batch, channels, *patch = size
    dims, settings = len(patch), Recipe().points
    layout = nd.layout(dims, True, DEVICE, choose_precision("auto", DEVICE))
    network = ulna.build(name, spatial_dims=dims, in_channels=channels).to(DEVICE)
    network = network.to(memory_format=layout)  # type: ignore[call-overload]
    images = torch.randn(size, device=DEVICE).contiguous(memory_format=layout)
    labels = (torch.rand(batch, *patch, device=DEVICE) > 0.5).long()
    count = count_points(settings, labels[0].numel(), sparse=network.head.sparse)
    generator = torch.Generator(DEVICE).manual_seed(0)
    take = stepper(network)

    def step() -> None:
        points = None
        if count is not None:
            points = sample_points(
                labels, dims, count=count, alpha=settings.alpha, sigma=settings.sigma, generator=generator
            )
        take(images, labels, points)

    return step


def compare_points(found: Found, *, tiny: bool) -> None:
    """A step of `implicit_unet` beside one of `nnunet`, each as it comes."""
    size = (1, 1, 32, 32, 32) if tiny else (2, 1, 128, 128, 128)
    works = {name: recommended_step(name, size) for name in ("nnunet", "implicit_unet")}
    in_turn(works, WARM_UP if GPU else 1)
    times = in_turn(works, 2 if tiny else ROUNDS)
    of = ratio(times["implicit_unet"], times["nnunet"])
    ms = {name: spread(taken) for name, taken in times.items()}
    found.note(implicit_unet={"size": size, "ms": ms, "of_nnunet": of})
    told = ", ".join(f"{name} {middle:.2f} ± {half:.2f} ms" for name, (middle, half) in ms.items())
    print(f"\n{told}: {of['median']:.2f} [{of['low']:.2f}, {of['high']:.2f}] of nnunet")


def our_prediction(network: Network, images: Tensor) -> Callable[[], object]:
    """One batch of windows as `ulna predict` computes it."""
    forward = Forward(fuse_batchnorm(network), None, DEVICE, choose_precision("auto", DEVICE))  # type: ignore[arg-type]

    @torch.inference_mode()
    def predict() -> Tensor:
        return forward.logits(images)

    return predict


def contender(work: Work, name: str, kind: str, backend: str) -> Callable[[], object]:
    """One step or prediction of a contender, on the device; `backend`: of torch.compile."""
    torch.manual_seed(0)
    dims = len(work.size) - 2
    images, target = torch.randn(work.size, device=DEVICE), torch.rand(work.size[0], 1, *work.size[2:], device=DEVICE)
    if name == OURS:
        layout = nd.layout(dims, True, DEVICE, choose_precision("auto", DEVICE))
        ours = work.ours(dims).to(DEVICE).to(memory_format=layout)  # type: ignore[call-overload]
        images = images.contiguous(memory_format=layout)
        return our_step(ours, images, (target[:, 0] > 0.5).long()) if kind == "step" else our_prediction(ours, images)
    layout = torch.channels_last if dims == 2 and name != DEFAULTS else torch.contiguous_format
    net = work.peer(dims).to(DEVICE).to(memory_format=layout)  # type: ignore[call-overload]
    images, target = images.contiguous(memory_format=layout), (target > 0.5).float()
    bf16 = torch.autocast(DEVICE.type, torch.bfloat16, enabled=name != DEFAULTS)
    call = torch.compile(net, backend=backend) if name == COMPILED else net
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=name != DEFAULTS)

    def step() -> None:
        with bf16:
            outputs = heads(call, images)
        loss = sum(criterion(logits, target) for logits in outputs)
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()

    def predict() -> None:
        with torch.inference_mode(), bf16:
            call(images)

    net.train(kind == "step")
    return step if kind == "step" else predict


def operations(work: Work) -> float:
    """Floating-point operations of a forward pass of ours."""
    with FlopCounterMode(display=False) as counter:
        _on_meta(work)
    return float(counter.get_total_flops() * work.size[0])


def least_bytes(work: Work) -> float:
    """Bytes of a forward pass of ours in bf16 if every map were read and written once by each convolution and each norm."""
    moved = 0

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal moved
        given = inputs[0] if isinstance(inputs[0], list | tuple) else inputs[:1]
        moved += sum(2 * map.numel() for map in (*given, output))

    def watch(network: nn.Module) -> None:
        for module in network.modules():
            name = type(module).__name__.lower()
            if not [*module.children()] and ("conv" in name or "norm" in name):
                module.register_forward_hook(count)

    _on_meta(work, watch)
    return float(moved * work.size[0])


def _on_meta(work: Work, watch: Callable[[nn.Module], None] = lambda network: None) -> None:
    """One image of a work through ours, without memory."""
    with torch.device("meta"), torch.no_grad():
        network = work.ours(len(work.size) - 2).eval()
        watch(network)
        network(torch.zeros(1, *work.size[1:]))


def compare(found: Path, names: Sequence[str], kinds: Sequence[str], *, compiled: bool, tiny: bool) -> None:
    """A row for every work and kind."""
    most = limits(tiny=tiny)
    columns = ("work", "contender", "ms", "memory, MB", "operations", "bytes", "ulna takes, of the fastest peer")
    report = Found(found, columns)
    report.note(limits=most, not_measured=[] if compiled else [COMPILED])
    for name in names:
        work = WORKS[name].tiny() if tiny else WORKS[name]
        for kind in kinds:
            # compiling takes a minute and more; whether the program works is seen without
            rounds, backend = (2, "eager") if tiny else (ROUNDS, "inductor")
            _row(report, work, f"{name} {kind}", kind, most, compiled=compiled, rounds=rounds, backend=backend)
            if GPU:
                torch.cuda.empty_cache()
    if "step" in kinds and not compiled:
        compare_points(report, tiny=tiny)
    if not compiled:
        print("\nNot measured here: the peer compiled (parts compiled, compiled-3d).")


def _row(
    report: Found,
    work: Work,
    name: str,
    kind: str,
    most: dict[str, float],
    *,
    compiled: bool,
    rounds: int,
    backend: str,
) -> None:
    made, memory, failed = {}, {}, {}
    for label in (*(PEERS if compiled else PEERS[:2]), OURS):
        held = Memory()
        try:
            work_of = contender(work, label, kind, backend)
            work_of()
            held.begin()
            for _ in range(WARM_UP if GPU else 1):
                work_of()
            made[label], memory[label] = work_of, held.peak_mb()
        except Exception as error:  # the others are measured
            failed[label] = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            print(f"{name}, {label}: {failed[label]}", flush=True)
    times = in_turn(made, rounds)
    flops, moved = COPIES[kind] * operations(work), COPIES[kind] * least_bytes(work)
    peers = [label for label in made if label != OURS]
    fastest = min(peers, key=lambda label: statistics.median(times[label]), default=None)
    taken = ratio(times[OURS], times[fastest]) if fastest and OURS in made else None
    row: dict[str, Any] = {"work": name, "size": work.size, "flops": flops, "least_bytes": moved, "failed": failed}
    row |= {"fastest_peer": fastest, "ratio": taken, "contenders": {}}
    lines = []
    for label, taken_s in times.items():
        middle, half = spread(taken_s)
        shares = (flops / (middle / 1e3) / most["flops"], moved / (middle / 1e3) / most["bytes"])
        row["contenders"][label] = {"ms": [middle, half], "memory_mb": memory[label], "shares": shares}
        ratios = f"{taken['median']:.2f} [{taken['low']:.2f}, {taken['high']:.2f}] ({fastest})" if taken else "no peer"
        mb = "" if memory[label] is None else f"{memory[label]:.0f}"
        cells = (label, f"{middle:.2f} ± {half:.2f}", mb, *(f"{share:.1%}" for share in shares))
        lines.append((name, *cells, ratios if label == OURS else ""))
    report.add(row, *(lines[0] if lines else (name, "nothing ran", *[""] * 5)))
    for line in lines[1:]:
        print("| " + " | ".join(line) + " |", flush=True)
