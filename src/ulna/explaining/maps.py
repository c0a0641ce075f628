"""The maps of an explanation: how each is found, and what is said of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ulna.data.formats.limits import memory
from ulna.data.pipeline.preprocess import Prepared
from ulna.explaining import methods
from ulna.explaining.pictures import Layers, Panel
from ulna.explaining.seeing import Piece, flat, lifted, seen
from ulna.inference.segmenter import Segmenter
from ulna.networks.foreign import ForeignNetwork
from ulna.networks.network import Network
from ulna.recipe import Labels

BRIGHTEST = 99.5  # per cent of the values that the colours of a saliency map tell apart


@dataclass
class Found:
    """What was found: the maps, what is said of each in explain.json, and what was left out and why."""

    layers: Layers = field(default_factory=dict)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


class Subject(NamedTuple):
    """What is explained.

    Args:
        prepared: the image on the grid of the plan.
        target: index of the logit map.
        name: of its class.
        region: (*S'), bool: the voxels whose logits are summed.
        size: of what is explained at once, a window or all of it.
        piece: the window with the most of the region, for what cannot be put together from windows.
    """

    prepared: Prepared
    target: int
    name: str
    region: Tensor
    size: tuple[int, ...]
    piece: Piece


def add_saliency(segmenter: Segmenter, network: Network, subject: Subject, found: Found) -> None:
    """Saliency of the target, a map per channel."""
    plan, image = segmenter.plan, subject.prepared.image.to(segmenter.device)
    maps = methods.saliency(
        network,
        image,
        plan,
        target=subject.target,
        region=subject.region.to(segmenter.device),
        size=subject.size,
        overlap=segmenter.recipe.inference.overlap,
        margins=subject.prepared.margins,
    )
    sums = maps.double().flatten(1).sum(1)
    shares = (sums / sums.sum().clamp_min(1e-300)).tolist()
    values = methods.on_image_grid(maps, subject.prepared).numpy()
    most = float(np.percentile(values, BRIGHTEST)) or float(values.max())
    found.layers["saliency"] = [
        Panel(f"saliency of {subject.name}", f"{name}, {share:.0%} of the sum", one, most, channel=name)
        for name, share, one in zip(plan.channel_names, shares, values, strict=True)
    ]
    whole = subject.size == tuple(image.shape[1:])
    found.about["saliency"] = {
        "method": "input gradient: the absolute derivative of the target's summed logit by every input value",
        "source": "Simonyan 2014; Laird 2019, Fig. 7",
        "reading": "the logits of the voxels predicted as the target are summed; one map per channel, by the normalised "
        "values, so that channels can be compared"
        + ("" if whole else "; by windows, whose logits are averaged with Gaussian weights as in prediction"),
        "channels": list(plan.channel_names),
        "share": [round(share, 6) for share in shares],
        "window": [min(side, n) for side, n in zip(subject.size, _size(subject), strict=True)],
        "brightest": most,
    }


def add_uncertainty(doubt: methods.Uncertainty, kind: str, subject: Subject, labels: Labels, found: Found) -> None:
    """Entropy of the mean answer and, of several answers, their spread."""
    entropy = doubt.entropy[0 if len(doubt.entropy) == 1 else subject.target].numpy()
    title = f"uncertainty, {doubt.members} {kind}" if doubt.members > 1 else "uncertainty"
    found.layers["uncertainty"] = [Panel(title, f"entropy, 0 to {doubt.most:.2f} nats", entropy, doubt.most)]
    maps = ["entropy"]
    if doubt.spread is None:
        found.left_out["spread"] = (
            "there is one answer alone; give several runs, --tta (where training mirrored), or a network with several heads"
        )
    else:
        spread = doubt.spread[subject.target].numpy()
        most = float(spread.max())
        found.layers["uncertainty"].append(Panel(title, f"spread of {subject.name}, up to {most:.2g}", spread, most))
        maps.append("spread")
    of_all = len(doubt.entropy) < labels.outputs
    found.about["uncertainty"] = {
        "method": "entropy of the mean of the members' probabilities, in nats; spread: their standard deviation",
        "source": "Lakshminarayanan 2017 (runs); Wang 2019 (mirrored copies)",
        "reading": f"entropy over {'all classes' if of_all else f'{subject.name} or not'}; spread of {subject.name}",
        "members": doubt.members,
        "of": kind,
        "maps": maps,
        "most": doubt.most,
    }


def add_grad_cam(segmenter: Segmenter, network: Network, subject: Subject, found: Found) -> None:
    """Grad-CAM at the deepest node; a network of others has no nodes that are known."""
    if isinstance(network, ForeignNetwork):
        found.left_out["gradcam"] = "which of the maps of a network of others is the deepest is not known"
        return
    piece, slices = subject.piece, segmenter.plan.slices
    image = seen(subject.prepared.image, piece, slices).to(segmenter.device)
    region = flat(subject.region[piece.window], slices).to(segmenter.device)
    maps = methods.grad_cam(network, image, target=subject.target, region=region)
    values = methods.on_image_grid(lifted(maps[None], slices), subject.prepared, piece).numpy()
    node = methods.deepest_node(network)
    found.layers["gradcam"] = [Panel(f"Grad-CAM of {subject.name}", f"node {node}", values[0], float(values.max()))]
    found.about["gradcam"] = {
        "method": "Grad-CAM of the target's summed logit",
        "source": "Selvaraju 2017; Vinogradova 2020",
        "reading": "at the deepest node, interpolated linearly",
        "node": node,
        **_said(piece, subject),
    }


def add_attention(segmenter: Segmenter, network: Network, subject: Subject, found: Found) -> None:
    """The coefficients of the network's own attention blocks, if it has any."""
    piece = subject.piece
    slices = segmenter.plan.slices
    image = seen(subject.prepared.image, piece, slices).to(segmenter.device)
    coefficients = methods.attention_maps(network, image)
    if not coefficients:
        found.left_out["attention"] = "this network has neither attention gates nor multi-dimensional self-attention"
        return
    held = 4 * math.prod(subject.prepared.size) * sum(len(one.weights) for one in coefficients if one.kind != "channel")
    if held > memory() / 4:
        found.left_out["attention"] = f"its maps take {held / 1e9:.1f} GB on the grid of this image; cut the image"
        return
    found.layers["attention"] = []
    for one in coefficients:
        gate = one.kind == "gate"  # the gates of a node in one row
        title = f"gates at {one.node}" if gate else f"{one.kind} attention at {one.node}, of the map of {one.skip}"
        if one.kind == "channel":
            caption = f"{len(one.weights)} x {len(one.weights)} channels"
            found.layers["attention"].append(Panel(title, caption, one.weights.cpu().numpy(), 1.0, in_image=False))
            continue
        maps = lifted(methods.on_plan_grid(one.weights, image.shape[1:], network), slices)
        captions = [f"how much of {one.skip} passes"] if gate else [f"feature {k}" for k in range(len(maps))]
        found.layers["attention"] += [
            Panel(title, caption, methods.on_image_grid(values[None], subject.prepared, piece)[0].numpy(), 1.0)
            for caption, values in zip(captions, maps, strict=True)
        ]
    found.about["attention"] = {
        "method": "the coefficients that the network's own blocks used on this image, from 0 to 1",
        "source": "Oktay 2018 (gates); omega-Net, Eq. 10 (position) and 12 (channel)",
        "reading": "interpolated linearly; channel attention is a matrix and has no place in the image",
        "maps": [f"{panel.title}: {panel.caption}" for panel in found.layers["attention"] if panel.in_image],
        "matrices": [f"{panel.title}: {panel.caption}" for panel in found.layers["attention"] if not panel.in_image],
        **_said(piece, subject),
    }


def _said(piece: Piece, subject: Subject) -> dict[str, Any]:
    """Which part of the image was seen, where it is not all of it."""
    if piece.size == tuple(subject.prepared.image.shape[1:]):
        return {"piece": None}
    prepared = subject.prepared
    before = [side for side, _ in prepared.margins] or [0] * len(piece.size)
    first = [max(start - side, 0) for start, side in zip(piece.corner, before, strict=True)]
    ends = [
        min(start + size - side, n)
        for start, size, side, n in zip(piece.corner, piece.size, before, _size(subject), strict=True)
    ]
    return {
        "piece": {"corner": first, "size": [end - start for start, end in zip(first, ends, strict=True)]},
        "piece_reading": "the image is larger than what is explained at once: the window with the most predicted voxels (of "
        "slices, in the slice with the most), in voxels of the grid of the plan; 0 outside it",
    }


def _size(subject: Subject) -> tuple[int, ...]:
    """Of the image on the grid of the plan, without margins."""
    return tuple(subject.prepared.image[subject.prepared.inside].shape[1:])
