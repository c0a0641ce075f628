"""Values by hand, every undefined case, and agreement with MONAI and with the definitions spelt out voxel by voxel."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt

from tests.places import SHARED
from ulna.errors import UsageError
from ulna.evaluation import metrics, surfaces
from ulna.evaluation.metrics import (
    MEASURES,
    Counts,
    average,
    count,
    pool,
    pool_by,
    score,
    score_labels,
    surface_distances,
)

PUBLISHED = SHARED / "ct_liver" / "metric_reference"
LENGTHS = {"hd95", "assd"}  # the smaller the better

GRIDS = [
    ((9, 11), (1.0, 1.0)),
    ((12, 7), (0.7, 2.3)),
    ((6, 7, 5), (1.0, 1.0, 1.0)),
    ((5, 6, 7), (2.0, 0.9, 0.4)),
]


def block(size, *spans):
    mask = np.zeros(size, dtype=bool)
    mask[tuple(slice(*span) for span in spans)] = True
    return mask


def random_pairs(size, count, seed=0):
    """Pairs of blobs and noise, sparse to dense, some at the image's border; none of them empty."""
    rng = np.random.default_rng(seed)
    while count:
        masks = [rng.random(size) < rng.choice([0.05, 0.3, 0.7]) for _ in range(2)]
        if rng.random() < 0.5:
            masks = [binary_erosion(rng.random(size) < 0.9, border_value=rng.integers(2)) for _ in range(2)]
        if masks[0].any() and masks[1].any():
            count -= 1
            yield masks


def surface_by_definition(mask):
    """Indices of the voxels of a mask that have a neighbour along an axis outside the mask or the image."""
    found = []
    for at in np.argwhere(mask):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            near = at.copy()
            near[axis] += step
            if not 0 <= near[axis] < mask.shape[axis] or not mask[tuple(near)]:
                found.append(at)
                break
    return np.array(found)


def distances_by_definition(prediction, reference, spacing):
    """Both directed sets, from all pairs of surface voxels."""
    ours, theirs = (surface_by_definition(mask) * np.array(spacing) for mask in (prediction, reference))
    pairs = np.sqrt(((ours[:, None] - theirs[None]) ** 2).sum(-1))
    return pairs.min(1), pairs.min(0)


def percentile_by_definition(values, share):
    """Linear between the two nearest ranks."""
    ordered = sorted(values)
    rank = share * (len(ordered) - 1)
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (rank - low) * (ordered[high] - ordered[low])


# values by hand


def test_overlap_of_two_known_squares():
    a, b = block((10, 10), (2, 6), (2, 6)), block((10, 10), (4, 8), (2, 6))
    assert count(a, b) == Counts(tp=8, fp=8, fn=8)
    values = score(a, b, spacing=(1, 1), tolerance=1)
    assert values["dice"] == 0.5
    assert values["iou"] == pytest.approx(1 / 3)
    assert values["ppv"] == values["sensitivity"] == 0.5


def test_ppv_and_sensitivity_are_not_swapped():
    inside = score(block((8, 8), (2, 4), (2, 6)), block((8, 8), (2, 6), (2, 6)), spacing=(1, 1), tolerance=1)
    assert (inside["ppv"], inside["sensitivity"]) == (1.0, 0.5)


def test_three_voxels_at_two_mm_are_six_mm():
    a, b = block((9, 9), (4, 5), (1, 2)), block((9, 9), (4, 5), (4, 5))
    distances = surface_distances(a, b, (5.0, 2.0))
    assert metrics.hausdorff(distances) == metrics.hd95(distances) == metrics.assd(distances) == 6.0
    assert surface_distances(a.T, b.T, (5.0, 2.0)).from_prediction.tolist() == [15.0]


def test_the_nearest_voxel_depends_on_the_spacing():
    reference = block((5, 9), (0, 1), (0, 1)) | block((5, 9), (4, 5), (3, 4))
    prediction = block((5, 9), (4, 5), (0, 1))
    assert surface_distances(prediction, reference, (1.0, 2.0)).from_prediction.tolist() == [4.0]
    assert surface_distances(prediction, reference, (2.0, 1.0)).from_prediction.tolist() == [3.0]
    assert surface_distances(prediction, reference, (2.0, 1.0)).from_reference.tolist() == [8.0, 3.0]


