"""Structures scored in their boxes, and by parts: the same to the bit as each in the whole image at once."""

import tracemalloc

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from ulna.data.formats import slabs
from ulna.data.volume import Volume
from ulna.evaluation import boxes, centreline, surfaces
from ulna.evaluation.boxes import locate
from ulna.evaluation.choice import FAMILIES, Choice
from ulna.evaluation.depths import depths
from ulna.evaluation.further import further_scores
from ulna.evaluation.known import known_alone
from ulna.evaluation.metrics import count, mask_of, score, score_labels
from ulna.evaluation.needs import known_bytes
from ulna.evaluation.pair import Pair
from ulna.evaluation.scores import Scores
from ulna.recipe import Labels

NAMES = ("a", "b", "c", "d", "e", "f", "g")
SPACING = (1.5, 0.7, 1.1)


def maps(size, seed=0):
    """Blocks of 7 classes: one is in neither map, one in the reference alone, and one touches the border."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(size, np.uint8)
    for value in (1, 2, 3, 4, 7, 1):
        at = [int(rng.integers(0, n - 4)) for n in size]
        labels[tuple(slice(a, a + int(rng.integers(4, 8))) for a in at)] = value
    moved = np.roll(labels, 2, axis=0)
    moved[(slice(0, 3), *[slice(1, 3)] * (len(size) - 1))] = 6
    return labels, moved


def parts(monkeypatch):
    """A few voxels at a time, wherever arrays are gone through by parts."""
    for module, name in ((boxes, "AT_ONCE"), (surfaces, "AT_ONCE"), (centreline, "_AT_ONCE"), (slabs, "SLAB")):
        monkeypatch.setattr(module, name, 50)
    monkeypatch.setattr("ulna.evaluation.depths.AT_ONCE", 50)


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("size", [(23, 31), (17, 12, 14)])
def test_in_boxes_and_by_parts_as_in_the_whole(monkeypatch, size, multilabel):
    prediction, reference = maps(size)
    if multilabel:
        prediction, reference = (
            np.stack([one == k for k in range(1, 8)]).astype(np.uint8) for one in (prediction, reference)
        )
    spacing, families = SPACING[: len(size)], [name for name in FAMILIES if name not in ("overlap", "surface")]
    labels = Labels(names=NAMES if multilabel else ("background", *NAMES), multilabel=multilabel)
    wanted = []
    probabilities = np.random.default_rng(1).random((7, *size), np.float32)
    for k in range(1, 8):
        masks = [mask_of(one, k, multilabel=multilabel) for one in (prediction, reference)]
        further, _ = further_scores(*masks, families, spacing=spacing, probabilities=probabilities[k - 1])
        wanted.append(
            {**score(*masks, spacing=spacing, tolerance=1.0 if len(size) == 3 else 2 * max(spacing)), **further}
        )
    parts(monkeypatch)
    scores = Scores(labels, choice=Choice(("all",), dict.fromkeys(labels.foreground, tuple(FAMILIES))))
    scores.add(
        Pair(
            "x",
            prediction,
            reference,
            Volume(reference[None] if not multilabel else reference, spacing, "mm"),
            probabilities,
        )
    )
    rows = scores.evaluation().rows
    assert [row["class"] for row in rows] == [*NAMES]
    for row, one in zip(rows, wanted, strict=True):
        for name, value in one.items():
            assert np.array_equal(row[name], value, equal_nan=True), (row["class"], name)
    assert sum(row["tp"] > 0 for row in rows) >= 2 and rows[5]["fn"] and not rows[4]["fn"]


def test_boxes_and_counts(monkeypatch):
    monkeypatch.setattr(boxes, "AT_ONCE", 50)
    prediction, reference = maps((17, 12, 14))
    for one in locate(prediction, reference, 7, multilabel=False):
        masks = prediction == one.number, reference == one.number
        assert one.box == surfaces.joint_box(*masks)
        assert one.counts == count(*masks)


@pytest.mark.parametrize(
    ("classes", "dtype"), [(254, np.uint8), (255, np.uint8), (300, np.uint8), (127, np.int8), (126, np.int8)]
)
def test_as_many_classes_as_the_type_of_a_map_holds(classes, dtype):
    labels = np.zeros((8, 8), dtype)
    highest = min(classes, np.iinfo(dtype).max)
    labels[2:4, 3:5], labels[6, 6], labels[0, 7] = highest, 5, 126
    found = locate(labels, labels, classes, multilabel=False)
    assert [one.number for one in found if one.counts.tp] == sorted({5, 126, highest})
    assert found[highest - 1].counts.tp == 4 + (highest == 126)
    made = score_labels(labels, labels, classes=classes, spacing=(1, 1), tolerance=1.0, surface=False)
    assert len(made) == classes and made[4]["dice"] == made[highest - 1]["dice"] == 1
    narrow = np.minimum(labels, 120)  # what lies beyond K is left out
    assert [one.number for one in locate(labels, narrow, 7, multilabel=False) if one.counts.tp] == [5]


def test_depths_are_those_of_scipy(monkeypatch):
    monkeypatch.setattr("ulna.evaluation.depths.AT_ONCE", 40)
    for size, spacing in (((14, 19), (0.3, 1.7)), ((11, 9, 13), SPACING)):
        mask = np.random.default_rng(0).random(size) < 0.9
        found = np.empty(size)
        for here, part in depths(mask, spacing):
            assert part.size <= 40
            found[here] = part
        assert np.array_equal(found, distance_transform_edt(mask, sampling=spacing))


def test_large_planes_are_looked_at_by_parts():
    """Two planes of 9 million voxels: what is taken on the way is bounded, and what is counted is what is taken."""
    reference = np.zeros((2, 3000, 3000), np.uint8)
    reference[:, 100:2900, 200:2500], reference[1, 2950:, :40] = 1, 5
    prediction = np.roll(reference, 3, 1)
    peaks = {}

    def peak_of(name, call):
        tracemalloc.start()
        made = call()
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return made

    found = peak_of("boxes", lambda: locate(prediction, reference, 5, multilabel=False))
    assert found[0].box == (slice(0, 2), slice(100, 2903), slice(200, 2500)) and found[4].counts.tp == 47 * 40
    mask = reference == 1
    count = peak_of("surface", lambda: surfaces.count_surface(mask))
    assert count == 2 * 2800 * 2300
    assert peaks["boxes"] < 20 * boxes.AT_ONCE and peaks["surface"] < 8 * surfaces.AT_ONCE
    for dtype, classes in ((np.uint8, 5), (np.uint16, 300)):
        names = Labels(names=tuple(f"c{k}" for k in range(classes + 1)), ignore=(9999,))
        one, other = prediction[:1].astype(dtype), reference[:1].astype(dtype)
        volume = Volume(one, (1.0, 1.0), "px", None, None)
        counted = known_bytes(volume, names, Choice((), {}), numbers=False)
        made = peak_of("known", lambda one=one, other=other, names=names: known_alone(one[0], other[0], names))
        assert [array.dtype for array in made] == [dtype, dtype]
        assert 0.9 * counted < peaks["known"] < counted + 1e6
