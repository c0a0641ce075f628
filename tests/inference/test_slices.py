"""A 2D network on volumes: every slice is answered as an image of its own would be, whatever goes together."""

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.data.pipeline.test_orientation import stored_as
from tests.inference.test_sparse import network as points_network
from tests.plans import make
from ulna.data.pipeline.preprocess import Prepared, prepare
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.inference.ensemble import Ensemble
from ulna.inference.forward import Forward
from ulna.inference.segmenter import Segmenter, network_for
from ulna.inference.slices import by_slices
from ulna.inference.spread import Agreement
from ulna.inference.volume import predict_slabs
from ulna.networks.build import build
from ulna.planning.memory import maps_per_voxel, prediction_memory
from ulna.recipe import Inference, Labels, Normalization, Recipe, Slices, Training

CPU = torch.device("cpu")
NONE = (Normalization(kind="none"),)
RECIPE = Recipe(training=Training(precision="fp32"))


def slices_of(axis=0, neighbours=0):
    return Slices(axis=axis, neighbours=neighbours, full_count=1, empty_count=1)


def plan_of(axis=0, neighbours=0, spacing=(1.0, 1.0, 1.0), **changes):
    fields = {
        "spatial_dims": 2,
        "spacing": spacing,
        "slices": slices_of(axis, neighbours),
        "kept_axes": (axis,),
        "normalization": NONE,
    }
    return make(**(fields | changes))


def flat_plan(**changes):
    """Of images that are slices with their neighbours as channels."""
    channels = changes.get("in_channels", 1)
    names = {"channel_names": tuple(map(str, range(channels))), "normalization": NONE * channels}
    fingerprint = {"channels": channels, "channel_names": names["channel_names"]}
    return make(**names | changes, fingerprint=fingerprint)


def net_of(plan, seed=0):
    return build(
        "unet", in_channels=plan.inputs, classes=plan.labels.outputs, spatial_dims=2, channels=(3, 4, 6),
        multilabel=plan.labels.multilabel, generator=torch.Generator().manual_seed(seed),
    ).eval()  # fmt: skip


def literally(network, plan, image, settings):
    """Every slice as an image of its own, its neighbours as channels, put together again."""
    axis, count = plan.slices.axis, plan.slices.neighbours
    last = image.shape[axis + 1] - 1
    flat = flat_plan(
        in_channels=plan.inputs, labels=plan.labels, patch=plan.patch, whole_image_limit=plan.whole_image_limit,
        mirror_axes=plan.mirror_axes,
    )  # fmt: skip
    made = []
    for place in range(last + 1):
        seen = [min(max(place + offset, 0), last) for offset in range(-count, count + 1)]
        channels = torch.cat([image.select(axis + 1, at) for at in seen])
        one = Prepared(channels, tuple(channels.shape[1:]))
        made.append(predict_slabs(network, flat, one, settings=settings, device=CPU).maps())
    return torch.stack(made, dim=axis + 1)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("neighbours", "tta"), [(0, False), (2, True)])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("size", [(5, 21, 18), (1, 17, 33), (18, 1, 2)])
@pytest.mark.share(5)
def test_a_volume_is_answered_slice_by_slice(size, axis, neighbours, tta, whole):
    labels = Labels(names=("background", "a", "b"))
    plan = plan_of(axis, neighbours, labels=labels, whole_image_limit=10**6 if whole else 0)
    network = net_of(plan)
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(1))
    settings = Inference(tta=tta)
    slabs = predict_slabs(network, plan, Prepared(image, size), settings=settings, device=CPU)
    assert slabs.axis == axis
    torch.testing.assert_close(slabs.maps(), literally(network, plan, image, settings), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 7, 64])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_windows_of_several_slices_go_together(batch, overlap):
    seen = []

    def blurred(windows):
        seen.append(len(windows))
        return torch.cat([windows.mean(1, keepdim=True), windows[:, :1].square()], dim=1)

    image = torch.randn(1, 6, 13, 20, generator=torch.Generator().manual_seed(0))
    slices = slices_of(1, neighbours=1)
    found = torch.cat([*by_slices(blurred, image, slices, (4, 9), overlap=overlap, batch=batch)], dim=2)
    assert max(seen) <= batch
    alone = [*by_slices(blurred, image, slices, (4, 9), overlap=overlap)]
    assert len(alone) == 13, "one slice at a time"
    torch.testing.assert_close(found, torch.cat(alone, dim=2), atol=1e-6, rtol=1e-5)