def test_cubes_side_by_side_in_3d():
    a = block((9, 9, 9), (3, 6), (3, 6), (3, 6))
    distances = surface_distances(a, np.roll(a, 1, axis=2), (1.0, 1.0, 2.5))
    # the first layer is 2.5 from the other cube; the other two lie on it, save where its own inside is (1 to its shell)
    assert len(distances.from_prediction) == len(distances.from_reference) == 26
    assert metrics.hausdorff(distances) == 2.5
    assert sorted(distances.from_prediction) == [0.0] * 16 + [1.0] + [2.5] * 9


def test_nsd_counts_both_surfaces_within_the_tolerance():
    reference = block((9, 9), (4, 5), (2, 3))
    prediction = reference | block((9, 9), (4, 5), (6, 7)) | block((9, 9), (4, 5), (4, 5))
    distances = surface_distances(prediction, reference, (1.0, 1.0))  # 0, 2 and 4 one way, 0 the other
    assert metrics.nsd(distances, 1.0) == 2 / 4
    assert metrics.nsd(distances, 2.0) == 3 / 4
    assert metrics.nsd(distances, 4.0) == 1.0


def test_a_rounded_spacing_stays_within_the_tolerance():
    a, b = block((9, 9), (4, 5), (1, 2)), block((9, 9), (4, 5), (4, 5))
    spacing = float(np.nextafter(np.float32(1), np.float32(2)))
    assert metrics.nsd(surface_distances(a, b, (1.0, spacing)), 3.0) == 1.0
    assert metrics.nsd(surface_distances(a, b, (1.0, 1.001)), 3.0) == 0.0


def test_the_border_of_the_image_is_outside():
    full = np.ones((4, 5), dtype=bool)
    assert len(surface_distances(full, full, (1, 1)).from_prediction) == 4 * 5 - 2 * 3


# undefined cases


@pytest.mark.parametrize("size", [(8, 6), (8, 6, 4)])
def test_undefined_cases_have_the_documented_values(size):
    spacing = (0.5, 2.0, 3.0)[: len(size)]
    diagonal = math.sqrt(sum((n * s) ** 2 for n, s in zip(size, spacing, strict=True)))
    empty, full = np.zeros(size, dtype=bool), block(size, *[(1, 4)] * len(size))

    def values(prediction, reference, **options):
        scores = score(prediction, reference, spacing=spacing, tolerance=1.0, **options)
        return [scores[name] for name in MEASURES]

    nan, far = math.nan, pytest.approx(diagonal)
    assert all(map(math.isnan, values(empty, empty)))
    assert values(empty, empty, empty_score=1.0) == pytest.approx([1, 1, nan, nan, 0, 0, 1], nan_ok=True)
    assert values(empty, empty, empty_score=0.0)[:2] == [0, 0]
    assert values(empty, full) == [0, 0, 0, 0, far, far, 0]
    assert values(full, empty, empty_score=0.3) == pytest.approx([0, 0, 0, nan, diagonal, diagonal, 0], nan_ok=True)
    assert math.isnan(metrics.hausdorff(surface_distances(empty, empty, spacing)))
    assert metrics.hausdorff(surface_distances(empty, full, spacing)) == far
    # no tolerance is wide enough for a structure that is not there
    assert metrics.nsd(surface_distances(empty, full, spacing), math.inf) == 0


@pytest.mark.parametrize(("size", "spacing"), GRIDS)
def test_a_missed_structure_is_worst_in_every_measure_and_in_every_mean(size, spacing):
    pairs = list(random_pairs(size, 12, seed=3))
    # the farthest a found structure can be: opposite corners
    corners = [np.zeros(size, dtype=bool) for _ in range(2)]
    corners[0].flat[0] = corners[1].flat[-1] = True
    pairs.append(corners)
    scores = [score(*pair, spacing=spacing, tolerance=1.0) for pair in pairs]
    before = average(scores, "per_image")
    assert tuple(before) == MEASURES
    for k, (prediction, reference) in enumerate(pairs):
        missed = score(np.zeros_like(prediction), reference, spacing=spacing, tolerance=1.0)
        after = average([*scores[:k], missed, *scores[k + 1 :]], "per_image")
        for name in MEASURES:
            sign = -1 if name in LENGTHS else 1
            assert sign * missed[name] <= sign * scores[k][name], name
            assert sign * after[name] <= sign * before[name], name
            if scores[k]["tp"] or name in LENGTHS:
                assert sign * after[name] < sign * before[name] or (name == "nsd" and scores[k]["nsd"] == 0), name


