"""Objects found, invented and missed: values by hand, undefined cases, sizes."""

import math

import numpy as np
import pytest

from ulna.evaluation.metrics import LESIONS
from ulna.evaluation.objects import BySize, match_masks, match_objects, merged, object_scores, size_names

NONE = np.zeros((20, 20), dtype=bool)


def squares(*places, side=4):
    mask = NONE.copy()
    for row, column in places:
        mask[row : row + side, column : column + side] = True
    return mask


def test_one_found_one_missed_one_invented():
    reference = squares((0, 0), (10, 0))
    prediction = squares((0, 1), (10, 12))  # IoU of the first pair: 12 / 20
    scores = object_scores(match_masks(prediction, reference))
    assert scores == pytest.approx(
        {
            "lesion_f1_10": 0.5, "lesion_sensitivity_10": 0.5, "lesion_fp_10": 1.0,
            "lesion_f1_50": 0.5, "lesion_sensitivity_50": 0.5, "lesion_fp_50": 1.0, "pq": 0.6 / 2,
        }
    )  # fmt: skip
    assert tuple(scores) == LESIONS


def test_the_threshold_decides_what_is_found():
    matches = match_masks(squares((0, 2)), squares((0, 0)))  # IoU 8 / 24
    assert (matches.counts(0.1), matches.counts(0.5)) == ((1, 0, 0), (0, 1, 1))
    assert match_objects(np.array([1, 1, 0]), np.array([1, 0, 0])).counts(0.5) == (1, 0, 0)  # exactly 0.5 is found


def test_one_object_finds_one_object_only():
    reference = squares((0, 0), (0, 6))
    united = NONE.copy()
    united[0:4, 0:10] = True
    matches = match_masks(united, reference)
    assert matches.counts(0.1) == (1, 0, 1)
    assert match_masks(reference, united).counts(0.1) == (1, 1, 0)


def test_pairs_of_the_highest_iou_come_first():
    reference = np.array([1, 1, 1, 1, 2, 2])
    prediction = np.array([1, 0, 0, 2, 2, 2])
    assert match_objects(prediction, reference).reference_iou.tolist() == [1 / 4, 2 / 3]


def test_corners_join_objects():
    corner = np.eye(3, dtype=bool)
    assert match_masks(corner, np.zeros_like(corner)).prediction_sizes.tolist() == [3]
    cube = np.zeros((2, 2, 2), dtype=bool)
    cube[0, 0, 0] = cube[1, 1, 1] = True
    assert match_masks(cube, cube).prediction_sizes.tolist() == [2]


def test_numbers_of_objects_may_have_gaps_and_touch():
    reference = np.array([7, 7, 300, 300])
    assert match_objects(np.array([5, 5, 2, 2]), reference).counts(0.5) == (2, 0, 0)


@pytest.mark.parametrize("empty_score", [None, 1.0])
def test_empty_and_missing_structures_follow_the_rule_of_all_measures(empty_score):
    some = squares((0, 0), (10, 10))
    missed = object_scores(match_masks(NONE, some), empty_score)
    assert [missed[name] for name in LESIONS] == [0, 0, 0, 0, 0, 0, 0]
    invented = object_scores(match_masks(some, NONE), empty_score)
    assert invented["lesion_f1_10"] == invented["pq"] == 0 and invented["lesion_fp_50"] == 2
    assert math.isnan(invented["lesion_sensitivity_10"])
    empty = object_scores(match_masks(NONE, NONE), empty_score)
    if empty_score is None:
        assert all(map(math.isnan, empty.values()))
    else:
        assert (empty["lesion_f1_10"], empty["pq"], empty["lesion_fp_10"]) == (1, 1, 0)
        assert math.isnan(empty["lesion_sensitivity_10"])


def test_sizes_of_volumes_are_those_of_spheres_in_mm():
    by_size = BySize(3, "mm")
    assert by_size.names == size_names(3, "mm")
    # spheres of 4, 6 and 30 mm have 33.5, 113 and 14137 mm3; a voxel has 8
    sizes = {"below 5 mm": 33.5, "5 to 10 mm": 113.1, "20 mm and more": 14137.2}
    reference = np.repeat(range(1, 4), [round(size / 8) for size in sizes.values()])
    prediction = np.where(reference == 3, 1, 0)
    by_size.add(match_objects(prediction, reference), voxel=8.0)
    found = by_size.summary()["50"]
    assert {name: (one["references"], one["found"]) for name, one in found.items()} == {
        "below 5 mm": (1, 0), "5 to 10 mm": (1, 0), "10 to 20 mm": (0, 0), "20 mm and more": (1, 1),
    }  # fmt: skip
    assert found["20 mm and more"]["f1"] == 1 and found["10 to 20 mm"]["sensitivity"] is None


def test_invented_objects_have_their_own_size_and_count_per_case():
    by_size = BySize(2, "px")
    large = np.zeros((100, 200), dtype=bool)
    large[:, :100] = True
    by_size.add(match_masks(large, np.zeros_like(large)), 1.0)
    by_size.add(match_masks(large, large), 1.0)
    by_size.add(match_masks(~large & large, ~large & large), 1.0)  # nothing on either side: no case
    one = by_size.summary()["10"]["9216 px and more"]
    assert (one["false_positives"], one["found"], one["cases"], one["false_positives_per_case"]) == (1, 1, 2, 0.5)
    both = merged([by_size.summary(), by_size.summary()])["10"]["9216 px and more"]
    assert (both["false_positives"], both["cases"], both["false_positives_per_case"]) == (2, 4, 0.5)
    assert both["f1"] == one["f1"]