def test_no_more_than_a_batch_of_slices_is_held():
    plan = plan_of(2)
    network = net_of(plan)
    image = torch.randn(1, 20, 20, 9)
    slabs = predict_slabs(network, plan, Prepared(image, (20, 20, 9)), settings=Inference(), device=CPU)
    assert [tuple(part.shape) for part in slabs.parts] == [(1, 20, 20, 1)] * 9

    forward = Forward(network, plan, CPU)
    forward.together = lambda patch: 4
    slabs = predict_slabs(
        network, plan, Prepared(image, (20, 20, 9)), settings=Inference(), device=CPU, forward=forward
    )
    assert max(part.shape[-1] for part in slabs.parts) <= 4


@pytest.mark.parametrize("smooth", [True, False])
def test_a_head_that_reads_points_sees_slices_as_it_sees_images(smooth):
    network = points_network(2, 3)
    labels = Labels(names=("background", "a", "b"))
    plan = plan_of(1, labels=labels, patch=(16, 24))
    image = torch.randn(1, 9, 4, 30, generator=torch.Generator().manual_seed(3))
    settings = Inference(mesh_step=1, smooth=smooth)
    slabs = predict_slabs(network, plan, Prepared(image, (9, 4, 30)), settings=settings, device=CPU)
    torch.testing.assert_close(slabs.maps(), literally(network, plan, image, settings), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("letters", ["RAS", "LPS", "SAR", "ILA"])
@pytest.mark.parametrize("axis", [0, 2])
def test_the_answer_lies_in_the_geometry_of_the_file(tmp_path, letters, axis):
    plan = plan_of(axis, spacing=(2.0, 1.5, 3.0), unit="mm", orientation="RAS", whole_image_limit=10**6)
    network = net_of(plan)
    segmenter = Segmenter(network, plan, RECIPE)
    array = np.random.default_rng(0).normal(size=(11, 14, 9)).astype(np.float32)
    affine = np.diag([1.6, 1.5, 2.5, 1.0])
    stored = nib.Nifti1Image(*stored_as(array, affine, letters))
    for name, file in (("a", nib.Nifti1Image(array, affine)), ("b", stored)):
        file.header.set_xyzt_units("mm")
        nib.save(file, tmp_path / f"{name}.nii.gz")
    ours, theirs = (segmenter(tmp_path / f"{name}.nii.gz") for name in "ab")
    assert theirs.mask.shape == stored.shape
    np.testing.assert_allclose(theirs.affine, stored.affine, atol=1e-5)
    back = nib.as_closest_canonical(nib.Nifti1Image(theirs.probabilities[0], stored.affine))
    np.testing.assert_allclose(np.asarray(back.dataobj), ours.probabilities[0], atol=1e-5)


@pytest.mark.parametrize("letters", ["RAS", "LPS", "SAR", "ILA"])
@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.share(5)
def test_slices_with_a_crop_answer_in_the_geometry_of_the_volume(letters, axis, tta):
    """The middle of every slice is that of the cut volume, all beyond it background; one side of the crop is padded."""
    labels = Labels(names=("background", "a", "b"))
    fields = {"labels": labels, "unit": "mm", "orientation": "RAS", "whole_image_limit": 10**6}
    recipe = RECIPE.replaced(inference={"tta": tta})
    size, kept = [21, 30, 26], [slice(None)] * 3
    first, second = (other for other in range(3) if other != axis)
    crop = [None] * 3
    crop[first], crop[second] = 14, 36  # the image is longer along the one, shorter along the other
    start = (size[first] - 14) // 2
    kept[first] = slice(start, start + 14)
    plan = plan_of(axis, neighbours=1, crop=tuple(crop), **fields)
    network = net_of(plan)
    array = np.random.default_rng(0).normal(size=size).astype(np.float32)
    stored, affine = stored_as(array, np.eye(4), letters)
    result = Segmenter(network, plan, recipe)(stored, affine=affine)
    assert result.mask.shape == stored.shape
    np.testing.assert_allclose(result.affine, affine, atol=1e-6)
    around = [None] * 3
    around[second] = 36
    alone = Segmenter(network, plan.replaced(crop=tuple(around)), recipe)
    cut = alone(np.ascontiguousarray(array[tuple(kept)]), affine=np.eye(4)).probabilities
    expected = np.zeros((3, *size), np.float32)
    expected[0] = 1
    expected[(slice(None), *kept)] = cut
    for ours, theirs in zip(result.probabilities, expected, strict=True):
        back = nib.as_closest_canonical(nib.Nifti1Image(ours, affine))
        np.testing.assert_allclose(np.asarray(back.dataobj), theirs, atol=1e-5)
    outside = np.ones(size, bool)
    outside[tuple(kept)] = False
    mask = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(result.mask, affine)).dataobj)
    assert not mask[outside].any() and mask.any()


