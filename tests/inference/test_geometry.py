"""A structure is found on its side of the body, whatever the orientation, the spacing and the format of the file.

The network is made by hand: what it marks lies some voxels of its grid to the right of what is bright, further to the front
and higher up, so that every axis has a direction.
"""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from tests.data.pipeline.test_orientation import ALL_48, oblique, stored_as
from tests.plans import make
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.inference.ensemble import Ensemble
from ulna.inference.segmenter import Segmenter
from ulna.networks.build import build
from ulna.recipe import Inference, Labels, Normalization, Recipe, Training

GRID = (1.5, 1.2, 2.0)  # mm, of the plan
OFFSET = (3, -2, 1)  # voxels of that grid: to the right, to the back, up
RADIUS = 6.0  # mm
NONE = (Normalization(kind="none"),)
RECIPE = Recipe(training=Training(precision="fp32"))
SHAPES = [  # of the file, and its spacing in mm: as the plan's, others, coarser along one axis, one slice
    ((26, 30, 19), (1.5, 1.2, 2.0)),
    ((19, 33, 24), (2.1, 1.0, 1.6)),
    ((44, 20, 12), (0.9, 2.0, 3.1)),
    ((31, 40, 1), (1.2, 1.0, 5.0)),
]


class Shifted(nn.Module):
    """The logit of a voxel is the value of the one that lies `OFFSET` before it."""

    def __init__(self, offset):
        super().__init__()
        self.offset, self.head = offset, SimpleNamespace(sparse=False)

    def forward(self, x):
        return torch.roll(x, self.offset, dims=(2, 3, 4)) * 8


def plan_of(offset=OFFSET, **changes):
    fields = {"spatial_dims": 3, "spacing": GRID, "unit": "mm", "orientation": "RAS", "normalization": NONE,
              "whole_image_limit": 10**7} | changes  # fmt: skip
    return make(**fields)


