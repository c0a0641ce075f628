"""The Implicit U-Net beside a U-Net with its encoder: training steps, their memory, and prediction in three stages.

    python benchmarks/implicit.py                          # all works; or some: step-96 step-160 predict
    python benchmarks/implicit.py predict --size 96 96 64 --patch 48 48 32 --steps 20     # a small one, to try
    python benchmarks/implicit.py --device cuda --batch 2                                 # on a GPU, two patches a step

Training: forward, loss on sampled points, backward, optimiser, as `ulna train` takes a step; the contenders in turn in one
process. Memory is the peak of a process of its own that does two steps, less what it holds before the network is built, the
median of three such processes; on a GPU, what torch allocated there.

Prediction: of a phantom that ulna draws (synthetic, a bent tube; it says nothing about real images), by the recommended
build in three stages and at every voxel, and by both U-Nets, as `ulna predict` does it. The recommended build is trained for
`--steps` steps on patches of other phantoms, so that its answers have boundaries where there are some; its Dice is that of
such a short training, and `--keep FOLDER` keeps it for the next call. The U-Nets have the weights that they were drawn
with: their time does not depend on them. With `--image`, times alone on an image of one's own. With `--label` beside it the
build is trained on patches of that very image, so that it refines as much as a network that knows the structure; how well
it segments says nothing then, and is not printed.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import conditions, in_own_process, interleaved, peak_mb, product_rate, ratio, write
from torch import Tensor

from ulna.blocks import nd
from ulna.data.pipeline.points import count_points, sample_points
from ulna.data.pipeline.preprocess import Prepared
from ulna.demonstration import make_phantom
from ulna.inference.sparse import PointCounts, by_stages
from ulna.inference.volume import predict_slabs, to_labels
from ulna.kernels.allocator import tune_memory
from ulna.losses import make_loss
from ulna.networks.build import count_parameters, from_architecture
from ulna.networks.heads import Outputs
from ulna.networks.network import Network
from ulna.networks.profile.cost import count_gmacs
from ulna.planning.choosing import recommended
from ulna.recipe import Extent, Fingerprint, Inference, Labels, Normalization, Plan, Recipe, to_yaml
from ulna.system.device import autocast, choose_precision
from ulna.training.optimizers import make_optimizer

WIDTHS = (32, 64, 128, 256, 320)
CLASSES = 3  # background and two parts; prediction is of one structure, which a short training learns
PAPER = "marimont/implicit_unet"
CONTENDERS = ("nnunet", "implicit_unet", "marimont/unet", PAPER)
# (faster, slower): what each ratio of a step compares
RATIOS = {
    "recommended against nnunet": ("implicit_unet", "nnunet"),
    "recommended against the paper's U-Net": ("implicit_unet", "marimont/unet"),
    "paper's build against the paper's U-Net": (PAPER, "marimont/unet"),
}
PATCHES = {"step-96": (96, 96, 64), "step-160": (160, 160, 96)}
WORKS = (*PATCHES, "predict")
U_NETS = ("nnunet", "marimont/unet")
TRAINING_PHANTOMS = 3
PROCESSES = 3  # of a peak of memory


@dataclass
class Contender:
    """A network and what it trains with."""

    network: Network
    recipe: Recipe
    points: int | None  # None: every voxel of a patch

    @classmethod
    def named(
        cls,
        name: str,
        patch: Sequence[int],
        device: torch.device,
        widths: Sequence[int] = WIDTHS,
        classes: int = CLASSES,
    ) -> Contender:
        """As `ulna train --model NAME` has it; a row of the paper has its own widths."""
        recipe = recommended(name)
        if "/" not in name or widths != WIDTHS:
            recipe = recipe.replaced(architecture=recipe.architecture.replaced(channels=tuple(widths)))
        torch.manual_seed(0)
        network = from_architecture(recipe.architecture, in_channels=1, classes=classes, spatial_dims=len(patch))
        network.to(device, memory_format=nd.layout(len(patch), True, device))  # type: ignore[call-overload]
        points = count_points(recipe.points, math.prod(patch), sparse=network.head.sparse)
        return cls(network, recipe, points)


def trainer(
    contender: Contender, batches: Callable[[], tuple[Tensor, Tensor]], dims: int, device: torch.device
) -> Callable[[], float]:
    """One training step on the next batch, which gives its loss."""
    network, recipe = contender.network, contender.recipe
    precision = choose_precision("auto", device)
    loss_of = make_loss(recipe.loss.kind, options=recipe.loss.options, heads=recipe.loss.heads, multilabel=False)
    optimizer = make_optimizer(recipe.optimizer, network.parameters())
    generator = torch.Generator(device).manual_seed(0)
    settings = recipe.points

    def step() -> float:
        network.train()
        images, labels = (values.to(device) for values in batches())
        images = images.contiguous(memory_format=nd.layout(dims, True, device))
        points = None
        if contender.points is not None:
            points = sample_points(
                labels, dims, count=contender.points, alpha=settings.alpha, sigma=settings.sigma, generator=generator
            )
        with autocast(precision, device):
            outputs = network.outputs(images, points)
        loss, _ = loss_of(outputs, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def balls(patch: Sequence[int], batch: int) -> tuple[Tensor, Tensor]:
    """Images and their labels, a ball in two halves: for steps whose time alone counts."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in patch), indexing="ij")
    inside = torch.stack(axes).square().sum(0) < 0.3
    labels = inside * (1 + (axes[0] > 0).long())
    noise = torch.randn((batch, 1, *patch), generator=torch.Generator().manual_seed(0))
    return labels + noise, labels.expand(batch, *patch)