def test_slices_of_one_size_answer_in_the_geometry_of_the_volume():
    plan = plan_of(2, size=(24, 16, None), spacing=(1.0, 1.0, 4.0), unit="mm", orientation="RAS")
    segmenter = Segmenter(net_of(plan), plan, RECIPE)
    for size, spacing in (((21, 30, 5), (1.0, 1.0, 4.0)), ((48, 16, 3), (0.5, 2.0, 9.0))):
        array = np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32)
        volume = Volume(array, spacing, "mm", np.diag([*spacing, 1.0]))
        assert tuple(prepare(volume, plan).image.shape) == (1, 24, 16, size[2])
        assert segmenter.segment(volume).mask.shape == size


def test_across_the_slices_every_volume_keeps_its_own_spacing():
    plan = plan_of(2, spacing=(1.0, 1.0, 4.0), unit="mm", orientation="RAS")
    array = np.random.default_rng(0).normal(size=(1, 10, 12, 7)).astype(np.float32)
    volume = Volume(array, (2.0, 1.0, 9.0), "mm", np.diag([2.0, 1.0, 9.0, 1.0]))
    prepared = prepare(volume, plan)
    assert tuple(prepared.image.shape) == (1, 20, 12, 7) and prepared.step[2] == 1
    resampled = prepare(volume, plan.replaced(kept_axes=()))
    assert tuple(resampled.image.shape) == (1, 20, 12, 16)
    segmenter = Segmenter(net_of(plan), plan, RECIPE)
    for one in (segmenter, Segmenter(segmenter.network, plan.replaced(kept_axes=()), RECIPE)):
        assert one.segment(volume).mask.shape == (10, 12, 7)


def test_a_spacing_across_that_no_volume_of_the_training_had_is_noted(caplog):
    plan = plan_of(2, spacing=(1.0, 1.0, 4.0), unit="mm")
    volume = Volume(np.zeros((1, 8, 8, 3), np.float32), (1.0, 1.0, 9.0), "mm")
    Segmenter(net_of(plan), plan, RECIPE).segment(volume)
    assert "its own is kept there" in caplog.text


def test_normalisation_is_of_the_volume_not_of_the_slice():
    plan = plan_of(0, normalization=(Normalization(kind="zscore"),))
    array = np.stack([np.full((4, 5), value, np.float32) for value in (1, 2, 6)])[None]
    image = prepare(Volume(array, (1.0,) * 3), plan).image
    np.testing.assert_allclose(image[0, :, 0, 0], (np.array([1, 2, 6]) - 3) / np.array([1, 2, 6]).std(), rtol=1e-6)


