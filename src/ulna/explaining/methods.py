"""What an answer of a network depends on, and how sure it is: gradients, Grad-CAM, attention, spread of several answers.

Functions work on the grid of the plan, where a network sees an image (`prepare`); `on_image_grid` is the way back. All maps
are computed in float32. None of them proves what a network uses: a gradient says how the answer would change with an
infinitely small change of the image, and an attention coefficient is one factor of many.

Legend: C channels, K maps of the network, *S the grid of the image, *S' the grid of the plan, M further maps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ulna.blocks import nd
from ulna.blocks.attention_gate import AttentionGate
from ulna.blocks.self_attention import MultiDimensionalAttention
from ulna.data.pipeline.preprocess import Prepared
from ulna.errors import UsageError
from ulna.explaining.seeing import Piece, add_seen, flat, seen, whole
from ulna.inference.sliding import gaussian, window_starts
from ulna.inference.volume import on_own_grid, slab_axis
from ulna.networks.heads.points import CHUNK
from ulna.networks.network import Network, pad_to_multiple
from ulna.networks.profile.memory import peak_bytes
from ulna.recipe import Plan


class Attention(NamedTuple):
    """The coefficients of one attention block in one forward pass.

    Args:
        kind: "gate" (of a skip map's pixels), "position" (of K dense features, for every pixel), or "channel".
        node: the node that the block stands in, such as "x0_1".
        skip: the node whose map it weighs.
        weights: gate (1, *s), position (K, *s), with *s the size of that node's map, the image padded as the network pads
            it; channel (C, C). All between 0 and 1; over the K features of a pixel, and along a row, they sum to 1.
    """

    kind: str
    node: str
    skip: str
    weights: Tensor


class Uncertainty(NamedTuple):
    """How far one answer is from being sure, and several answers from being one.

    Args:
        mean: (K, *S), the mean of the members' probabilities.
        entropy: of the mean, in nats, from 0 to `most`: (1, *S) for K > 1 exclusive maps, else (K, *S).
        spread: (K, *S), the standard deviation of the probabilities over the members; None for a single one.
        members: their number.
        most: the entropy of no knowledge at all: log K for K > 1 exclusive maps, else log 2.
    """

    mean: Tensor
    entropy: Tensor
    spread: Tensor | None
    members: int
    most: float


def window_size(network: Network, plan: Plan, grid: Sequence[int], room: float) -> tuple[int, ...]:
    """How much of an image of size `grid` is explained at once: all of it, or a patch of the plan.

    All of it where prediction takes it whole too (`Plan.takes_whole`) and its maps with their gradients, which prediction
    does not keep, fit into `room` bytes. Of a volume that is seen as slices, one slice at once.
    """
    grid = [grid[axis] for axis in plan.patch_axes]
    at_once = plan.takes_whole(grid, sparse=network.head.sparse)
    if at_once and (math.prod(grid) <= math.prod(plan.patch) or peak_bytes(network, grid, training=True) <= room):
        return whole(grid, plan.slices)
    return whole([min(side, length) for side, length in zip(plan.patch, grid, strict=True)], plan.slices)


def best_window(region: Tensor, size: Sequence[int], overlap: float) -> Piece:
    """Of the windows that prediction goes through, the one with the most voxels of a region: (*S') bool -> Piece."""
    pieces = _pieces(region.shape, size, overlap)
    return max(pieces, key=lambda piece: int(region[piece.window].sum()))


def saliency(
    network: Network,
    image: Tensor,
    plan: Plan,
    *,
    target: int,
    region: Tensor,
    size: Sequence[int],
    overlap: float,
    margins: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """How strongly every input value moves the score of a class: |d score / d image|, where score is its summed logit.

    Source: saliency (simonyan2014), the gradient of the class score before the softmax; modular U-Net (laird2019),
    Fig. 7, which propagates it back to each input modality. Reading: the paper prints no formula; the score is the sum of
    the target's logit over the voxels predicted as it, and channels are not merged. The gradient is that of the normalised
    values (before the whitening, where there is one), so channels of other units can be compared.

    An image larger than `size` goes by windows like a prediction: the logits of overlapping windows are averaged with
    Gaussian weights, and what comes back is the gradient of the sum of these averages, with one window in memory.

    Args:
        network: in evaluation mode, on the device of `image`.
        image: (C, *S'), from `prepare`.
        plan: of the run.
        target: index of the logit map, 0 to K - 1.
        region: (*S'), bool: the voxels whose logits are summed.
        size: of a window, from `window_size`.
        overlap: of neighbouring windows, 0 to below 1.
        margins: how often `pad_to_patch` repeats the outermost voxels before and behind the image along every axis; they move
            the score by all their copies.

    Returns:
        (C, *S'), float32, 0 or more; 0 in the margins.
    """
    pieces = _pieces(region.shape, size, overlap)
    weights = gaussian(pieces[0].size).to(image.device)
    total = torch.zeros(region.shape, device=image.device)
    for piece in pieces:
        total[piece.window] += weights
    gradient = torch.zeros_like(image)
    for piece in pieces:
        shares = flat(region[piece.window] * weights / total[piece.window], plan.slices)
        if shares.any():
            x = seen(image, piece, plan.slices)[None].clone().requires_grad_()
            add_seen(gradient, piece, plan.slices, torch.autograd.grad(score(network, x, target, shares), x)[0][0])
    for axis, (before, behind) in enumerate(margins, start=1):
        ends = (
            (slice(0, before), before),
            (slice(gradient.shape[axis] - behind, None), gradient.shape[axis] - behind - 1),
        )
        for copies, edge in ends:
            repeated = gradient.movedim(axis, 0)[copies]
            gradient.movedim(axis, 0)[edge] += repeated.sum(0)
            repeated.zero_()
    if plan.whitening is not None:  # the network's input is W (x - mean)
        matrix = torch.tensor(plan.whitening.matrix, device=image.device)
        gradient = (matrix.T @ gradient.flatten(1)).reshape(image.shape)
    return gradient.abs()


def score(network: Network, image: Tensor, target: int, weights: Tensor) -> Tensor:
    """A class's logit, weighted and summed over the voxels: (1, C, *s), (*s) -> scalar.

    A head that reads points is asked where the weights are not 0, a few points at a time.
    """
    if not network.head.sparse:
        return (network(image)[0, target] * weights).sum()
    maps, size = network.encode(image)
    points = weights.nonzero()

    def read(some: Tensor) -> Tensor:
        logits = network.head(maps, size, some[None]).logits[0, target]
        return logits @ weights[some.unbind(1)]

    # decoded again in the backward pass: the hidden layers of all points at once would fill the memory
    return torch.stack([checkpoint(read, some, use_reentrant=False) for some in torch.split(points, CHUNK)]).sum()


def grad_cam(network: Network, image: Tensor, *, target: int, region: Tensor, node: str | None = None) -> Tensor:
    """Where the maps of a node that raise the score of a class are high: relu of the sum of a_c M_c over channels c.

    a_c is the mean of d score / d M_c over the map, and the score is that of `saliency`.

    Source: Grad-CAM (selvaraju2017); the score of a segmentation, logits summed over a region (vinogradova2020).
    Reading: the node is the deepest one, as there, unless another is named.

    Args:
        network: in evaluation mode.
        image: (C, *s), all of an image from `prepare` or a piece of it.
        target: index of the logit map.
        region: (*s), bool.
        node: name of a node of the network's wiring.

    Returns:
        (*s), float32, 0 or more, linearly interpolated from the size of the node's map.

    Raises:
        UsageError: if there is no such node.
    """
    node = node or deepest_node(network)
    if node not in network.stages:
        raise UsageError(f"no node {node!r}; this network has {', '.join(network.stages)}")
    kept: list[Tensor] = []
    handle = network.stages[node].register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        with torch.inference_mode(False), torch.enable_grad():  # whatever holds outside
            x = image[None].detach().clone().requires_grad_()  # gradients flow also where no parameter asks for them
            value = score(network, x, target, region.float())
            (gradient,) = torch.autograd.grad(value, kept[0])
    finally:
        handle.remove()
    weights = gradient.mean(dim=tuple(range(2, gradient.ndim)), keepdim=True)
    maps = (weights * kept[0].detach()).sum(1).relu()
    return on_plan_grid(maps, image.shape[1:], network)[0]


def deepest_node(network: Network) -> str:
    """The last node of the coarsest level."""
    return network.wiring.pyramid[-1]


def attention_maps(network: Network, image: Tensor) -> list[Attention]:
    """The coefficients of every attention gate and every multi-dimensional self-attention, in the order of computation.

    They come from the methods that the blocks' own forward passes call, on the same inputs.

    Source: Attention U-Net (oktay2018) for gates; omega-Net (wang2020), Eq. 10 (position) and 12 (channel).

    Args:
        network: in evaluation mode; empty where it has no such block.
        image: (C, *s), all of an image from `prepare` or a piece of it.
    """
    found: list[Attention] = []
    handles = []

    def listen(block: nn.Module, kind: str, node: str, skip: str) -> None:
        def before(module: Any, inputs: tuple[Tensor, ...]) -> None:
            weights = module.attention(*inputs)
            if kind == "position":  # (N, P, K), and the features
                weights = weights[0].mT
                weights = weights.reshape(*weights.shape[:2], *inputs[0].shape[2:])
            found.append(Attention(kind, node, skip, weights[0].float()))

        handles.append(block.register_forward_pre_hook(before))

    for node in network.wiring.nodes:
        block: Any = getattr(network.stages[node.name], "skip", None)
        if isinstance(block, AttentionGate):
            for skip, gate in zip(node.skips, block.gates, strict=True):
                listen(gate, "gate", node.name, skip)
        elif isinstance(block, MultiDimensionalAttention):
            for skip, refine in zip(node.skips, block.refine, strict=True):
                for kind, attends in zip(("position", "channel"), list(refine.children())[1:], strict=True):
                    listen(attends, kind, node.name, skip)
    try:
        if handles:
            with torch.no_grad():
                network.encode(image[None])
    finally:
        for handle in handles:
            handle.remove()
    return found


def uncertainty(members: Iterable[Tensor], *, exclusive: bool) -> Uncertainty:
    """The entropy of the mean of several answers, and how far they lie apart; each is let go before the next is asked for.

    Source: members are networks trained apart (lakshminarayanan2017) or answers to changed copies of an image (wang2019).

    Args:
        members: one or more, probabilities, (K, *S) each.
        exclusive: K > 1 maps exclude each other, so that they have one entropy; else each map has its own.

    Raises:
        ValueError: if there is no member.
    """
    mean, squares, count = torch.empty(0), torch.empty(0), 0
    for maps in members:
        if count == 0:
            mean, squares = torch.zeros_like(maps), torch.zeros_like(maps)
        count += 1
        for values, average, square in zip(maps, mean, squares, strict=True):  # Welford: equal members give exactly 0
            distance = values - average
            average += distance / count
            square += distance * (values - average)
    if count == 0:
        raise ValueError("no member is given")
    if exclusive and len(mean) > 1:
        entropy, most = torch.special.entr(mean).sum(0, keepdim=True), math.log(len(mean))
    else:
        entropy, most = torch.special.entr(mean) + torch.special.entr(1 - mean), math.log(2)
    spread = squares.clamp_min_(0).div_(count).sqrt_() if count > 1 else None
    return Uncertainty(mean, entropy, spread, count, most)


def on_plan_grid(maps: Tensor, size: Sequence[int], network: Network) -> Tensor:
    """Maps of a node on the grid of the image that it saw, linearly: (M, *s / stride) -> (M, *s).

    They cover the image as the network padded it; what lies outside is cropped.
    """
    padded = pad_to_multiple(maps.new_empty(1, 1, *size), network.divisor).shape[2:]
    inside: tuple[Any, ...] = (..., *(slice(n) for n in size))
    return nd.resize(maps[None], padded)[0][inside]


def on_image_grid(maps: Tensor, prepared: Prepared, piece: Piece | None = None) -> Tensor:
    """The way back from the grid of the plan to that of the file: (M, *S') -> (M, *S), float32, on the CPU.

    Maps of a `piece`, (M, *s), are 0 outside it; margins of the image are cut off.
    """
    grid, maps = tuple(prepared.image.shape[1:]), maps.float().cpu()
    if piece is not None and piece.size != grid:
        whole = torch.zeros(len(maps), *grid)
        whole[piece.window] = maps
        maps = whole
    return on_own_grid([maps[prepared.inside]], prepared, slab_axis(prepared.size)).maps()


def _pieces(grid: Sequence[int], size: Sequence[int], overlap: float) -> list[Piece]:
    sides = tuple(min(side, length) for side, length in zip(size, grid, strict=True))
    starts = [window_starts(length, side, overlap) for length, side in zip(grid, sides, strict=True)]
    return [Piece(corner, sides) for corner in itertools.product(*starts)]