def memory(name: str, on: str, count: str, *patch: str) -> float:
    """MB that two steps need; run in a process of its own."""
    tune_memory()
    size, device = tuple(map(int, patch)), torch.device(on)

    def most() -> float:
        return peak_mb() if device.type == "cpu" else torch.cuda.max_memory_allocated() / 2**20

    def run(side: Sequence[int], widths: Sequence[int], points: int | None = None) -> None:
        batch, contender = balls(side, int(count)), Contender.named(name, side, device, widths)
        if points is not None and contender.points is not None:
            contender.points = points
        step = trainer(contender, lambda: batch, len(side), device)
        step()
        step()

    # libraries and kernels are loaded before the count begins, by a small network at few points: what it frees is kept
    run([32] * len(size), [8] * len(WIDTHS), points=1024)
    before = most() if device.type == "cpu" else 0.0
    run(size, WIDTHS)
    return most() - before


def steps(patch: tuple[int, ...], count: int, rounds: int, limit: float, device: torch.device) -> dict[str, Any]:
    """Seconds, work and memory of a training step of every contender, on `count` patches."""
    batch = balls(patch, count)
    contenders = {name: Contender.named(name, patch, device) for name in CONTENDERS}
    seconds = interleaved({n: trainer(c, lambda: batch, len(patch), device) for n, c in contenders.items()}, rounds)
    facts = {}
    for name, contender in contenders.items():
        gmacs = count * count_gmacs(contender.network, patch, points=contender.points)
        rate = 3 * 2 * gmacs / statistics.median(seconds[name])
        facts[name] = {
            "parameters": count_parameters(contender.network),
            "points": contender.points,
            "gmacs": round(gmacs, 1),
            "seconds": [round(s, 4) for s in seconds[name]],
            "share_of_product_rate": round(rate / limit, 2),
        }
    del contenders, contender  # the children need the room
    for name in CONTENDERS:
        asked = ("--memory", name, device.type, str(count), *map(str, patch))
        own = [round(in_own_process(__file__, *asked)) for _ in range(PROCESSES)]
        facts[name] |= {"peak_mb": statistics.median(own), "peaks_mb": own}
        f = facts[name]
        print(
            f"  {name:24} {f['parameters']:>11,} parameters, {f['points'] or 'all':>6} points, {f['gmacs']:6.1f} GMACs, "
            f"{statistics.median(f['seconds']):.3f} s = {f['share_of_product_rate']:.0%} of the product rate, "
            f"{f['peak_mb']} MB",
            flush=True,
        )
    compared = {}
    for label, (ours, theirs) in RATIOS.items():
        times = ratio(seconds[ours], seconds[theirs])  # below 1: ours takes that share of theirs
        compared[label] = {
            "time": times,
            "memory": round(facts[ours]["peak_mb"] / facts[theirs]["peak_mb"], 2),
        }
        print(
            f"  {label}: time {times['median']:.2f} [{times['low']:.2f}, {times['high']:.2f}], "
            f"memory {compared[label]['memory']:.2f}"
        )
    return {"patch": list(patch), "batch": count, "contenders": facts, "shares": compared}