def distances(shape, affine, centre):
    """mm from a point of the world to every voxel."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return np.linalg.norm(index @ affine[:3, :3].T + affine[:3, 3] - centre, axis=-1)


def write(path, array, affine):
    if path.suffix == ".nii":
        nib.save(nib.Nifti1Image(array, affine), path)
        return
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(array.transpose())
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    to_lps = np.diag([-1.0, -1.0, 1.0])
    image.SetSpacing(steps.tolist())
    image.SetDirection((to_lps @ affine[:3, :3] / steps).ravel().tolist())
    image.SetOrigin((to_lps @ affine[:3, 3]).tolist())
    sitk.WriteImage(image, str(path))


@pytest.mark.parametrize("suffix", [".nii", ".mha", ".nrrd"])
@pytest.mark.parametrize(("shape", "spacing"), SHAPES)
@pytest.mark.share(4)
def test_a_structure_lies_where_it_does_in_the_world_in_all_48_orientations(shape, spacing, suffix, tmp_path):
    """100 % of the voxels that are farther than half a voxel from the border of the structure are right."""
    offset = OFFSET if shape[2] > 1 else (*OFFSET[:2], 0)
    segment = Segmenter(Shifted(offset), plan_of(), RECIPE)
    affine = oblique((4, -9, 13), spacing)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    moved = directions @ np.multiply(offset, GRID)
    bright = np.clip(RADIUS - distances(shape, affine, middle - moved / 2), -4, 4).astype(np.float32)
    for letters in ALL_48:
        array, its = stored_as(bright, affine, letters)
        path = tmp_path / f"{letters}{suffix}"
        write(path, np.ascontiguousarray(array), its)
        result = segment(path)
        assert result.mask.shape == array.shape
        np.testing.assert_allclose(result.affine, its, atol=1e-3)
        from_border = distances(array.shape, its, middle + moved / 2) - RADIUS
        clear = np.abs(from_border) > max(spacing) / 2
        assert np.array_equal(result.mask[clear], from_border[clear] < 0), letters
        inside = distances(array.shape, its, middle + moved / 2)[result.mask > 0]
        assert len(inside) > 50


@pytest.mark.parametrize("tta", [False, True])
def test_the_answer_is_the_same_to_the_bit_in_all_48_orientations(tta):
    """By windows and on another grid, with a network that knows nothing of symmetry; also its probabilities."""
    network = build(
        "unet", classes=3, spatial_dims=3, channels=(4, 8), generator=torch.Generator().manual_seed(0)
    ).eval()
    plan = plan_of(patch=(8, 12, 8), whole_image_limit=1, labels=Labels(names=("background", "a", "b")),
                   mirror_axes=(0, 2), strides=((2, 2, 2),))  # fmt: skip
    segment = Segmenter(network, plan, RECIPE.replaced(inference=Inference(tta=tta)))
    affine = oblique((4, -9, 13), (1.3, 1.2, 2.9))
    array = np.random.default_rng(0).normal(size=(9, 13, 5)).astype(np.float32)
    straight = segment(array, affine=affine)
    assert len(np.unique(straight.mask)) > 1
    for letters in ALL_48[:: 5 if tta else 1]:
        other, its = stored_as(array, affine, letters)
        result = segment(other, affine=its)
        assert np.array_equal(result.mask, stored_as(straight.mask, affine, letters)[0])
        assert np.array_equal(segment.mask(result.volume), result.mask)
        for one, expected in zip(result.probabilities, straight.probabilities, strict=True):
            assert np.array_equal(one, stored_as(expected, affine, letters)[0])


def test_a_run_of_format_1_keeps_the_axes_of_the_file_and_may_stand_beside_a_newer_one():
    old = Segmenter(Shifted(OFFSET), plan_of(format=1, orientation=None, spacing=None), RECIPE)
    new = Segmenter(Shifted(OFFSET), plan_of(spacing=(1.0, 1.0, 1.0)), RECIPE)
    array = np.random.default_rng(0).normal(size=(9, 12, 7)).astype(np.float32)
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0])
    volume = Volume(array[None], (1.0, 1.0, 1.0), "mm", flipped)
    assert np.array_equal(old.mask(volume), np.roll(array, OFFSET, (0, 1, 2)) > 0)
    assert np.array_equal(new.mask(volume), np.roll(array, (-OFFSET[0], *OFFSET[1:]), (0, 1, 2)) > 0)
    both = Ensemble({"old": old, "new": new})
    mean = (old.probabilities(volume) + new.probabilities(volume)) / 2
    torch.testing.assert_close(both.probabilities(volume), mean, atol=1e-6, rtol=0)


def test_slices_of_one_plane_are_turned_in_it():
    class InPlane(Shifted):
        def forward(self, x):
            return torch.roll(x, self.offset, dims=(2, 3)) * 8

    plan = make(spacing=(1.0, 1.0), unit="mm", orientation="RAS", normalization=NONE)
    segment = Segmenter(InPlane((3, -2)), plan, RECIPE)
    array = np.random.default_rng(0).normal(size=(9, 12)).astype(np.float32)
    for affine, expected in (
        (np.eye(4), np.roll(array, (3, -2), (0, 1))),
        (np.diag([-1.0, -1.0, 1.0, 1.0]), np.roll(array, (-3, 2), (0, 1))),
        (np.eye(4)[:, [1, 0, 2, 3]], np.roll(array, (-2, 3), (0, 1))),
    ):
        assert np.array_equal(segment(array, affine=affine).mask, expected > 0)


def test_an_image_of_other_dimensions_is_refused_before_anything_is_compared():
    segment = Segmenter(Shifted(OFFSET), plan_of(), RECIPE)
    flat = Volume(np.zeros((1, 9, 12), np.float32), (1.0, 1.0), "mm", np.eye(4))
    for ask in (segment, segment.mask, segment.probabilities):
        with pytest.raises(UsageError, match="a 2D image; this model was planned for 3D images"):
            ask(flat)


def test_what_is_odd_for_any_member_of_an_ensemble_is_told_once(caplog):
    near, far = ({"spacing": dict.fromkeys(("min", "median", "max"), [s] * 3)} for s in (1.0, 3.0))
    first, other = (
        Segmenter(Shifted(OFFSET), plan_of(spacing=(s,) * 3, fingerprint=trained), RECIPE)
        for s, trained in ((1.0, near), (3.0, far))
    )
    both = Ensemble({"first": first, "other": other})
    volume = Volume(np.zeros((1, 9, 8, 7), np.float32), (1.0, 1.0, 1.0), "mm", np.eye(4))
    for _ in range(2):
        both.mask(volume)
    assert [message for message in caplog.messages if "the training images 3 x 3 x 3 mm" in message] == caplog.messages
    assert len(caplog.messages) == 1
