"""The end of a training: every case is predicted once, and drawn from the label map that was scored."""

import csv
import re
from collections import Counter

import numpy as np
import pytest

from tests.training.tiny import TINY
from ulna.data.volume import Volume
from ulna.demonstration import make_nuclei
from ulna.evaluation.drawn import EACH, Extremes
from ulna.evaluation.metrics import LESIONS, MEASURES
from ulna.evaluation.pair import Pair
from ulna.inference import segmenter as room
from ulna.pages.sealing import writer_of
from ulna.training import summary
from ulna.training.train import train


@pytest.mark.parametrize("part", ["test", "val"])
def test_every_case_is_predicted_once_and_drawn_from_that(tmp_path, monkeypatch, part):
    """Once the cases that were drawn were predicted again for it."""
    data = make_nuclei(tmp_path / "data", count=12, sizes=((32, 40),))
    if part == "val":
        (data / "splits.json").write_text(
            '{"train": ["nuclei_000", "nuclei_001"], "val": ["nuclei_002", "nuclei_003", "nuclei_004"]}'
        )
    counted, predict = Counter(), room.predict_slabs

    def noted(network, plan, prepared, **options):
        counted[prepared.image.numpy().tobytes()] += 1
        return predict(network, plan, prepared, **options)

    monkeypatch.setattr(summary, "tried", lambda *_: None)  # what calibrates predicts validation cases for itself
    monkeypatch.setattr(room, "predict_slabs", noted)  # what a run folder predicts with; epochs have their own
    run = train(data, model="unet", out=tmp_path / "run", epochs=1, set=(*TINY, "planning.patch=[32, 32]"))
    assert run.summary["evaluated_on"] == part
    assert list(counted.values()) == [1] * run.summary[part]["cases"]
    assert (run.folder / "figures" / f"{part}.png").exists()
    assert writer_of(run.folder / "report.html") == "train"
    page = (run.folder / "report.html").read_text("utf-8")
    with (run.folder / "cases.csv").open() as file:
        scored = [row["case"] for row in csv.DictReader(file)]
    drawn = re.findall(r'alt="errors of (\w+)"', page)
    assert len(drawn) == min(2 * EACH, 2 * (len(scored) // 2)) and {*drawn} <= {*scored}
    assert sorted(re.findall(r'role="rowheader">(?:<a[^>]*>)?(\w+)<', page)) == sorted(scored)
    assert "Synthetic data made by ulna" in page and "Validation Dice and IoU" in page and str(tmp_path) not in page
    # what applies to the cases that were scored: a picture holds several nuclei
    assert "lesions" in run.summary[part]["measures"]["of_classes"]["nucleus"]
    header = (run.folder / "cases.csv").read_text().splitlines()[0]
    assert header.startswith(",".join(("case", "class", *MEASURES, "tp", "fp", "fn", *LESIONS)))


@pytest.mark.parametrize("count", range(12))
def test_the_lowest_and_the_highest_are_drawn_however_they_come(count):
    rng = np.random.default_rng(count)
    scores = rng.choice([0.1, 0.2, 0.5, 0.9, np.nan], count)  # with ties, and cases that are rightly empty
    extremes = Extremes()
    for number, dice in enumerate(scores):
        empty = np.zeros((8, 8), np.uint8)
        extremes.offer(dice, Pair(f"c{number}", empty, empty, Volume(np.zeros((1, 8, 8), np.float32), (1.0, 1.0))))
    order = sorted(range(count), key=lambda number: np.nan_to_num(scores[number], nan=1.0))
    expected = [order[i] for i in sorted({*range(min(EACH, count)), *range(max(0, count - EACH), count)})]
    assert [case.case for case in extremes.cases] == [f"c{number}" for number in expected]
    assert all(("empty" in case.title) == np.isnan(scores[int(case.case[1:])]) for case in extremes.cases)
