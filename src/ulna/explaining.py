"""The verb `explain`: what the answer for one image hangs on, and how sure it is, as pictures and as volumes."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulna.data.case import Case
from ulna.data.dataset import Dataset
from ulna.data.limits import memory
from ulna.data.preprocess import Prepared, prepare, prepare_labels
from ulna.data.read import write_image
from ulna.errors import UsageError, unknown
from ulna.figures import RGB, flat, overlay, panels, to_rgb
from ulna.files import write_text
from ulna.forecast import Forecast
from ulna.inference import explaining as methods
from ulna.inference.folding import folded
from ulna.inference.predict import predict_volume, to_labels
from ulna.networks.heads import Dense
from ulna.networks.network import Network
from ulna.recipe import Labels
from ulna.segmenter import Ensemble, Segmenter, load
from ulna.volume import Volume

EXPLAIN_FILE = "explain.json"
SHEET_FILE = "contact_sheet.png"
NO_PROOF = (
    "these maps are no proof of what a network uses: a gradient tells how the answer changes with an infinitely small "
    "change of the image, an attention coefficient is one factor of many, and a sure network can be wrong"
)
TOO_LARGE = "cut the image, or use a machine with more memory"
BRIGHTEST = 99.5  # per cent of the values that the colours of a saliency map tell apart

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Explanation:
    """What `explain` wrote: the folder, the names of the files in it, and what each shows and how it was made."""

    folder: Path
    files: tuple[str, ...]
    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"folder": str(self.folder), **self.facts}


class _Panel(NamedTuple):
    """One map: (*S) on the grid of the image, or a matrix that has no place in it; drawn from 0 to `most`."""

    title: str
    caption: str
    values: NDArray[np.float32]
    most: float
    in_image: bool = True


Layers = dict[str, list[_Panel]]  # name of the file -> its maps


@dataclass
class _Found:
    """What was found: the maps, what is said of each in explain.json, and what was left out and why."""

    layers: Layers = field(default_factory=dict)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


class _Subject(NamedTuple):
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
    piece: methods.Piece


def explain(
    run: Path | str | Sequence[Path | str],
    image: Path | str,
    /,
    *,
    out: Path | str,
    target: str | None = None,
    tta: bool = False,
) -> Explanation:
    """Show what the answer for one image hangs on and how sure it is: saliency, uncertainty, Grad-CAM, attention.

    Writes PNG for a 2D image; for a volume NIfTI in its geometry, and a contact sheet of the slice with the most of the
    class. Saliency maps are no proof of what a network uses. Grad-CAM needs captum (pip install 'ulna[explain]').

    Args:
        run: a run folder of `ulna train`; of several, the spread of their answers is shown, and all else of the first.
        image: an image.
        out: folder for the maps and explain.json, which says how each was made.
        target: the class to explain; left out, the structure with the most predicted voxels.
        tta: predict mirrored copies of the image too; of a single run, the spread of these answers is shown.

    Returns:
        The folder, its files, and what stands in explain.json.

    Raises:
        UsageError: if the run, the image or the folder cannot be used, or there is no such class.

    Example:
        ulna explain runs/nuclei-unetpp scan.png --out why
    """
    runs, image, out = [Path(one) for one in ([run] if isinstance(run, str | Path) else run)], Path(image), Path(out)
    segmenter = load(runs)
    labels = segmenter.plan.labels
    wanted = None if target is None else _index(target, labels)
    case = _only_case(image, segmenter.plan.in_channels)
    _make_folder(out, case)
    volume = case.read_image()
    prepared = prepare(volume, segmenter.plan)
    _need(segmenter, volume).check(f"an image of {' x '.join(map(str, volume.size))}", TOO_LARGE)

    kind, members = _members(segmenter, volume, tta)
    doubt = methods.uncertainty(members, exclusive=not labels.multilabel)
    # heads differ from the network's answer, which may be the last of them
    answer = segmenter.probabilities(volume) if kind == "heads" else doubt.mean
    mask = to_labels(answer, labels, segmenter.recipe.inference.threshold)
    index = _largest(mask, labels) if wanted is None else wanted
    inside = _region(mask, index, labels)
    region = prepare_labels(inside.astype(np.uint8), volume.spacing, segmenter.plan).bool()
    empty = not bool(region.any())
    summed = torch.ones_like(region) if empty else region
    size = methods.window_size(segmenter.network, segmenter.plan, region.shape, memory() / 2)
    piece = methods.telling_piece(summed, size, segmenter.recipe.inference.overlap)
    subject = _Subject(prepared, index, _names(labels)[index], summed, size, piece)

    network = folded(segmenter.network).requires_grad_(False)  # a copy: only the image needs gradients
    found = _Found(
        about={"overlay": {"method": "the predicted label map; in pictures its outline, and maps over the image"}}
    )
    _saliency(segmenter, network, subject, found)
    _uncertainty(doubt, kind, subject, labels, found)
    _grad_cam(segmenter, network, subject, found)
    _attention(segmenter, network, subject, found)

    files = _WRITERS[volume.spatial_dims](out, volume, mask, inside, found.layers)
    voxels = int(np.count_nonzero(inside))
    written = [*dict.fromkeys(files.values()), EXPLAIN_FILE]
    facts = {
        "model": segmenter.recipe.model,
        "runs": [one.resolve().name for one in runs],
        "network": f"uncertainty is of all runs, all other maps of {runs[0].resolve().name}",
        "image": case.id,
        "target": subject.name,
        "voxels": voxels,
        "region": f"no voxel of the network's grid is predicted as {subject.name}: the sums run over the whole image"
        if empty
        else f"the sums run over the {voxels} voxels predicted as {subject.name}",
        "tta": tta,
        "maps": {name: {"file": files[name], **about} for name, about in found.about.items()},
        "left_out": found.left_out,
        "note": NO_PROOF,
        "files": written,
    }
    write_text(out / EXPLAIN_FILE, json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False))
    return Explanation(out, tuple(written), facts)


def _only_case(image: Path, channels: int) -> Case:
    cases = Dataset.from_folder(image, need_labels=False, channels=channels).cases
    if len(cases) != 1:
        raise UsageError(f"{image}: holds {len(cases)} images; name one of them")
    return cases[0]


def _make_folder(out: Path, case: Case) -> None:
    """Make the folder; never one that holds the image or a run."""
    if out.resolve() in {source.path.resolve().parent for source in case.images} or (out / "recipe.yaml").exists():
        raise UsageError(f"{out}: holds the image or a run, which maps could replace; choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be made ({error.strerror}); choose another --out") from None


def _need(segmenter: Segmenter, volume: Volume) -> Forecast:
    """A prediction with its probabilities, and what the members leave: their mean, their spread and the entropy."""
    kept = 3 * 4 * segmenter.plan.labels.outputs * math.prod(volume.size)
    return Forecast({**segmenter.forecast(volume, probabilities=True).parts, "mean and spread": kept})


def _members(segmenter: Segmenter, volume: Volume, tta: bool) -> tuple[str, Iterator[Tensor]]:
    """Several answers for one image, (K, *S) each, and what they are answers of; one where there is no more."""
    if isinstance(segmenter, Ensemble):
        each = [member.mirrored() if tta else member for member in segmenter.members]
        return "runs", (member.probabilities(volume) for member in each)
    if tta and segmenter.plan.mirror_axes:
        return "mirrored copies", (
            _mirrored_answer(segmenter, volume, axes) for axes in methods.mirrorings(segmenter.plan.mirror_axes)
        )
    heads = _full_heads(segmenter.network)
    if len(heads) > 1:
        return "heads", (_head_answer(segmenter, volume, head) for head in heads)
    return "answer", iter([segmenter.probabilities(volume)])


def _mirrored_answer(segmenter: Segmenter, volume: Volume, axes: tuple[int, ...]) -> Tensor:
    turned = tuple(axis + 1 for axis in axes)
    mirrored = volume.with_array(np.ascontiguousarray(np.flip(volume.array, turned)))
    return segmenter.probabilities(mirrored).flip(turned)


def _head_answer(segmenter: Segmenter, volume: Volume, head: str) -> Tensor:
    return predict_volume(
        folded(segmenter.network.prune(head)),
        segmenter.plan,
        volume,
        settings=segmenter.recipe.inference,
        device=segmenter.device,
        precision=segmenter.precision,
    )


def _full_heads(network: Network) -> list[str]:
    """The heads that answer at the image's own size; of coarser ones the spread would show their resolution."""
    if not isinstance(network.head, Dense):
        return []
    return [name for name in network.head.convs if network.wiring.node(name).level == 0]


