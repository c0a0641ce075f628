"""The runtime predicts as ulna does, voxel by voxel: orientation, grid, values, windows, slices, points, and the way back."""

import json

import numpy as np
import pytest
import torch

from packages.runtime.tests.conftest import CLASSES, OVERLAPPING, plan_for, recipe_of
from tests.data.pipeline.test_orientation import ALL_48, oblique, stored_as
from tests.inference.test_geometry import GRID
from ulna.data.pipeline.orientation import to_canonical
from ulna.data.volume import Volume
from ulna.inference.ensemble import Ensemble
from ulna.inference.spread import Agreement, count_agreement
from ulna.networks.heads import probabilities
from ulna.recipe import Labels, Normalization, Slices
from ulna.recipe.plan import Whitening
from ulna_runtime import labels, turning
from ulna_runtime.bundle import Bundle
from ulna_runtime.predicting import Compare
from ulna_runtime.segmenter import Segmenter as Exported
from ulna_runtime.volume import Volume as RuntimeVolume

APART = 2e-5  # float32 sums of two libraries, through a network of some thousand terms
MM = {"spacing": (1.0, 1.0), "unit": "mm", "fingerprint": {}}
NORMS = (
    Normalization(kind="ct", low=-1.0, high=1.5, mean=0.2, std=0.7),
    Normalization(kind="rescale", low=-2.0, high=3.0),
    Normalization(kind="none", clip=(None, 1.0)),
)
JOINT = (
    Normalization(kind="zscore_joint"),
    Normalization(kind="zscore", clip=(-1.0, 1.0)),
    Normalization(kind="zscore_joint"),
)
WHITE = Whitening(mean=(0.1, 0.2, -0.1), matrix=((1.0, 0.2, 0.0), (0.2, 0.8, 0.1), (0.0, 0.1, 1.3)))
FLAT = {
    "whole": {},
    "windows": {"whole_image_limit": 0},
    "windows along the other axis": {"whole_image_limit": 0, "size_of_image": (21, 40)},
    "smaller than a window": {"whole_image_limit": 0, "size_of_image": (9, 11)},
    "finer grid": MM | {"spacing": (0.6, 0.7)},
    "coarser grid": MM | {"spacing": (2.3, 1.7), "whole_image_limit": 0},
    "one size": {"size": (24, 30)},
    "one size along an axis": {"size": (None, 30), "kept_axes": (0,)},
    "cropped": {"crop": (20, 24)},
    "padded": {"crop": (50, 24)},
    "cropped on another grid": MM | {"spacing": (1.6, 0.8), "crop": (14, 60), "whole_image_limit": 0},
    "CT, range, none": {"normalization": NORMS},
    "joint, clipped": {"normalization": JOINT, "crop": (20, 24)},
    "whitened": {"whitening": WHITE},
}


def same(pair, plan, volume, *, varied=True, **inference):
    """Both answers, compared; `varied`: of more than one class, lest nothing is compared."""
    ours, theirs = pair.both(plan, **inference)
    expected = ours.probabilities(volume).numpy()
    given = RuntimeVolume(volume.array, volume.spacing, volume.unit, volume.affine)
    result = theirs(given, probabilities=True)
    assert np.abs(result.probabilities - expected).max() < APART
    assert (theirs(given).mask == ours.mask(volume)).mean() >= 0.999  # rounding at the threshold
    assert not varied or len(np.unique(result.mask)) > 1
    return result


@pytest.mark.parametrize("name", FLAT)
def test_pictures(name, flat, rng):
    changes = {"size_of_image": (37, 26), **FLAT[name]}
    size = changes.pop("size_of_image")
    image = rng.normal(size=(3, *size)).astype(np.float32)
    same(flat, plan_for(2, **changes), Volume(image, (1.0, 1.0), changes.get("unit", "px")))


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.75])
def test_mirrored_copies_and_overlap(flat, rng, overlap):
    image = rng.integers(0, 255, (3, 37, 26), np.uint8)
    same(flat, plan_for(2, whole_image_limit=0), Volume(image, (1.0, 1.0)), tta=True, overlap=overlap)


def test_overlapping_classes(flat, rng):
    volume = Volume(rng.normal(size=(3, 30, 22)).astype(np.float32), (1.0, 1.0))
    same(flat, plan_for(2, labels=OVERLAPPING, crop=(40, 16)), volume, threshold=0.48)


def affines(count):
    """Axes in any order and sense, oblique by up to 20 degrees."""
    rng = np.random.default_rng(5)
    for _ in range(count):
        turn, _ = np.linalg.qr(np.eye(3) + 0.25 * rng.normal(size=(3, 3)))
        turn = turn * np.sign(np.diag(turn))
        matrix = np.eye(4)
        matrix[:3, :3] = (turn[:, rng.permutation(3)] * rng.choice([-1, 1], 3)) @ np.diag(rng.uniform(0.7, 2.5, 3))
        matrix[:3, 3] = rng.normal(size=3)
        yield matrix


def test_turns():
    for affine in affines(60):
        for dims in (2, 3):
            assert turning.to_canonical(affine, dims) == to_canonical(affine, dims)


@pytest.mark.parametrize("number", range(4))
def test_volumes_in_any_orientation(number, deep, rng):
    affine = list(affines(4))[number]
    size = ((13, 30, 17), (26, 12, 14), (15, 16, 29), (14, 14, 14))[number]
    spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0))
    limit = (0, 10**6)[number % 2]
    grid = {"spacing": (1.3, 1.1, 1.6), "unit": "mm", "crop": (None, 12, 40)}
    plan = plan_for(3, orientation="RAS", whole_image_limit=limit, **grid)
    result = same(deep, plan, Volume(rng.normal(size=(1, *size)).astype(np.float32), spacing, "mm", affine))
    assert result.mask.shape == size