def test_only_where_nothing_is_to_be_found_are_values_nan():
    masks = [np.zeros((5, 5), dtype=bool), block((5, 5), (1, 3), (1, 3)), np.ones((5, 5), dtype=bool)]
    for prediction, reference in itertools.product(masks, repeat=2):
        values = score(prediction, reference, spacing=(1, 1), tolerance=1)
        nan = {name for name, value in values.items() if math.isnan(value)}
        if not (prediction.any() or reference.any()):
            assert nan == set(MEASURES)
            continue
        assert nan == (set() if reference.any() else {"sensitivity"})


# agreement with definitions and with others


@pytest.mark.parametrize(("size", "spacing"), GRIDS)
def test_surface_measures_agree_with_all_pairs_of_surface_voxels(size, spacing):
    for prediction, reference in random_pairs(size, 40):
        one, other = distances_by_definition(prediction, reference, spacing)
        distances = surface_distances(prediction, reference, spacing)
        np.testing.assert_allclose(distances.from_prediction, one, atol=1e-12)
        np.testing.assert_allclose(distances.from_reference, other, atol=1e-12)
        both = [*one, *other]
        assert metrics.hausdorff(distances) == pytest.approx(max(both))
        assert metrics.hd95(distances) == pytest.approx(percentile_by_definition(both, 0.95))
        assert metrics.assd(distances) == pytest.approx(sum(both) / len(both))
        assert metrics.nsd(distances, 1.3) == pytest.approx(sum(d <= 1.3 for d in both) / len(both))


