"""The verb `export`: a run as one file that holds the whole pipeline and needs no torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset
from ulna.errors import UsageError, unknown
from ulna.exporting.card import as_json, card_of
from ulna.exporting.graphs import Graphs, make_graphs
from ulna.exporting.openvino import Session, converted, need_openvino, write_openvino
from ulna.exporting.parity import Parity, cases_to_compare, compare, logits_apart, made_up_images, windows_of
from ulna.exporting.plain import ABOUT, only_graph, write_onnx
from ulna.exporting.precision import half_weights, quantized, weights_of
from ulna.inference.ensemble import Ensemble
from ulna.inference.fold_runs import each_run
from ulna.inference.levels import levels_of, named_level, pruned
from ulna.inference.segmenter import Segmenter, read_split
from ulna.planning.memory import maps_per_voxel
from ulna.recipe import PLAN_FORMAT
from ulna.system.exported import refuse_exported
from ulna.system.extras import need
from ulna.system.files import write_whole
from ulna.system.outputs import check_folder
from ulna.system.passed_on import Shown, without_places_of
from ulna.trust.calibration import in_common
from ulna.version import version

log = logging.getLogger(__name__)

FORMATS, PRECISIONS = ("ulna", "onnx", "openvino"), ("fp32", "fp16", "int8")
LEAST_IDENTICAL = 0.9999  # of the voxels, in fp32
MOST_APART = 1e-4  # of the logits, over the largest of them where that is above 1, in fp32
CALIBRATION = 32  # windows that the ranges of 8 bits are taken from
CHECKED = 2  # windows whose logits are compared


@dataclass(frozen=True)
class Exported:
    """A file that `export` wrote, and how it compares with the run.

    Args:
        file: what was written.
        format: ulna, onnx or openvino.
        precision: fp32, fp16 or int8.
        bytes: of the file.
        digest: of everything in it; empty where the format has none.
        parity: how it predicts.
    """

    file: Path
    format: str
    precision: str
    bytes: int
    digest: str
    parity: Parity

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        facts = {"file": str(self.file), "format": self.format, "precision": self.precision}
        return {**facts, "bytes": self.bytes, "digest": self.digest, "parity": self.parity.to_json()}


def export(
    run: Path | str | Sequence[Path | str],
    /,
    *,
    out: Path | str,
    data: Path | str | None = None,
    level: int | None = None,
    format: str = "ulna",
    precision: str = "fp32",
    most_dice_lost: float = 0.01,
    licence: str | None = None,
    with_weights: bool = False,
    overwrite: bool = False,
    allow_code: bool = False,
) -> Exported:
    """Write a run as one file with the whole pipeline, which `ulna-runtime` predicts with, without torch.

    Before it says done, the file predicts cases of `data` (without it, made-up images like those of the training) as
    `ulna predict` does; a file that does not is not written.

    Args:
        run: a run folder; several, or the folds of a cross-validation, make one file whose probabilities are averaged.
        out: the file.
        data: a data set: the file is compared on its cases of the run's test split, else on all; int8 needs it.
        level: export the smaller network of this pruning level, counted from 1; see `ulna prune`.
        format: ulna, the whole pipeline; onnx or openvino, the network alone.
        precision: fp32; fp16, weights in half precision; int8, convolutions in 8 bits by the training cases of `data`,
            which take longer in 3D.
        most_dice_lost: fp16 and int8 are refused if the mean Dice falls by more.
        licence: of the weights, for the card.
        with_weights: the file also holds the weights themselves, with which `ulna train --init FILE` begins.
        overwrite: write over a file that stands there.
        allow_code: execute the code of a network of one's own, which lies in the run as network.py: read it before.

    Raises:
        UsageError: if the run cannot be exported, or the file does not predict as the run does.

    Example:
        ulna export runs/liver --data data/liver --out liver.ulna
    """
    named, out = [Path(one) for one in ([run] if isinstance(run, str | Path) else run)], Path(out)
    for flag, value, valid in (("--format", format, FORMATS), ("--precision", precision, PRECISIONS)):
        if value not in valid:
            raise UsageError(f"{flag}: {unknown(flag[2:], value, valid)}")
    if precision == "int8" and data is None:
        raise UsageError("--precision int8 is calibrated on training images; give their data set with --data")
    refuse_exported(named, "run")
    _check_file(out, overwrite)
    bundle: Any = need("ulna_runtime.bundle")
    if format == "openvino":
        need_openvino()
    runs = list(dict.fromkeys(each_run(named)))
    if with_weights and (len(runs) > 1 or format != "ulna"):
        raise UsageError("--with-weights: a training begins with one network; give one run, and --format ulna")
    segmenters = [_segmenter(one, level, allow_code=allow_code) for one in runs]
    cases = _Cases.of(Path(data), runs[0], segmenters[0]) if data is not None else None
    calibration = cases.windows(segmenters) if cases is not None and precision == "int8" else None
    made = [_graphs(one, precision, calibration and calibration[n]) for n, one in enumerate(segmenters)]
    members = {"pipeline.json": _pipeline(segmenters, made, precision)} | {
        name: model
        for n, graphs in enumerate(made)
        for name, model in zip(_names(n, graphs), graphs.models, strict=True)
    }
    graph = only_graph(members, format) if format != "ulna" else b""
    files = converted(graph) if format == "openvino" else None
    if with_weights:
        members[bundle.WEIGHTS] = weights_of(segmenters[0].network, precision)
    card = card_of(runs, segmenters[0].plan, segmenters[0].recipe, licence)
    card["export"] = {"precision": precision, "level": "whole" if level is None else f"L{level}"}
    if cleaned := _post_processing(segmenters):
        card["export"]["post_processing"] = cleaned
    card["versions"]["exported_with_torch"] = str(torch.__version__)
    parity = _compared(segmenters, bundle, {**members, "card.json": as_json(card)}, out, cases, files)
    _check_parity(parity, precision, most_dice_lost, runs)
    card["export"] |= {"parity": parity.to_json()}
    members["card.json"] = as_json(card)
    about = {name: members[name] for name in ABOUT}
    digest: list[str] = [""]

    def write(path: Path) -> None:
        if format == "ulna":
            digest[0] = bundle.write_bundle(path, members)
        elif files is None:
            write_onnx(path, graph, about)
        else:
            write_openvino(path, files, about)

    write_whole(out, write)
    return Exported(out, format, precision, out.stat().st_size, digest[0], parity)


class _Cases:
    """The cases of `--data`: those that are compared, and those that ranges are taken from."""

    def __init__(self, compared: Sequence[Case], training: Sequence[Case]) -> None:
        self.compared, self.training = compared, training

    @classmethod
    def of(cls, data: Path, run: Path, segmenter: Segmenter) -> _Cases:
        dataset = Dataset.from_folder(data, need_labels=False, channels=segmenter.plan.in_channels)
        dataset = dataset.of_dims(segmenter.plan.image_dims)
        if not dataset.cases:
            raise UsageError(
                f"{data}: holds no case; name the data set that the run was trained on, or leave --data out"
            )
        split = read_split(run)
        known = {
            part: [case for case in dataset.cases if case.id in set(ids)]
            for part, ids in (("train", split.train), ("val", split.val), ("test", split.test))
        }
        compared = known["test"] or known["val"] or list(dataset.cases)
        return cls(compared, known["train"] or list(dataset.cases))

    def windows(self, segmenters: Sequence[Segmenter]) -> list[Any]:
        """Windows of training images, as every network sees them."""
        volumes = [one.volume for one in cases_to_compare(self.training, segmenters[0].plan)]
        return [windows_of(segmenter, volumes, CALIBRATION) for segmenter in segmenters]


def _segmenter(run: Path, level: int | None, *, allow_code: bool) -> Segmenter:
    """A run on the CPU in float32, as it is compared."""
    segmenter = Segmenter.load(run, allow_code=allow_code)
    if segmenter.plan.format < PLAN_FORMAT:
        raise UsageError(
            f"{run}: was trained by an earlier ulna (plan format {segmenter.plan.format}), whose grids are not exported; "
            "train again, or predict with the run itself"
        )
    if level is not None:
        chosen = named_level(levels_of(run, segmenter.recipe), level=level, head=None)
        segmenter = pruned(segmenter, chosen.head if chosen else None)
    recipe = segmenter.recipe
    recipe = recipe.replaced(training=recipe.training.replaced(precision="fp32"))
    made = Segmenter(segmenter.network, segmenter.plan, recipe, torch.device("cpu"), segmenter.calibration)
    made.compares = None  # no heads are computed: nothing is told here of how far an answer can be trusted
    return made


def _graphs(segmenter: Segmenter, precision: str, windows: Any) -> Graphs:
    graphs = make_graphs(segmenter.network, segmenter.plan)
    if precision == "fp16":
        return graphs._replace(models=tuple(map(half_weights, graphs.models)))
    if precision == "int8":
        if graphs.facts["kind"] == "points":
            raise UsageError(
                f"{segmenter.network.origin}: a network whose head reads points is not exported in 8 bits, for most of its "
                "work is no convolution; take --precision fp16"
            )
        return graphs._replace(models=(quantized(graphs.models[0], windows),))
    return graphs


def _names(number: int, graphs: Graphs) -> list[str]:
    parts = ("",) if len(graphs.models) == 1 else ("_encoder", "_decoder")
    return [f"networks/{number}{part}.onnx" for part in parts]


def _pipeline(segmenters: Sequence[Segmenter], made: Sequence[Graphs], precision: str) -> bytes:
    """How an image becomes a mask: what the runtime reads, and all of plan and recipe for ulna itself."""
    members = []
    for number, (segmenter, graphs) in enumerate(zip(segmenters, made, strict=True)):
        plan, recipe = segmenter.plan.to_json(), segmenter.recipe.model_dump(mode="json")
        plan.pop("recipe", None)
        shown = without_places_of(recipe)
        plan, recipe = _over_texts(plan, shown), _over_texts(recipe, shown)
        members.append(
            {
                "plan": plan,
                "inference": recipe["inference"],
                "graphs": {**graphs.facts, "files": _names(number, graphs)},
                "recipe": recipe,
                **_calibrated(segmenter),
                "maps_per_voxel": maps_per_voxel(segmenter.network, segmenter.plan, bf16=False),
            }
        )
    values = {"members": members, "precision": precision, "written_by": f"ulna {version('ulna')}"}
    return json.dumps(values, allow_nan=False).encode()


def _over_texts(value: Any, shown: Shown) -> Any:
    """Plain values with every text as it may be passed on."""
    if isinstance(value, dict):
        return {name: _over_texts(one, shown) for name, one in value.items()}
    if isinstance(value, list):
        return [_over_texts(one, shown) for one in value]
    return shown(value) if isinstance(value, str) else value


def _calibrated(segmenter: Segmenter) -> dict[str, Any]:
    """calibration.json of a run, where it has one for its weights."""
    found = segmenter.calibration
    return {} if found is None else {"calibration": found.model_dump(mode="json")}


def _post_processing(segmenters: Sequence[Segmenter]) -> dict[str, str]:
    """Class -> what is done to its masks, for people."""
    each = [segmenter.calibration for segmenter in segmenters]
    found = each[0] if len(each) == 1 else in_common(each)
    return {} if found is None else {name: rule.words for name, rule in found.rules.items()}


def _compared(
    segmenters: Sequence[Segmenter],
    bundle: Any,
    members: Mapping[str, bytes],
    out: Path,
    cases: _Cases | None,
    openvino: Mapping[str, bytes] | None,
) -> Parity:
    """The members, read as a file is, beside the run; computed by OpenVINO where its files are given."""
    run = segmenters[0] if len(segmenters) == 1 else Ensemble({str(n): one for n, one in enumerate(segmenters)})
    graphs = {name: data for name, data in members.items() if name.startswith(bundle.GRAPHS)}
    pipeline, card = (json.loads(members[name]) for name in (bundle.PIPELINE, bundle.CARD))
    exported = need("ulna_runtime.segmenter").Segmenter(
        bundle.Bundle(out, "", pipeline, card, graphs), threads=torch.get_num_threads()
    )
    if openvino is not None:
        exported.networks[0].compute_with([Session(openvino)])
    plan = segmenters[0].plan
    images = list(cases_to_compare(cases.compared, plan) if cases is not None else made_up_images(plan))
    volumes = [image.volume for image in images]
    apart = max(
        logits_apart(one, network, windows_of(one, volumes, CHECKED))
        for one, network in zip(segmenters, exported.networks, strict=True)
    )
    return compare(run, exported, iter(images), made_up=cases is None, logits=apart)


def _check_parity(parity: Parity, precision: str, most_dice_lost: float, runs: Sequence[Path]) -> None:
    """Refuse a file that does not predict as the run does."""
    name = ", ".join(map(str, runs))
    if precision == "fp32":
        if parity.identical < LEAST_IDENTICAL or not parity.logits <= MOST_APART:
            raise UsageError(
                f"{name}: the exported file would not predict as the run does ({parity.identical:.4%} of the voxels are the "
                f"same, logits differ by up to {parity.logits:.1e}); nothing was written, predict with the run itself"
            )
    elif not parity.dice_lost <= most_dice_lost:
        raise UsageError(
            f"{name}: in {precision} the mean Dice falls by {parity.dice_lost:.4f}, more than --most-dice-lost "
            f"{most_dice_lost:g}; nothing was written, take --precision {'fp16' if precision == 'int8' else 'fp32'}"
        )


def _check_file(out: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise UsageError(f"{out}: is a folder; give --out the name of a file, such as {out / 'model.ulna'}")
    check_folder(out.parent)
    if out.exists() and not overwrite:
        raise UsageError(f"{out}: exists; choose another --out, or write over it with --overwrite")
