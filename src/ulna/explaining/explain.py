"""The verb `explain`: what the answer for one image depends on, and how sure it is, as pictures and as volumes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulna.data.formats.dicom.choosing import Wishes, parse_wishes
from ulna.data.formats.limits import memory
from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset
from ulna.data.pipeline.orientation import turned
from ulna.data.pipeline.preprocess import prepare, prepare_labels
from ulna.data.volume import Volume
from ulna.errors import UsageError, counted, listed, unknown
from ulna.explaining import methods
from ulna.explaining.maps import Found, Subject, add_attention, add_grad_cam, add_saliency, add_uncertainty
from ulna.explaining.pictures import SHEET_FILE, WRITERS, Mask
from ulna.explaining.seeing import most_seen
from ulna.inference.ensemble import Ensemble, load_runs
from ulna.inference.fold_runs import each_run, run_name
from ulna.inference.folding import fuse_batchnorm
from ulna.inference.inputs import channels_of
from ulna.inference.levels import pruned
from ulna.inference.segmenter import Segmenter
from ulna.inference.volume import as_given, flips
from ulna.networks.heads import Dense
from ulna.networks.network import Network
from ulna.planning.memory import MemoryEstimate
from ulna.recipe import Labels, Plan
from ulna.system.files import move_whole, staged, unwritable, write_text
from ulna.system.locking import locked
from ulna.system.order import check_run_first
from ulna.system.outputs import EXPLAIN_FILE, check_folder, check_names, file_digest, is_plain, make_folder
from ulna.system.reading import read_json_object
from ulna.verbs import to_argv

LAYERS = ("overlay", "saliency", "uncertainty", "gradcam", "attention")
FILES = (*(f"{layer}{ending}" for layer in LAYERS for ending in (".png", ".nii.gz", ".nii")), SHEET_FILE)
NO_PROOF = (
    "these maps are no proof of what a network uses: a gradient tells how the answer changes with an infinitely small "
    "change of the image, an attention coefficient is one factor of many, and a sure network can be wrong"
)
TOO_LARGE = "cut the image, or use a machine with more memory"


@dataclass(frozen=True)
class Explanation:
    """What `explain` wrote: the folder, the names of the files in it, and what each shows and how it was made."""

    folder: Path
    files: tuple[str, ...]
    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"folder": str(self.folder), **self.facts}


def explain(
    run: Path | str | Sequence[Path | str],
    image: Path | str,
    /,
    *,
    out: Path | str,
    case: str | None = None,
    target: str | None = None,
    tta: bool = False,
    series: Sequence[str] = (),
    dicom: Sequence[str] = (),
    allow_code: bool = False,
) -> Explanation:
    """Show what the answer for one image depends on and how sure it is: saliency, uncertainty, Grad-CAM, attention.

    Writes PNG for a 2D image; for a volume NIfTI in its geometry, and a contact sheet of the slice with the most of the
    class, in the radiological convention (the patient's right on the left) with letters at its sides. Channels that are no
    colour, such as the sequences of MRI, are each drawn, under their own saliency. Saliency maps are no proof of what a
    network uses.

    Args:
        run: a run folder of `ulna train`; of several, and of the folds of a cross-validation, the spread of their answers is
            shown, and all else of the first.
        image: an image, or a data set that holds it.
        out: folder for the maps and explain.json, which says how each was made.
        case: the id of the image in a data set of several.
        target: the class to explain; left out, the structure with the most predicted voxels.
        tta: predict mirrored copies of the image too; of a single run, the spread of these answers is shown.
        series: of DICOM: the UID or the description of the series to take, or of several that are the channels.
        dicom: what is done about odd slices, as in `ulna predict`.
        allow_code: execute the code of a network of one's own, which lies in the run as network.py: read it before.

    Returns:
        The folder, its files, and what stands in explain.json.

    Raises:
        UsageError: if the run, the image or the folder cannot be used, or there is no such case or class.

    Example:
        ulna explain runs/nuclei-unetpp scan.png --out why
    """
    named, image, out = [Path(one) for one in ([run] if isinstance(run, str | Path) else run)], Path(image), Path(out)
    flags = {"--out": out, "--case": case, "--target": target, "--tta": tta, "--allow-code": allow_code}
    check_run_first("explain", named, image, to_argv(flags))
    runs = each_run(named)
    segmenter = load_runs(runs, allow_code=allow_code)
    labels = segmenter.plan.labels
    wanted = None if target is None else _index(target, labels)
    wishes = parse_wishes(series, dicom)._replace(channels=channels_of(segmenter.plan))
    chosen = _choose(image, case, segmenter.plan, wishes)
    _make_folder(out, chosen)
    volume = segmenter.as_trained(chosen.read_image())
    _need(segmenter, volume).check(f"an image of {' x '.join(map(str, volume.size))}", TOO_LARGE)

    kind, members = _members(segmenter, volume, tta)
    doubt = methods.uncertainty(members, exclusive=not labels.multilabel)
    # heads differ from the network's answer, which may be the last of them
    answer = segmenter.probabilities(volume) if kind == "heads" else doubt.mean
    mask = segmenter.cleaned(segmenter.label_map(answer), volume)  # as predict writes it
    index = _largest(mask, labels) if wanted is None else wanted
    inside = _region(mask, index, labels)
    prepared = as_given(prepare(volume, segmenter.plan), segmenter.network, segmenter.plan)
    region = torch.zeros(prepared.image.shape[1:], dtype=torch.bool)
    region[prepared.inside] = prepare_labels(inside.astype(np.uint8), volume, segmenter.plan, padded=False).bool()
    empty = not bool(region.any())
    summed = region
    if empty:
        summed = torch.zeros_like(region)
        summed[prepared.inside] = True
    size = methods.window_size(segmenter.network, segmenter.plan, region.shape, memory() / 2)
    shown = most_seen(
        summed, torch.from_numpy(np.ascontiguousarray(prepared.turn.forward(inside))), segmenter.plan.slices
    )
    piece = methods.best_window(shown, size, segmenter.recipe.inference.overlap)
    subject = Subject(prepared, index, _names(labels)[index], summed, size, piece)

    network = fuse_batchnorm(segmenter.network).requires_grad_(False)  # a copy: only the image needs gradients
    found = Found(
        about={
            "overlay": {
                "method": "the predicted label map; in pictures its outline, and maps over the image, those of channels that "
                "are no colour over their own; drawn in the radiological convention where the image states an orientation"
            }
        }
    )
    add_saliency(segmenter, network, subject, found)
    add_uncertainty(doubt, kind, subject, labels, found)
    add_grad_cam(segmenter, network, subject, found)
    add_attention(segmenter, network, subject, found)

    voxels = int(np.count_nonzero(inside))
    facts: dict[str, Any] = {
        "model": segmenter.recipe.model,
        "runs": [run_name(one) for one in runs],
        "network": f"uncertainty is of all runs, all other maps of {run_name(runs[0])}",
        "image": chosen.id,
        "target": subject.name,
        "voxels": voxels,
        "region": f"no voxel of the network's grid is predicted as {subject.name}: the sums run over the whole image"
        if empty
        else f"the sums run over the {voxels} voxels predicted as {subject.name}",
        "tta": tta,
        "left_out": found.left_out,
        "note": NO_PROOF,
    }
    with locked(out), staged(out, "explain") as staging:
        _check_names(out)  # what stood up during the work is not replaced
        try:
            across = () if segmenter.plan.slices is None else (segmenter.plan.slices.axis,)
            files = WRITERS[volume.spatial_dims](staging, volume, mask, inside, found.layers, *across)
            facts["maps"] = {name: {"file": files[name], **about} for name, about in found.about.items()}
            facts["files"] = [*dict.fromkeys(files.values()), EXPLAIN_FILE]
            _put(out, staging, facts)
        except OSError as error:
            raise unwritable(out, error) from error
    return Explanation(out, tuple(facts["files"]), facts)


def _put(out: Path, staging: Path, facts: dict[str, Any]) -> None:
    """Put the files in place and write explain.json, which at any moment lists every file that is there.

    `digests` are those of this explanation, `earlier` those of files that earlier ones left.
    """
    digests = {path.name: file_digest(path) for path in sorted(staging.iterdir())}
    earlier = {
        name: sorted(known) or [file_digest(out / name)]  # a version kept none
        for name, known in _recorded(out).items()
        if is_plain(out / name) and name != EXPLAIN_FILE
    }
    facts.update(digests=digests, earlier=earlier)
    _write_facts(out, facts)
    for name in digests:
        move_whole(staging / name, out / name)
    facts["earlier"] = {name: known for name, known in earlier.items() if name not in digests}
    _write_facts(out, facts)


def _write_facts(out: Path, facts: dict[str, Any]) -> None:
    write_text(out / EXPLAIN_FILE, json.dumps(facts, indent=1, allow_nan=False))


def _choose(image: Path, case: str | None, plan: Plan, wishes: Wishes) -> Case:
    dataset = Dataset.from_folder(image, need_labels=False, channels=plan.in_channels, wishes=wishes)
    dataset = dataset.of_dims(plan.image_dims)
    if case is not None:
        return dataset.case(case)
    if len(dataset.cases) != 1:
        some = listed((one.id for one in dataset.cases), most=3)
        raise UsageError(
            f"{image}: holds {counted(len(dataset.cases), 'image')}; name one of them with --case ({some})"
        )
    return dataset.cases[0]


def _make_folder(out: Path, case: Case) -> None:
    """Make the folder; never one that belongs to a data set or a run, and no file of others is replaced in it."""
    check_folder(out, [place for source in case.images for place in source.places])
    _check_names(out)
    make_folder(out)


def _check_names(out: Path) -> None:
    """Refuse to replace what no explanation wrote: its files are known by their digests, by name where none were kept."""
    recorded = _recorded(out)

    def is_own(path: Path) -> bool:
        known = recorded.get(path.name)
        return known is not None and (not known or file_digest(path) in known)

    check_names(out, dict.fromkeys((*FILES, EXPLAIN_FILE), is_own))


def _recorded(out: Path) -> dict[str, set[str]]:
    """Every file that explanations wrote there -> its digests; none where a version kept none, and of explain.json."""
    try:
        facts = read_json_object(out / EXPLAIN_FILE)
        names, digests = [str(name) for name in facts["files"]], dict(facts.get("digests", {}))
        earlier = {str(name): set(map(str, known)) for name, known in facts.get("earlier", {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    known = {name: {str(digests[name])} for name in digests if name in FILES}
    for name in earlier.keys() & set(FILES):
        known[name] = known.get(name, set()) | earlier[name]
    if not digests:
        known |= {name: set() for name in names if name in FILES}
    return known | {EXPLAIN_FILE: set()}


def _need(segmenter: Segmenter, volume: Volume) -> MemoryEstimate:
    """A prediction with its probabilities, and what the members leave: their mean, their spread and the entropy."""
    kept = 3 * 4 * segmenter.plan.labels.outputs * math.prod(volume.size)
    return MemoryEstimate({**segmenter.forecast(volume, probabilities=True).parts, "mean and spread": kept})


def _members(segmenter: Segmenter, volume: Volume, tta: bool) -> tuple[str, Iterator[Tensor]]:
    """Several answers for one image, (K, *S) each, and what they are answers of; one where there is no more."""
    if isinstance(segmenter, Ensemble):
        each = [member.mirrored() if tta else member for member in segmenter.members]
        return "runs", (member.probabilities(volume) for member in each)
    if tta and segmenter.plan.mirror_axes:
        sets = flips(segmenter.plan.mirror_axes)
        return "mirrored copies", (_mirrored_answer(segmenter, volume, axes) for axes in sets)
    heads = _full_heads(segmenter.network)
    if len(heads) > 1:
        return "heads", (pruned(segmenter, head).slabs(volume).maps() for head in heads)
    return "answer", iter([segmenter.probabilities(volume)])


def _mirrored_answer(segmenter: Segmenter, volume: Volume, axes: tuple[int, ...]) -> Tensor:
    """Of the image mirrored along axes of a patch."""
    turn, flipped = segmenter.turn(volume), tuple(segmenter.plan.patch_axes[axis] + 1 for axis in axes)
    seen = turned(volume, turn)
    mirrored = seen.with_array(np.ascontiguousarray(np.flip(seen.array, flipped)))
    maps = segmenter.probabilities(mirrored).flip(flipped)
    return torch.from_numpy(np.ascontiguousarray(turn.back(maps.numpy())))


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