@pytest.mark.parametrize(("size", "spacing"), [((40, 30), (0.7, 2.3)), ((20, 30, 25), (2.0, 0.9, 0.4))])
def test_distances_equal_the_transform_of_the_whole_image(size, spacing):
    inner = [slice(4, n - 6) for n in size]
    for pair in random_pairs([s.stop - s.start for s in inner], 6, seed=1):
        prediction, reference = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
        prediction[tuple(inner)], reference[tuple(inner)] = pair
        surfaces = [mask & ~binary_erosion(mask) for mask in (prediction, reference)]
        maps = [distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
        distances = surface_distances(prediction, reference, spacing)
        np.testing.assert_allclose(distances.from_prediction, maps[1][surfaces[0]], atol=1e-12)
        np.testing.assert_allclose(distances.from_reference, maps[0][surfaces[1]], atol=1e-12)


@pytest.mark.filterwarnings("ignore")  # what MONAI and its imports warn of is not ours
@pytest.mark.parametrize(("size", "spacing"), GRIDS)
def test_monai_agrees_wherever_both_define_the_same(size, spacing):
    """HD (maximum), symmetric ASSD, NSD and Dice; MONAI's edges are the same 4- and 6-neighbour surfaces.

    Not HD95: MONAI takes the larger of two directed percentiles, the rule here is one percentile of both sets together
    (compared with all pairs above). Not empty masks: MONAI gives NaN or infinity.
    """
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("monai.metrics")
    for prediction, reference in random_pairs(size, 20, seed=2):
        pair = [torch.from_numpy(mask)[None, None] for mask in (prediction, reference)]
        shared = {"include_background": True, "spacing": spacing}
        values = score(prediction, reference, spacing=spacing, tolerance=1.3)
        distances = surface_distances(prediction, reference, spacing)
        single = {"rel": 1e-5}  # MONAI's distances are float32
        assert values["dice"] == pytest.approx(peer.compute_dice(*pair).item(), **single)
        assert values["iou"] == pytest.approx(peer.compute_iou(*pair).item(), **single)
        assert metrics.hausdorff(distances) == pytest.approx(
            peer.compute_hausdorff_distance(*pair, **shared).item(), **single
        )
        assert values["assd"] == pytest.approx(
            peer.compute_average_surface_distance(*pair, symmetric=True, **shared).item(), **single
        )
        assert values["nsd"] == pytest.approx(peer.compute_surface_dice(*pair, [1.3], **shared).item(), **single)
        parts = [np.percentile(part, 95) for part in distances[:2]]
        assert max(parts) == pytest.approx(
            peer.compute_hausdorff_distance(*pair, percentile=95, **shared).item(), **single
        )


def test_published_scores_of_a_liver():
    """CHAOS: Dice 0.978, ASSD 0.734 mm (0.713 to 0.746 by what counts as surface), maximum 14 mm."""
    if not PUBLISHED.is_dir():
        pytest.skip(f"the published pair is not at {PUBLISHED}")
    nibabel = pytest.importorskip("nibabel")
    spacing = json.loads((PUBLISHED / "expected.json").read_text())["spacing_xyz_mm"]
    pair = [np.asarray(nibabel.load(PUBLISHED / f"{n}.nii.gz").dataobj) > 0 for n in ("prediction", "reference")]
    values = score(*pair, spacing=spacing, tolerance=1.0)
    assert values["dice"] == pytest.approx(0.978, abs=0.001)
    assert 0.71 <= values["assd"] <= 0.75
    assert metrics.hausdorff(surface_distances(*pair, spacing)) == pytest.approx(14.0, abs=0.05)
    assert values["assd"] < values["hd95"] < 14


# images, structures, means


@pytest.mark.parametrize(("size", "spacing"), GRIDS)
def test_iou_follows_from_dice_for_an_image_but_not_for_a_mean(size, spacing):
    scores = [score(*pair, spacing=spacing, tolerance=1, surface=False) for pair in random_pairs(size, 20)]
    for values in [*scores, average(scores, "pooled")]:
        assert values["iou"] == pytest.approx(values["dice"] / (2 - values["dice"]))
    mean = average(scores, "per_image")
    assert mean["iou"] > mean["dice"] / (2 - mean["dice"]) + 1e-4


def test_labels_are_scored_one_structure_after_the_other():
    reference = np.zeros((12, 12), dtype=np.uint8)
    reference[1:5, 1:5], reference[7:11, 7:11] = 1, 3
    prediction = np.where(reference == 3, 2, reference)
    one, two, three = score_labels(prediction, reference, classes=3, spacing=(1, 1), tolerance=1)
    assert tuple(one) == (*MEASURES, "tp", "fp", "fn")
    assert (one["dice"], two["dice"], three["dice"]) == (1, 0, 0)
    assert (two["fp"], two["fn"], three["fp"], three["fn"]) == (16, 0, 0, 16)
    assert math.isnan(two["sensitivity"]) and three["sensitivity"] == 0

    channels = [np.stack([labels == k for k in (1, 2, 3)]).astype(np.uint8) for labels in (prediction, reference)]
    overlapping = score_labels(*channels, classes=3, spacing=(1, 1), tolerance=1, multilabel=True)
    for a, b in zip(overlapping, (one, two, three), strict=True):
        assert a == pytest.approx(b, nan_ok=True)
    channels[0][0] = channels[1][0] = channels[1][2]  # channel 0 now lies upon channel 2
    overlapping = score_labels(*channels, classes=3, spacing=(1, 1), tolerance=1, multilabel=True)
    assert [s["dice"] for s in overlapping] == [1, 0, 0]


def test_surface_measures_can_be_left_out():
    full = np.ones((3, 3), dtype=bool)
    assert tuple(score(full, full, spacing=(1, 1), tolerance=1, surface=False)) == (*MEASURES[:4], "tp", "fp", "fn")


def overlap(tp, fp, fn):
    counts = Counts(tp, fp, fn)
    names = MEASURES[:4]
    values = (metrics.dice(counts), metrics.iou(counts), metrics.ppv(counts), metrics.sensitivity(counts))
    return dict(zip(names, values, strict=True)) | counts._asdict()


def test_three_ways_to_average_by_hand():
    slices = [overlap(1, 0, 0), overlap(1, 1, 0), overlap(0, 0, 2), overlap(0, 0, 0)]
    mean = average(slices, "per_image")
    assert mean["dice"] == pytest.approx((1 + 2 / 3 + 0) / 3)  # the empty slice is left out, of every measure
    assert mean["ppv"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert mean["sensitivity"] == pytest.approx((1 + 1 + 0) / 3)
    pooled = average(slices, "pooled")
    assert pooled == pytest.approx({"dice": 4 / 7, "iou": 2 / 5, "ppv": 2 / 3, "sensitivity": 1 / 2})
    volumes = pool_by(slices, ["b", "a", "b", "a"])
    assert [(v["tp"], v["fp"], v["fn"]) for v in volumes] == [(1, 0, 2), (1, 1, 0)]
    assert average(volumes, "per_image")["dice"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert pool([]) == Counts(0, 0, 0)
    assert pool([Counts(1, 2, 3), Counts(4, 5, 6)]) == Counts(5, 7, 9)


def test_pooled_slices_are_the_volume():
    prediction, reference = next(random_pairs((5, 8, 7), 1))
    slices = [score(p, r, spacing=(1, 1), tolerance=1) for p, r in zip(prediction, reference, strict=True)]
    whole = score(prediction, reference, spacing=(1, 1, 1), tolerance=1, surface=False)
    assert pool_by(slices, ["v"] * 5) == [whole]
    assert average(slices, "pooled") == {name: whole[name] for name in MEASURES[:4]}


def test_empty_score_reaches_the_pool():
    empty = [overlap(0, 0, 0)] * 2
    assert math.isnan(average(empty, "pooled")["dice"])
    assert average(empty, "pooled", empty_score=0.0)["dice"] == pool_by(empty, "ab", empty_score=0.0)[0]["iou"] == 0
    assert math.isnan(average(empty, "per_image")["ppv"])


# failures and size


def test_failures_say_what_came_and_what_to_do():
    a = np.zeros((4, 4), dtype=bool)
    labels = np.array([[0, 1], [2, 4]])
    on = {"spacing": (1, 1), "tolerance": 1.0}
    with pytest.raises(UsageError, match=r"\(4, 4\).*\(4, 5\)"):
        count(a, np.zeros((4, 5), dtype=bool))
    with pytest.raises(UsageError, match="boolean, not uint8"):
        count(a.astype(np.uint8), a)
    with pytest.raises(UsageError, match=r"spacing \(1, 1, 1\)"):
        surface_distances(a, a, (1, 1, 1))
    with pytest.raises(UsageError, match="spacing"):
        surface_distances(a, a, (1, 0))
    with pytest.raises(UsageError, match="tolerance -1"):
        score(a, a, spacing=(1, 1), tolerance=-1)
    with pytest.raises(UsageError, match="empty_score nan"):
        score(a, a, empty_score=math.nan, **on)
    with pytest.raises(UsageError, match="values 0 to 4 do not fit 3 classes"):
        score_labels(labels, labels, classes=3, **on)
    with pytest.raises(UsageError, match="not float64"):
        score_labels(labels / 2, labels, classes=4, **on)
    with pytest.raises(UsageError, match=r"\(2, 2\) does not start with one channel for each of 3"):
        score_labels(labels, labels, classes=3, multilabel=True, **on)
    with pytest.raises(UsageError, match="did you mean 'pooled'"):
        average([overlap(1, 0, 0)], "poold")
    with pytest.raises(UsageError, match="different measures"):
        average([overlap(1, 0, 0), score(a, a, **on)], "per_image")
    with pytest.raises(UsageError, match="at least one"):
        average([], "pooled")
    with pytest.raises(UsageError, match="1 score and 2 groups"):
        pool_by([overlap(1, 0, 0)], "ab")


def test_a_large_image_costs_what_its_structure_costs(monkeypatch):
    """Surfaces are looked for in the box around the structures: transforms of the whole image took 80 times as long."""
    sizes = []
    monkeypatch.setattr(surfaces, "binary_erosion", lambda mask: sizes.append(mask.shape) or binary_erosion(mask))
    size = (320, 320, 80)
    organ = block(size, (100, 160), (100, 160), (20, 50))
    values = score(organ, np.roll(organ, 2, axis=0), spacing=(0.7, 0.7, 2.0), tolerance=1.0)
    assert sizes == [(62, 60, 30)] * 2
    assert values["hd95"] == pytest.approx(1.4)