@pytest.mark.parametrize("limit", [0, 10**6])
def test_the_answer_is_the_same_to_the_bit_in_all_48_orientations(limit, deep, rng):
    plan = plan_for(3, orientation="RAS", spacing=GRID, unit="mm", whole_image_limit=limit, patch=(8, 12, 8))
    segment, affine = deep.both(plan, tta=limit > 0)[1], oblique((4, -9, 13), (1.3, 1.2, 2.9))
    array = rng.normal(size=(9, 13, 5)).astype(np.float32)
    straight = segment(array, affine=affine, probabilities=True)
    assert len(np.unique(straight.mask)) > 1
    for letters in ALL_48[:: 5 if limit else 1]:
        other, its = stored_as(array, affine, letters)
        result = segment(other, affine=its, probabilities=True)
        assert np.array_equal(result.mask, stored_as(straight.mask, affine, letters)[0])
        for one, expected in zip(result.probabilities, straight.probabilities, strict=True):
            assert np.array_equal(one, stored_as(expected, affine, letters)[0])


@pytest.mark.parametrize(("axis", "neighbours"), [(0, 0), (1, 1), (2, 1)])
def test_slices_of_volumes(axis, neighbours, flat, rng):
    channels = 1 if neighbours else 3
    plan = plan_for(
        2,
        in_channels=channels,
        slices=Slices(axis=axis, neighbours=neighbours, full_count=1, empty_count=0),
        spacing=(1.0, 1.4, 0.8),
        unit="mm",
        whole_image_limit=0,
        fingerprint={"spatial_dims": 3, "size": dict.fromkeys(("min", "median", "max"), (16, 16, 16))},
    )
    volume = Volume(rng.normal(size=(channels, 18, 11, 23)).astype(np.float32), (1.0, 1.0, 1.0), "mm")
    same(flat, plan, volume, tta=True)


@pytest.mark.parametrize(
    "inference",
    [
        {},
        {"refine": "once", "smooth": False},
        {"mesh_step": 3, "overlap": 0.25},
        {"mesh_step": 1, "tta": True},
    ],
    ids=str,
)
@pytest.mark.share(3)
def test_heads_that_read_points(points, rng, inference):
    smooth = rng.normal(size=(3, 5, 4)).repeat(8, 1).repeat(8, 2).astype(np.float32)
    same(points, plan_for(2), Volume(smooth, (1.0, 1.0)), varied="tta" not in inference, **inference)


def test_points_in_slices_and_small_images(points, rng):
    slices = Slices(axis=2, neighbours=1, full_count=1, empty_count=0)
    told = {"spatial_dims": 3, "size": dict.fromkeys(("min", "median", "max"), (16, 16, 16))}
    plan = plan_for(2, in_channels=1, slices=slices, spacing=(1.0, 1.0, 1.0), unit="mm", fingerprint=told)
    same(points, plan, Volume(rng.normal(size=(1, 20, 9, 6)).astype(np.float32), (1.0, 1.0, 1.0), "mm"))


def test_several_networks_are_averaged_whatever_their_grids(flat, rng):
    plans = [plan_for(2, unit="mm", spacing=s, whole_image_limit=0) for s in ((1.0, 1.0), (0.7, 1.6), (2.0, 1.4))]
    members, graphs = [], {}
    for plan in plans:
        parts = flat.members(plan, recipe_of(flat.model, flat.architecture))
        members += json.loads(parts["pipeline.json"])["members"]
        graphs |= {name: data for name, data in parts.items() if name.startswith("networks/")}
    ours = Ensemble({str(n): flat.both(plan)[0] for n, plan in enumerate(plans)})
    theirs = Exported(Bundle("file", "", {"members": members}, {}, graphs), threads=1)
    volume = Volume(rng.normal(size=(3, 31, 22)).astype(np.float32), (1.0, 1.0), "mm")
    given = RuntimeVolume(volume.array, volume.spacing, "mm")
    result = theirs(given, probabilities=True)
    assert np.abs(result.probabilities - ours.probabilities(volume).numpy()).max() < APART
    assert (result.mask == ours.mask(volume)).mean() >= 0.999
    expected, found = Agreement(CLASSES), Agreement(CLASSES)
    ours.slabs(volume, expected).maps()

    def add(first, second):
        found.add(count_agreement(torch.from_numpy(first)[None], torch.from_numpy(second)[None], CLASSES))

    theirs.slabs(given, compare=Compare(add)).joined(lambda part: part)
    assert found.by_class() == pytest.approx(expected.by_class(), abs=1e-6)
    assert 0 < found.by_class()["x"] < 1


def test_one_structure_has_one_map(rng):
    logits = 40 * rng.normal(size=(3, 50)).astype(np.float32)
    for multilabel, maps in ((False, logits), (True, logits), (False, logits[:1])):
        expected = probabilities(torch.from_numpy(maps[None]), multilabel=multilabel)[0].numpy()
        assert np.abs(labels.probabilities(maps, multilabel) - expected).max() < 1e-6
    assert labels.to_labels(logits[:1], Labels(), 0.5).shape == (50,)
    assert labels.background(CLASSES).tolist() == [1, 0, 0]
