"""Agreement with MONAI and SimpleITK on random masks.

20 pairs in the quick suite and 200 among the slow tests. The 1,000 of docs/metrics.md:

    ULNA_TEST_ALL=1 pytest -m slow tests/evaluation/test_oracles.py
"""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from tests.share import ALL
from ulna.evaluation.metrics import count, hausdorff, score, surface_distances
from ulna.evaluation.objects import match_masks, object_scores, objects_of

MORE = 1000 if ALL else 200
MANY = [pytest.param(20, id="quick"), pytest.param(MORE, id="slow", marks=pytest.mark.slow)]


def random_pairs(number, seed):
    """Noise, blobs and speckle in 2D and 3D, two masks that resemble each other more or less; with a spacing in mm."""
    rng = np.random.default_rng(seed)
    made = 0
    while made < number:
        size = (24, 28) if rng.random() < 0.5 else (12, 14, 10)
        width = rng.choice([0.0, 0.8, 1.6])
        fields = [gaussian_filter(rng.normal(size=size), width) for _ in range(2)]
        fields[1] = fields[0] + rng.choice([0.2, 0.7]) * fields[1]
        share = rng.choice([0.5, 0.8, 0.95])
        masks = [field > np.quantile(field, share) for field in fields]
        if all(mask.any() for mask in masks):
            made += 1
            yield *masks, tuple(rng.uniform(0.4, 4, len(size)).tolist())


@pytest.mark.parametrize("number", MANY)
def test_overlap_equals_simpleitk(number):
    itk = pytest.importorskip("SimpleITK")
    filter_ = itk.LabelOverlapMeasuresImageFilter()
    for prediction, reference, spacing in random_pairs(number, 0):
        filter_.Execute(*(itk.GetImageFromArray(mask.astype(np.uint8)) for mask in (reference, prediction)))
        ours = score(prediction, reference, spacing=spacing, tolerance=1, surface=False)
        assert ours["dice"] == pytest.approx(filter_.GetDiceCoefficient(1), abs=1e-9)
        assert ours["iou"] == pytest.approx(filter_.GetJaccardCoefficient(1), abs=1e-9)
        assert 1 - ours["sensitivity"] == pytest.approx(filter_.GetFalseNegativeError(1), abs=1e-9)
        tp, fp, fn = count(prediction, reference)
        # volume similarity of ITK: 2 (source - target) / (source + target)
        assert filter_.GetVolumeSimilarity(1) == pytest.approx(2 * (fn - fp) / (2 * tp + fp + fn), abs=1e-9)


@pytest.mark.parametrize("number", MANY)
def test_surface_distances_equal_the_exact_map_of_simpleitk(number):
    """Maurer's distance to the other surface, read at every surface voxel, to 1e-4 mm, for it is float32; all pairs to 1e-6.

    SimpleITK's own Hausdorff filter measures from all voxels of a mask, not from its surface, so it is not asked.
    """
    itk = pytest.importorskip("SimpleITK")
    for prediction, reference, spacing in random_pairs(number, 1):
        found = surface_distances(prediction, reference, spacing)
        surfaces, maps = [], []
        for mask in (prediction, reference):
            image = itk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
            image.SetSpacing(spacing[::-1])
            eroded = itk.BinaryErode(image, [1] * mask.ndim, itk.sitkCross)
            surface = image - eroded
            maps.append(itk.GetArrayFromImage(itk.SignedMaurerDistanceMap(surface, True, False, True)))
            surfaces.append(itk.GetArrayFromImage(surface) != 0)
        ours = [np.sort(part) for part in found[:2]]
        theirs = [np.sort(np.abs(maps[1 - side][surfaces[side]]).astype(np.float64)) for side in (0, 1)]
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
        points = [np.argwhere(surface) * spacing for surface in surfaces]
        every = cdist(*points)
        np.testing.assert_allclose(found.from_prediction, every.min(axis=1), atol=1e-6)
        np.testing.assert_allclose(found.from_reference, every.min(axis=0), atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # what MONAI and its imports warn of is not ours
@pytest.mark.parametrize("number", MANY)
def test_distances_equal_monai(number):
    torch, peer = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    for prediction, reference, spacing in random_pairs(number, 2):
        pair = [torch.from_numpy(mask)[None, None] for mask in (prediction, reference)]
        found = surface_distances(prediction, reference, spacing)
        theirs = peer.compute_hausdorff_distance(*pair, include_background=True, spacing=spacing).item()
        assert hausdorff(found) == pytest.approx(theirs, rel=1e-6)  # float32
        values = score(prediction, reference, spacing=spacing, tolerance=1.3)
        mean = peer.compute_average_surface_distance(*pair, include_background=True, symmetric=True, spacing=spacing)
        assert values["assd"] == pytest.approx(mean.item(), rel=1e-6)
        near = peer.compute_surface_dice(*pair, [1.3], include_background=True, spacing=spacing)
        assert values["nsd"] == pytest.approx(near.item(), abs=1e-6)


@pytest.mark.parametrize("number", MANY)
def test_objects_equal_the_connected_components_of_simpleitk(number):
    itk = pytest.importorskip("SimpleITK")
    for mask, _, _ in random_pairs(number, 3):
        theirs = itk.GetArrayFromImage(itk.ConnectedComponent(itk.GetImageFromArray(mask.astype(np.uint8)), True))
        ours = objects_of(mask)
        pairs = {*zip(ours.ravel().tolist(), theirs.ravel().tolist(), strict=True)}
        assert len(pairs) == ours.max() + 1 == theirs.max() + 1  # the same sets of voxels, whatever their numbers


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", MANY)
def test_panoptic_quality_equals_monai(number):
    """MONAI asks for an IoU above the threshold, as Kirillov et al. do; here one of exactly 0.5 is found, too."""
    torch, peer = pytest.importorskip("torch"), pytest.importorskip("monai.metrics.panoptic_quality")
    for prediction, reference, _ in random_pairs(number, 4):
        matches = match_masks(prediction, reference)
        if (matches.reference_iou == 0.5).any():
            continue
        maps = [torch.from_numpy(objects_of(mask).astype(np.int64)) for mask in (prediction, reference)]
        theirs = peer.compute_panoptic_quality(
            *maps, metric_name="pq", remap=True, match_iou_threshold=0.5, smooth_numerator=0
        )
        assert object_scores(matches)["pq"] == pytest.approx(float(theirs), abs=1e-6)  # float32
