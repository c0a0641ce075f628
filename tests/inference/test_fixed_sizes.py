"""Plans that resample to a size, crop, or keep the spacing of an image: the answer lies where it does in the world."""

import numpy as np
import pytest
import torch

from tests.data.pipeline.test_orientation import ALL_48, oblique, stored_as
from tests.inference.test_geometry import GRID, RADIUS, RECIPE, Shifted, distances, plan_of
from tests.plans import make
from ulna.data.volume import Volume
from ulna.inference.ensemble import Ensemble
from ulna.inference.segmenter import Segmenter
from ulna.networks.build import build
from ulna.planning.memory import prediction_memory
from ulna.recipe import Labels, Normalization

NONE = (Normalization(kind="none"),)
SHAPE, SPACING = (31, 26, 19), (1.2, 1.6, 2.3)
PLANS = {
    "size": {"size": (24, 40, 16)},
    "crop": {"crop": (17, 22, 19)},
    "padded": {"crop": (40, 22, None)},
    "size and crop": {"size": (40, 36, None), "crop": (26, 28, 18), "kept_axes": (2,)},
    "kept": {"kept_axes": (0, 2)},
}


@pytest.mark.parametrize("changes", PLANS.values(), ids=list(PLANS))
def test_a_structure_is_marked_where_it_lies_however_the_file_is_stored(changes):
    """Every voxel that is farther than a voxel of the grid from the border of the structure is right."""
    segment = Segmenter(Shifted((0, 0, 0)), plan_of(**changes), RECIPE)
    affine = oblique((4, -9, 13), SPACING)
    middle = affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2) + affine[:3, 3]
    bright = np.clip(RADIUS - distances(SHAPE, affine, middle), -4, 4).astype(np.float32)
    for letters in ALL_48[::7]:
        array, its = stored_as(bright, affine, letters)
        result = segment(array, affine=its)
        assert result.mask.shape == array.shape
        from_border = distances(array.shape, its, middle) - RADIUS
        clear = np.abs(from_border) > max(SPACING) / 2
        assert np.array_equal(result.mask[clear], from_border[clear] < 0), letters


@pytest.mark.parametrize("names", [("background", "a"), ("background", "a", "b")])
@pytest.mark.parametrize("limit", [1, 10**6])
def test_beyond_a_crop_all_is_background_and_within_it_the_answer_is_that_of_the_cut_image(names, limit):
    """By windows and as a whole; overlapping classes too."""
    for labels in (Labels(names=names), Labels(names=names[1:], multilabel=True)):
        network = build(
            "unet",
            classes=labels.outputs,
            spatial_dims=2,
            channels=(4, 8),
            generator=torch.Generator().manual_seed(0),
            multilabel=labels.multilabel,
        ).eval()
        fields = {"labels": labels, "normalization": (Normalization(kind="zscore"),), "patch": (8, 8)}
        fields |= {"whole_image_limit": limit, "strides": ((2, 2),), "unit": "mm"}
        segment = Segmenter(network, make(crop=(16, 12), **fields), RECIPE)
        array = np.random.default_rng(0).normal(size=(1, 21, 30)).astype(np.float32)
        result = segment.segment(Volume(array, (1.0, 1.0), "mm"), probabilities=True)
        cut = Segmenter(network, make(**fields), RECIPE).probabilities(
            Volume(array[:, 2:18, 9:21].copy(), (1.0, 1.0), "mm")
        )
        expected = np.zeros((labels.outputs, 21, 30), np.float32)
        if labels.outputs > 1 and not labels.multilabel:
            expected[0] = 1
        expected[:, 2:18, 9:21] = cut
        np.testing.assert_allclose(result.probabilities, expected, atol=1e-6)
        assert np.array_equal(segment.mask(result.volume), result.mask)


def test_a_head_that_reads_points_sees_a_patch_within_a_crop():
    network = build(
        "implicit_unet", classes=3, spatial_dims=3, channels=(4, 8), generator=torch.Generator().manual_seed(0)
    ).eval()
    fields = {"patch": (12, 12, 12), "strides": ((2, 2, 2),), "labels": Labels(names=("background", "a", "b"))}
    array = np.random.default_rng(0).normal(size=(17, 9, 20)).astype(np.float32)
    segment = Segmenter(network, plan_of(crop=(14, 10, 16), spacing=(1.0,) * 3, **fields), RECIPE)
    maps = segment.probabilities(Volume(array[None], (1.0,) * 3, "mm", np.eye(4))).numpy()
    cut = Segmenter(network, plan_of(crop=(14, 10, 16), spacing=(1.0,) * 3, **fields), RECIPE)
    inner = cut.probabilities(Volume(array[None, 1:15, :, 2:18].copy(), (1.0,) * 3, "mm", np.eye(4))).numpy()
    np.testing.assert_allclose(maps[:, 1:15, :, 2:18], inner, atol=1e-6)
    assert not maps[-1, 0].any() and not maps[-1, :, :, :2].any()


def test_members_with_other_crops_are_averaged_on_the_image():
    array = np.random.default_rng(0).normal(size=(1, 9, 12, 7)).astype(np.float32)
    volume = Volume(array, GRID, "mm", np.diag([*GRID, 1.0]))
    members = [Segmenter(Shifted((0, 0, 0)), plan_of(**changes), RECIPE) for changes in ({}, {"crop": (5, 6, 7)})]
    both = Ensemble({str(number): member for number, member in enumerate(members)})
    mean = (members[0].probabilities(volume) + members[1].probabilities(volume)) / 2
    torch.testing.assert_close(both.probabilities(volume), mean, atol=1e-6, rtol=0)


def test_an_image_without_spacing_is_taken_where_only_its_size_counts():
    plan = make(size=(8, 8), spacing=(2.0, 2.0), unit="mm", normalization=NONE, spatial_dims=2)
    network = build("unet", spatial_dims=2, channels=(4, 8), generator=torch.Generator().manual_seed(0)).eval()
    segment = Segmenter(network, plan, RECIPE)
    array = np.random.default_rng(0).normal(size=(1, 20, 14)).astype(np.float32)
    plain = segment.probabilities(Volume(array, (1.0, 1.0)))
    assert torch.equal(plain, segment.probabilities(Volume(array, (0.3, 7.0), "mm")))
    assert plain.shape == (1, 20, 14)
    result = segment(array)
    assert (result.spacing, result.volume.unit) == ((1.0, 1.0), "px")
    np.testing.assert_array_equal(result.probabilities, plain.numpy())


def test_memory_is_estimated_for_the_grid_that_is_fixed():
    network = build("unet", spatial_dims=2, channels=(4, 8)).eval()
    large = Volume(np.zeros((1, 400, 400), np.float32), (1.0, 1.0))

    def taken(**changes):
        plan = make(whole_image_limit=10**7, **changes)
        return prediction_memory(plan, large, network, maps_per_voxel=100.0, probabilities=False).parts

    for changes in ({"size": (40, 40)}, {"crop": (40, 40)}):
        assert taken(**changes)["maps of a window"] == pytest.approx(taken()["maps of a window"] / 100)