def _names(labels: Labels) -> tuple[str, ...]:
    """The class of every map of the network."""
    return labels.names[-labels.outputs :]


def _index(target: str, labels: Labels) -> int:
    if target not in _names(labels):
        raise UsageError(f"--target: {unknown('class', target, _names(labels))}")
    return _names(labels).index(target)


def _largest(mask: NDArray[Any], labels: Labels) -> int:
    """The structure with the most predicted voxels; the first one where nothing is predicted."""
    structures = [index for index, name in enumerate(_names(labels)) if name in labels.foreground]
    return max(structures, key=lambda index: np.count_nonzero(_region(mask, index, labels)))


def _region(mask: NDArray[Any], index: int, labels: Labels) -> Mask:
    """(*S): the voxels of a label map that have the class of a map of the network."""
    if labels.multilabel:
        return np.asarray(mask[index] != 0)
    return np.asarray(mask == (1 if labels.outputs == 1 else index))


def _saliency(segmenter: Segmenter, network: Network, subject: _Subject, found: _Found) -> None:
    plan, image = segmenter.plan, subject.prepared.image.to(segmenter.device)
    maps = methods.saliency(
        network,
        image,
        plan,
        target=subject.target,
        region=subject.region.to(segmenter.device),
        size=subject.size,
        overlap=segmenter.recipe.inference.overlap,
    )
    sums = maps.double().flatten(1).sum(1)
    shares = (sums / sums.sum().clamp_min(1e-300)).tolist()
    values = methods.on_image_grid(maps, subject.prepared).numpy()
    most = float(np.percentile(values, BRIGHTEST)) or float(values.max())
    found.layers["saliency"] = [
        _Panel(f"saliency of {subject.name}", f"{name}, {share:.0%} of the sum", one, most)
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
        "window": list(subject.size),
        "brightest": most,
    }


