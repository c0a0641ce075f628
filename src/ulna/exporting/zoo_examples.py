"""A segmenter of the zoo on the images that come with it: real ones, which it never saw."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ulna.errors import UsageError
from ulna.evaluation.evaluate import evaluate
from ulna.evaluation.report import Section, cases_of_pictures
from ulna.inference.predict import predict
from ulna.system.extras import need
from ulna.system.names import ZOO

NAME = "nuclei"
TITLE = f"Real images: {ZOO}{NAME}"
WITHOUT = (
    "ulna-runtime is not installed. With it, this page shows here what zoo:nuclei, a segmenter that was trained on real "
    "images, makes of six of them."
)
WITH = (
    "The images of this section are real, those above are not. They are of the 2018 Data Science Bowl (CC0 1.0) and come "
    "with ulna-runtime; zoo:nuclei was neither trained on them, nor did they choose its epoch. They were picked by hand, so "
    "that low and high Dice are among them, and are no test set: on its {cases} test images its mean Dice is {dice}."
)


def real_images(masks: Path) -> Section:
    """For the page of a demo: the segmenter of nuclei on its images; a sentence how to see that where it is not installed.

    Args:
        masks: a new folder for what it predicts.
    """
    if not all(find_spec(name) is not None for name in ("ulna_runtime", "onnxruntime")):
        return Section(TITLE, (WITHOUT,), (), "pip install ./packages/runtime && ulna demo")
    entry = next((one for one in need("ulna_runtime.zoo").entries() if one.name == NAME), None)
    if entry is None or entry.examples is None:
        raise UsageError(f"{ZOO}{NAME}: comes with no images in this ulna-runtime; pip install ./packages/runtime")
    predict(f"{ZOO}{NAME}", entry.examples / "images", out=masks)
    rows = evaluate(masks, entry.examples / "labels").rows
    cases = sorted(cases_of_pictures(entry.examples, masks, rows), key=lambda case: case.dice)
    scores, trained_on = entry.card["scores"], entry.card["trained_on"]
    words = (
        WITH.format(cases=scores["cases"], dice=scores["dice"]),
        f"Of that score: {scores['caution']}.",
        f"Source: {trained_on['source']}. {trained_on['cite']}.",
    )
    return Section(TITLE, words, tuple(cases), f"ulna predict {ZOO}{NAME} IMAGES --out masks")