def test_an_image_of_other_dimensions_is_refused():
    plan = plan_of()
    with pytest.raises(UsageError, match="a 2D image; this model was planned for 3D images, whose slices it reads"):
        Segmenter(net_of(plan), plan, RECIPE).segment(Volume(np.zeros((1, 8, 8), np.float32), (1.0, 1.0)))


def test_arrays_are_volumes():
    plan = plan_of(1, spacing=(1.0, 4.0, 1.0), unit="mm", orientation="RAS", fingerprint={"worlds": (0, 1, 2)})
    segmenter = Segmenter(net_of(plan), plan, RECIPE)
    result = segmenter(np.random.default_rng(0).normal(size=(9, 4, 12)).astype(np.float32))
    assert result.mask.shape == (9, 4, 12) and result.spacing == (1.0, 4.0, 1.0)


def test_a_network_of_slices_and_one_of_volumes_are_averaged():
    flat = plan_of(1, whole_image_limit=10**6)
    deep = make(spatial_dims=3, normalization=NONE, turn_axes=None, whole_image_limit=10**6)
    one = Segmenter(net_of(flat), flat, RECIPE)
    recipe = RECIPE.replaced(architecture={"channels": (3, 4, 6), "strides": ((2, 2, 2),) * 2})
    other = Segmenter(network_for(recipe, deep, torch.Generator().manual_seed(5)), deep, recipe)
    volume = Volume(np.random.default_rng(0).normal(size=(1, 9, 10, 16)).astype(np.float32), (1.0,) * 3)
    mean = (one.probabilities(volume) + other.probabilities(volume)) / 2
    for members in ({"a": one, "b": other}, {"b": other, "a": one}):
        both = Ensemble(members)
        torch.testing.assert_close(both.probabilities(volume), mean, atol=1e-6, rtol=1e-5)
        assert both.forecast(volume, probabilities=False).parts["result"] > 0


def test_memory_is_that_of_a_slice_not_of_the_volume():
    plan = plan_of(2, whole_image_limit=10**6)
    network = net_of(plan)
    each = maps_per_voxel(network, plan, bf16=False)

    def needed(depth):
        volume = Volume(np.zeros((1, 64, 64, depth), np.float32), (1.0,) * 3)
        return prediction_memory(plan, volume, network, maps_per_voxel=each, probabilities=False).parts

    assert needed(100)["maps of a window"] == needed(1)["maps of a window"]
    assert needed(100)["slab"] == pytest.approx(needed(1)["slab"])
    assert needed(100)["image"] == 100 * needed(1)["image"]


@pytest.mark.parametrize("kind", ["slices", "points", "volume"])
def test_copies_that_are_made_beside_an_answer_change_no_bit_of_it_and_agree_as_averaged_ones(kind):
    labels = Labels(names=("background", "a", "b"))
    if kind == "volume":
        plan = make(spatial_dims=3, labels=labels, patch=(8, 8, 8), whole_image_limit=0, mirror_axes=(0, 2))
        network = build(
            "unet", classes=3, spatial_dims=3, channels=(3, 4), generator=torch.Generator().manual_seed(0)
        ).eval()
    else:
        plan = plan_of(1, labels=labels, patch=(16, 24), mirror_axes=(0, 1))
        network = points_network(2, 3) if kind == "points" else net_of(plan)
    size = (9, 5, 30)
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(3))

    def maps(agreement, tta):
        settings = Inference(mesh_step=1, tta=tta)
        slabs = predict_slabs(network, plan, Prepared(image, size), settings=settings, device=CPU, agreement=agreement)
        return slabs.maps()

    beside, averaged, unasked = Agreement(labels, copies=True), Agreement(labels), Agreement(labels)
    straight = maps(None, False)
    assert torch.equal(maps(beside, False), straight)
    assert not torch.equal(maps(averaged, True), straight)
    assert beside.by_class() == pytest.approx(averaged.by_class(), nan_ok=True) and beside.by_class()
    maps(unasked, False)
    assert not unasked.by_class()