def _uncertainty(doubt: methods.Uncertainty, kind: str, subject: _Subject, labels: Labels, found: _Found) -> None:
    entropy = doubt.entropy[0 if len(doubt.entropy) == 1 else subject.target].numpy()
    title = f"uncertainty, {doubt.members} {kind}" if doubt.members > 1 else "uncertainty"
    found.layers["uncertainty"] = [_Panel(title, f"entropy, 0 to {doubt.most:.2f} nats", entropy, doubt.most)]
    maps = ["entropy"]
    if doubt.spread is None:
        found.left_out["spread"] = (
            "there is one answer alone; give several runs, --tta (where training mirrored), or a network with several heads"
        )
    else:
        spread = doubt.spread[subject.target].numpy()
        most = float(spread.max())
        found.layers["uncertainty"].append(_Panel(title, f"spread of {subject.name}, up to {most:.2g}", spread, most))
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


def _grad_cam(segmenter: Segmenter, network: Network, subject: _Subject, found: _Found) -> None:
    piece = subject.piece
    image, region = (part[piece.window].to(segmenter.device) for part in (subject.prepared.image, subject.region))
    try:
        maps = methods.grad_cam(network, image, target=subject.target, region=region)
    except UsageError as error:
        found.left_out["gradcam"] = str(error)
        return
    values = methods.on_image_grid(maps[None], subject.prepared, piece).numpy()
    node = methods.deepest_node(network)
    found.layers["gradcam"] = [_Panel(f"Grad-CAM of {subject.name}", f"node {node}", values[0], float(values.max()))]
    found.about["gradcam"] = {
        "method": "Grad-CAM (captum's LayerGradCam) of the target's summed logit",
        "source": "Selvaraju 2017; Vinogradova 2020",
        "reading": "at the deepest node, interpolated linearly",
        "node": node,
        **_said(piece, subject),
    }


