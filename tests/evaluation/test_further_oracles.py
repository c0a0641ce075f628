"""Agreement with libraries that are not among the test extras: each test runs where its own is installed.

pip install --no-deps panoptica surface-distance scikit-learn scikit-image   # and what they import
ULNA_TEST_ALL=1 pytest -m slow tests/evaluation/test_further_oracles.py     # the 1,000 pairs of docs/metrics.md
"""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from tests.evaluation.test_oracles import MANY, random_pairs
from ulna.evaluation.metrics import hausdorff, score, surface_distances
from ulna.evaluation.objects import match_masks, object_scores

pytestmark = pytest.mark.filterwarnings("ignore")  # what those libraries warn of is not ours


@pytest.mark.parametrize("number", MANY)
def test_overlap_equals_scikit_learn(number):
    peer = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    for prediction, reference, spacing in random_pairs(number, 5):
        ours = score(prediction, reference, spacing=spacing, tolerance=1, surface=False)
        pair = reference.ravel(), prediction.ravel()
        for name, theirs in (
            ("dice", peer.f1_score), ("iou", peer.jaccard_score),
            ("ppv", peer.precision_score), ("sensitivity", peer.recall_score),
        ):  # fmt: skip
            assert ours[name] == pytest.approx(theirs(*pair), abs=1e-9), name


@pytest.mark.parametrize("number", MANY)
def test_hausdorff_distance_equals_that_of_scikit_image_between_surfaces(number):
    """In voxels: it knows no spacing, and measures from all voxels of what it is given, so it is given surfaces."""
    peer = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    for prediction, reference, _ in random_pairs(number, 6):
        ours = hausdorff(surface_distances(prediction, reference, (1.0,) * prediction.ndim))
        theirs = peer.hausdorff_distance(*(mask & ~binary_erosion(mask) for mask in (prediction, reference)))
        assert ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("number", MANY)
def test_objects_equal_those_of_panoptica(number):
    peer = pytest.importorskip("panoptica", reason="panoptica is not installed")
    by_threshold = {
        threshold: peer.Panoptica_Evaluator(
            expected_input=peer.InputType.SEMANTIC,
            instance_approximator=peer.ConnectedComponentsInstanceApproximator(peer.CCABackend.cc3d),
            instance_matcher=peer.NaiveThresholdMatching(matching_threshold=threshold),
            instance_metrics=[peer.Metric.IOU], global_metrics=[], verbose=False,
        )
        for threshold in (0.1, 0.5)
    }  # fmt: skip
    for prediction, reference, _ in random_pairs(number, 7):
        matches = match_masks(prediction, reference)
        ours = object_scores(matches)
        for (threshold, evaluator), ending in zip(by_threshold.items(), ("10", "50"), strict=True):
            found = evaluator.evaluate(prediction.astype(np.uint8), reference.astype(np.uint8), verbose=False)
            theirs = found["ungrouped"] if isinstance(found, dict) else found
            theirs = theirs[0] if isinstance(theirs, tuple) else theirs
            assert matches.counts(threshold) == (theirs.tp, theirs.fp, theirs.fn)
            assert ours[f"lesion_f1_{ending}"] == pytest.approx(theirs.rq, abs=1e-9)
        assert ours["pq"] == pytest.approx(theirs.pq if theirs.tp else 0.0, abs=1e-9)  # of the last threshold, 0.5


@pytest.mark.parametrize("number", MANY)
def test_surface_distance_has_the_same_dice_and_other_surfaces(number):
    """Its surface elements lie between voxels and are weighted by their area: near on average, never equal."""
    peer = pytest.importorskip("surface_distance", reason="surface-distance is not installed")
    apart = []
    for prediction, reference, spacing in random_pairs(number, 8):
        ours = score(prediction, reference, spacing=spacing, tolerance=1.0)
        assert ours["dice"] == pytest.approx(peer.compute_dice_coefficient(reference, prediction), abs=1e-9)
        distances = peer.compute_surface_distances(reference, prediction, spacing)
        near = peer.compute_surface_dice_at_tolerance(distances, 1.0)
        mean = np.mean(peer.compute_average_surface_distance(distances))
        apart.append((ours["nsd"] - near, (ours["assd"] - mean) / max(spacing)))
    assert (np.abs(apart).mean(axis=0) < 0.2).all()