def phantom(size: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
    """The first case of a data set that ulna draws: (1, *S) of mean 0 and spread 1, and where the structure is (*S)."""
    import nibabel

    with tempfile.TemporaryDirectory() as folder:
        made = make_phantom(Path(folder) / "data", count=3, size=tuple(size), seed=seed)  # type: ignore[arg-type]
        image, labels = (
            np.asarray(nibabel.load(made / part / name).dataobj)  # type: ignore[attr-defined]
            for part, name in (("imagesTr", "phantom_00_0000.nii.gz"), ("labelsTr", "phantom_00.nii.gz"))
        )
    values = torch.from_numpy(image.astype(np.float32))[None]
    return (values - values.mean()) / values.std(), torch.from_numpy((labels > 0).astype(np.int64))


def patches(cases: Sequence[tuple[Tensor, Tensor]], patch: Sequence[int]) -> Callable[[], tuple[Tensor, Tensor]]:
    """Batches of one patch about a random voxel of the structure, or, every other time, anywhere; a case in turn."""
    generator, order = torch.Generator().manual_seed(0), itertools.cycle(cases)

    def batch() -> tuple[Tensor, Tensor]:
        image, labels = next(order)
        last = torch.tensor([n - p for n, p in zip(labels.shape, patch, strict=True)])
        start = (torch.rand(len(patch), generator=generator) * (last + 1)).long()
        if torch.rand((), generator=generator) < 1 / 2:
            inside = labels.nonzero()
            start = inside[torch.randint(len(inside), (), generator=generator)] - torch.tensor(patch) // 2
        start = start.clamp(min=torch.zeros_like(last), max=last)
        window = tuple(slice(a, a + p) for a, p in zip(start.tolist(), patch, strict=True))
        return image[(None, slice(None), *window)], labels[(None, *window)]

    return batch


def plan_for(patch: Sequence[int]) -> Plan:
    """Prediction by windows of the patch, of an image that is prepared already."""
    dims = len(patch)
    return Plan(
        spatial_dims=3,
        in_channels=1,
        channel_names=("image",),
        labels=Labels(names=("background", "structure")),
        spacing=None,
        unit="px",
        normalization=(Normalization(kind="none"),),
        patch=tuple(patch),
        batch=1,
        strides=((2,) * dims,) * (len(WIDTHS) - 1),
        whole_image_limit=0,  # by windows, whichever the network
        mirror_axes=(),
        turn_axes=None,
        reasons={},
        fingerprint=Fingerprint(
            cases=1,
            spatial_dims=3,
            channels=1,
            channel_names=("image",),
            dtypes=("float32",),
            size=Extent(min=tuple(patch), median=tuple(patch), max=tuple(patch)),
            spacing=Extent(min=(1,) * dims, median=(1,) * dims, max=(1,) * dims),
            unit="px",
            classes=("background", "structure"),
        ),
    )


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """In points of 100; two empty masks are equal."""
    a, b = one > 0, other > 0
    both = float(a.sum() + b.sum())
    return 100 * 2 * float((a & b).sum()) / both if both else 100.0


class Known:
    """A network that knows the truth: what it refines is what the shape itself asks for."""

    def __init__(self, truth: Tensor) -> None:
        self.truth, self.head = truth, self

    def encode(self, windows: Tensor) -> tuple[dict[str, Tensor], torch.Size]:
        return {}, windows.shape[2:]

    def reader(self, maps: dict[str, Tensor], size: Sequence[int]) -> Callable[[Tensor], Outputs]:
        return lambda points: Outputs(self.truth[tuple(points[0].T)][None, None] - 0.5, {}, points)


def train(
    name: str, contender: Contender, patch: Sequence[int], arguments: argparse.Namespace, device: torch.device
) -> None:
    """On patches of other phantoms, or of the image with its labels where those are given.

    What an earlier call of the same settings kept is read in place of that.
    """
    sides = [max(n, p) for n, p in zip(arguments.train_size or arguments.size, patch, strict=True)]
    on = (*sides, TRAINING_PHANTOMS) if arguments.label is None else (digest(arguments.image), digest(arguments.label))
    said = "-".join(map(str, (*patch, *on, arguments.steps, arguments.lr)))
    recipe = hashlib.sha256(to_yaml(contender.recipe).encode()).hexdigest()[:8]
    file = arguments.keep and arguments.keep / f"{name}-{recipe}-{said}.pt"
    if file and file.exists():
        contender.network.load_state_dict(torch.load(file, map_location=device, weights_only=True))
        return
    if arguments.label is None:
        cases = [phantom(sides, seed=1 + i) for i in range(TRAINING_PHANTOMS)]
    else:
        cases = [(read(arguments.image), (load(arguments.label) > 0).long())]
    contender.recipe = contender.recipe.replaced(optimizer=contender.recipe.optimizer.replaced(lr=arguments.lr))
    step = trainer(contender, patches(cases, patch), len(patch), device)
    losses = [step() for _ in range(arguments.steps)]
    print(f"  {name}: loss {losses[0]:.3f} at first, {statistics.mean(losses[-5:]):.3f} in the end", flush=True)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(contender.network.state_dict(), file)


def prediction(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Three stages, every voxel and both U-Nets on one volume, in turn."""
    patch, precision = tuple(arguments.patch or PATCHES["step-96"]), choose_precision("auto", device)
    networks = {name: Contender.named(name, patch, device, classes=1) for name in (*U_NETS, "implicit_unet")}
    train("implicit_unet", networks["implicit_unet"], patch, arguments, device)
    for contender in networks.values():
        contender.network.eval()
    image, truth = phantom(arguments.size, seed=0) if arguments.image is None else (read(arguments.image), None)
    size, plan = tuple(image.shape[1:]), plan_for(patch)
    tallies: dict[str, PointCounts] = {}
    labels: dict[str, np.ndarray] = {}

    def run(way: str, name: str, mesh_step: int) -> None:
        tallies[way] = PointCounts()
        slabs = predict_slabs(
            networks[name].network,
            plan,
            Prepared(image, size),
            settings=Inference(mesh_step=mesh_step, overlap=arguments.overlap),
            device=device,
            precision=precision,
            tally=tallies[way],
        )
        labels[way] = to_labels(slabs.maps(), plan.labels)

    ways = {
        "three stages": lambda: run("three stages", "implicit_unet", Inference().mesh_step),
        "every voxel": lambda: run("every voxel", "implicit_unet", 1),
    } | {name: lambda name=name: run(name, name, 1) for name in U_NETS}  # type: ignore[misc]
    seconds = interleaved(ways, arguments.rounds, warm_up=0)
    asked = tallies["three stages"]
    facts = {
        "volume": "a phantom drawn by ulna, synthetic" if truth is not None else "an image given by --image",
        "size": list(size),
        "patch": list(patch),
        "overlap": arguments.overlap,
        "trained_steps": arguments.steps,
        "trained_on": f"patches of {TRAINING_PHANTOMS} other phantoms"
        if arguments.label is None
        else "that very image",
        "seconds": {way: [round(s, 2) for s in each] for way, each in seconds.items()},
        "share_of_voxels": {
            "mesh": round(asked.mesh / asked.voxels, 4),
            "refined": round(asked.refined / asked.voxels, 4),
        },
        "every_voxel_over_three_stages": ratio(seconds["every voxel"], seconds["three stages"]),
        **{f"three_stages_share_of_{name}": ratio(seconds["three stages"], seconds[name]) for name in U_NETS},
        "dice_of_three_stages_with_every_voxel": round(dice(labels["three stages"], labels["every voxel"]), 2),
    }
    if truth is not None:
        known = PointCounts()
        by_stages(Known(truth), truth[None, None], settings=Inference(), multilabel=False, tally=known)  # type: ignore[arg-type]
        facts["share_that_the_truth_would_refine"] = round(known.refined / known.voxels, 4)
        trained = ("three stages", "every voxel")
        facts["dice_with_truth"] = {way: round(dice(labels[way], truth.numpy()), 2) for way in trained}
    for key, value in facts.items():
        print(f"  {key}: {value}")
    return facts


def load(path: Path) -> Tensor:
    """What an image file holds: (*S), float32."""
    import nibabel

    return torch.from_numpy(np.asarray(nibabel.load(path).dataobj, dtype=np.float32))  # type: ignore[attr-defined]


def read(path: Path) -> Tensor:
    """An image file's values, 0.5 % of each end clipped, of mean 0 and spread 1 as those of a phantom: (1, *S)."""
    values = load(path)
    low, high = np.percentile(values.numpy(), (0.5, 99.5))
    values = values.clamp(float(low), float(high))
    return ((values - values.mean()) / values.std().clamp(min=1e-6))[None]


def digest(path: Path) -> str:
    """Eight digits by which a file's content is known."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", help=f"of {', '.join(WORKS)}; all by default")
    parser.add_argument("--memory", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=1, help="patches of a training step")
    parser.add_argument("--rounds", type=int, default=5, help="of steps; predictions take 1 in 5 of them, at least 3")
    parser.add_argument("--patch", type=int, nargs=3, help="in place of a work's own")
    parser.add_argument("--size", type=int, nargs=3, default=(256, 256, 128), help="of the predicted phantom")
    parser.add_argument("--train-size", type=int, nargs=3, help="of the phantom trained on; as --size by default")
    parser.add_argument("--image", type=Path, help="predict this file in place of a phantom")
    parser.add_argument("--label", type=Path, help="the structure in --image: train on patches of that image")
    parser.add_argument("--steps", type=int, default=400, help="of training ahead of a prediction")
    parser.add_argument("--keep", type=Path, help="folder of the network so trained: read from there, or written to it")
    parser.add_argument("--lr", type=float, default=1e-3, help="of that training")
    parser.add_argument("--overlap", type=float, default=0.5, help="of the windows")
    parser.add_argument("--out", default="implicit", help="name of the file in benchmarks/results")
    arguments = parser.parse_args()
    if arguments.memory:
        print(json.dumps(memory(*arguments.memory)))
        return
    if arguments.label and not arguments.image:
        parser.error("--label goes with --image")
    for work in arguments.works:
        if work not in WORKS:
            parser.error(f"no work {work!r}; there are {', '.join(WORKS)}")
    tune_memory()
    device = torch.device(arguments.device)
    facts, precision = conditions(), choose_precision("auto", device)
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    limit = product_rate(torch.bfloat16 if precision == "bf16" else torch.float32, device.type)
    where = facts.get("gpu", facts["processor"])
    print(f"{where}, {facts['threads']} threads, {precision}, product rate {limit:.0f} GFLOP/s", flush=True)
    results: dict[str, Any] = {"conditions": facts, "precision": precision, "product_rate_gflops": round(limit, 1)}
    rounds = arguments.rounds
    for work in arguments.works or WORKS:
        print(work, flush=True)
        if work in PATCHES:
            results[work] = steps(tuple(arguments.patch or PATCHES[work]), arguments.batch, rounds, limit, device)
        else:
            arguments.rounds = max(3, rounds // 5)
            results[work] = prediction(arguments, device)
        write(arguments.out, results)


if __name__ == "__main__":
    main()