def _attention(segmenter: Segmenter, network: Network, subject: _Subject, found: _Found) -> None:
    piece = subject.piece
    image = subject.prepared.image[piece.window].to(segmenter.device)
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
            found.layers["attention"].append(_Panel(title, caption, one.weights.cpu().numpy(), 1.0, in_image=False))
            continue
        maps = methods.on_plan_grid(one.weights, piece.size, network)
        captions = [f"how much of {one.skip} passes"] if gate else [f"feature {k}" for k in range(len(maps))]
        found.layers["attention"] += [
            _Panel(title, caption, methods.on_image_grid(values[None], subject.prepared, piece)[0].numpy(), 1.0)
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


def _said(piece: methods.Piece, subject: _Subject) -> dict[str, Any]:
    """Which part of the image was seen, where it is not all of it."""
    if piece.size == tuple(subject.prepared.image.shape[1:]):
        return {"piece": None}
    return {
        "piece": {"corner": list(piece.corner), "size": list(piece.size)},
        "piece_reading": "the image is larger than what is explained at once: the window with the most predicted voxels, in "
        "voxels of the grid of the plan; 0 outside it",
    }


def _write_pictures(out: Path, volume: Volume, mask: NDArray[Any], inside: Mask, layers: Layers) -> dict[str, str]:
    """A PNG for every layer, and the overlay: {layer: name of the file}."""
    rows = _rows(volume, mask, inside, layers)
    return {name: panels(rows[name], out / f"{name}.png", legend=_legend()).name for name in rows}


def _write_volumes(out: Path, volume: Volume, mask: NDArray[Any], inside: Mask, layers: Layers) -> dict[str, str]:
    """A NIfTI file for every layer, several maps on its fourth axis, and one sheet with a slice of all of them."""
    like = volume
    if volume.meta.get("format") != "nifti":
        affine = np.diag([*volume.spacing, 1.0]) if volume.affine is None else volume.affine
        like = Volume(volume.array, volume.spacing, volume.unit, affine, volume.path)
    files = {}
    for name, layer in layers.items():
        maps = np.stack([panel.values for panel in layer if panel.in_image]).astype(np.float32)
        files[name] = write_image(out / name, like.with_array(maps)).name
    files["overlay"] = write_image(out / "overlay", like.with_array(mask.reshape(-1, *volume.size))).name
    rows = [row for some in _rows(volume, mask, inside, layers).values() for row in some]
    files["sheet"] = panels(rows, out / SHEET_FILE, legend=_legend()).name
    return files


_WRITERS = {2: _write_pictures, 3: _write_volumes}

Rows = list[tuple[str, list[tuple[str, RGB]]]]


def _rows(volume: Volume, mask: NDArray[Any], inside: Mask, layers: Layers) -> dict[str, Rows]:
    """The pictures of the overlay and of every layer, of a volume those of one slice."""
    entropy = layers["uncertainty"][0]
    guide = inside if inside.any() else entropy.values >= entropy.values.max() / 2
    image, _, labels = flat(volume.array, guide, mask)
    cut = {
        name: [
            panel._replace(values=flat(volume.array, guide, panel.values)[2]) if panel.in_image else panel
            for panel in layer
        ]
        for name, layer in layers.items()
    }
    over = [("image", to_rgb(image)), ("prediction", overlay(image, labels))]
    over += [(f"saliency, {panel.caption}", _over(image, panel)) for panel in cut["saliency"]]
    over += [(panel.caption, _over(image, panel)) for panel in cut["uncertainty"]]
    rows: dict[str, Rows] = {"overlay": [("over the image", over)]}
    for name, layer in cut.items():
        grouped = itertools.groupby(layer, key=lambda panel: panel.title)
        rows[name] = [(title, [(p.caption, _heat(p.values, p.most)) for p in group]) for title, group in grouped]
    return rows


def _heat(values: NDArray[np.float32], most: float) -> RGB:
    """(H, W), from 0 (dark) to `most` (bright) -> (H, W, 3)."""
    colours = matplotlib.colormaps["inferno"](np.clip(values / (most or 1.0), 0, 1))
    return np.rint(255 * colours[..., :3]).astype(np.uint8)


def _over(image: NDArray[Any], panel: _Panel) -> RGB:
    """A map over the darkened image, the more of it the higher it is."""
    grey = 0.6 * (to_rgb(image) @ (0.299, 0.587, 0.114))[..., None]
    share = np.clip(panel.values / (panel.most or 1.0), 0, 1)[..., None]
    return np.rint((1 - share) * grey + share * _heat(panel.values, panel.most)).astype(np.uint8)


def _legend() -> list[tuple[str, tuple[int, int, int]]]:
    low, high = _heat(np.array([[0.05, 1.0]], np.float32), 1.0)[0]
    return [("low", tuple(low.tolist())), ("high", tuple(high.tolist()))]
