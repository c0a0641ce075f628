"""Which slices of volumes a 2D network is trained on, and what is refused."""

import math

import numpy as np
import pytest

from tests import plans
from ulna.data.quality.slices import SliceCount
from ulna.errors import UsageError
from ulna.networks.build import validate
from ulna.planning import slices as module
from ulna.planning.choosing import recommended
from ulna.planning.fitting import check_plan, recipe_of
from ulna.planning.plan import plan_training
from ulna.planning.slices import plane_axes
from ulna.planning.symmetry import ASKEW
from ulna.recipe import Fingerprint, Plan, Slices, parse, set_value, to_yaml
from ulna.system.device import Device
from ulna.system.reading import parse_yaml

CPU = Device("cpu")
TWENTY = (SliceCount(10, 10, 0),) * 3
SMALL = ("architecture.base_channels=4",)


def data_of(spacing=(1.0, 1.0, 4.0), counts=TWENTY, size=(40, 48, 16), **changes):
    told = plans.fingerprint(spacing, "mm", size=dict.fromkeys(("min", "median", "max"), size), **changes)
    data = plans.training_data(Fingerprint(**told))
    return type(data)(data.dataset, data.split, data.labels, data.fingerprint, slices=counts)


def planned(data, *changes, model="unet"):
    recipe = recommended(model)
    for change in (*SMALL, *changes):
        recipe = set_value(recipe, change)
    return plan_training(data, recipe, device=CPU)


def test_a_2d_network_is_planned_for_the_plane_of_the_slices():
    made = planned(data_of(orientation="RAS", worlds=(0, 1, 2), world_axes=(0, 1, 2)), "planning.spatial_dims=2")
    plan = made.plan
    assert (plan.spatial_dims, plan.image_dims, plan.slices.axis, plan.patch_axes) == (2, 3, 2, (0, 1))
    assert plan.patch == (40, 48) and all(len(step) == 2 for step in plan.strides)
    assert plan.spacing == (1.0, 1.0, 4.0) and plan.kept_axes == (2,)
    assert "axial slices" in plan.reasons["slices"] and "largest" in plan.reasons["slices"]
    assert "every slice" in made.length
    assert parse(Plan, parse_yaml(to_yaml(plan), "plan"), source="plan") == plan


@pytest.mark.parametrize(
    ("spacing", "orientation", "axis"),
    [
        ((5.0, 1.0, 1.0), "RAS", 0),
        ((1.0, 5.0, 1.0), None, 1),
        ((1.0, 1.0, 1.0), "RAS", 2),
        ((1.0, 1.0, 1.0), None, 0),
    ],
)
def test_slices_lie_across_the_largest_spacing(spacing, orientation, axis):
    plan = planned(data_of(spacing, orientation=orientation), "planning.spatial_dims=2").plan
    assert plan.slices.axis == axis
    assert planned(data_of(spacing), "planning.spatial_dims=2", "planning.slice_axis=1").plan.slices.axis == 1


def test_neighbours_are_channels_of_the_network_alone():
    made = planned(data_of(), "planning.spatial_dims=2", "planning.neighbours=2")
    assert (made.plan.in_channels, made.plan.inputs, len(made.plan.normalization)) == (1, 5, 1)
    alone = planned(data_of(), "planning.spatial_dims=2")
    assert made.parameters - alone.parameters == 4 * 4 * 3 * 3  # of the first convolution: 4 further channels to 4 maps


def test_volumes_stay_volumes_where_nothing_asks_for_slices():
    made = planned(data_of())
    assert made.plan.slices is None and made.plan.spatial_dims == 3 and "slices" not in made.plan.reasons
    assert "slices" not in to_yaml(made.plan).replace("empty_slices", "") and "kept_axes" not in to_yaml(made.plan)
    assert planned(data_of(), "planning.spatial_dims=3").plan == made.plan


def test_a_network_that_can_be_built_in_2d_alone_is_given_slices(monkeypatch):
    assert planned(data_of(), "architecture.channels=[4, 8]", "architecture.strides=[[2, 2]]").plan.slices is not None

    def only_flat(architecture, *, spatial_dims, **shape):
        if spatial_dims == 3:
            raise UsageError("no such block in 3D")
        return validate(architecture, spatial_dims=spatial_dims, **shape)

    monkeypatch.setattr(module, "validate", only_flat)
    plan = planned(data_of()).plan
    assert plan.slices is not None and "2D alone" in plan.reasons["slices"]


def test_so_many_empty_slices_are_drawn_that_the_share_with_a_structure_is_that_of_foreground():
    data = data_of(counts=(SliceCount(0, 0, 0), SliceCount(0, 0, 0), SliceCount(100, 900, 50)))
    slices = planned(data, "planning.spatial_dims=2").plan.slices
    assert math.isclose(100 / slices.per_epoch, 0.33, rel_tol=0.01)
    assert planned(data, "planning.spatial_dims=2", "planning.empty_slices=0").plan.slices.per_epoch == 100
    assert planned(data, "planning.spatial_dims=2", "planning.empty_slices=0.5").plan.slices.per_epoch == 550
    assert planned(data, "planning.spatial_dims=2", "training.foreground=0").plan.slices.per_epoch == 1000
    plenty = data_of(counts=(SliceCount(100, 10, 0),) * 3)
    assert planned(plenty, "planning.spatial_dims=2").plan.slices.empty == 1


def test_the_batch_goes_by_the_slices_not_by_the_volumes():
    one = data_of(cases=1)
    assert planned(one, "planning.spatial_dims=2").plan.batch == 5  # a quarter of 20 slices
    assert "slices of an epoch" in planned(one, "planning.spatial_dims=2").plan.reasons["batch"]


def test_a_spacing_of_two_lengths_is_of_the_plane_and_of_three_of_the_volume():
    two = planned(data_of(), "planning.spatial_dims=2", "planning.spacing=[2, 2]").plan
    assert two.spacing == (2.0, 2.0, 4.0) and two.kept_axes == (2,)
    assert two.patch_spacing == (2.0, 2.0)
    three = planned(data_of(), "planning.spatial_dims=2", "planning.spacing=[2, 2, 2]").plan
    assert three.spacing == (2.0, 2.0, 2.0) and three.kept_axes == ()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_size_and_crop_are_of_the_plane_and_the_plan_holds_them_for_the_volume(axis):
    fixed = ("planning.spatial_dims=2", f"planning.slice_axis={axis}")
    plane = [n for other, n in enumerate((40, 48, 16)) if other != axis]
    crop = planned(data_of(), *fixed, "planning.crop=[16, null]").plan
    expected = [16, None]
    expected.insert(axis, None)
    assert crop.crop == tuple(expected) and crop.size is None and crop.patch == (16, plane[1])
    assert crop.spacing == (1.0, 1.0, 4.0) and crop.kept_axes == (axis,)
    sized = planned(data_of(), *fixed, "planning.size=[20, 32]", "planning.crop=[16, 32]").plan
    expected = [20, 32]
    expected.insert(axis, None)
    assert sized.size == tuple(expected) and sized.patch == (16, 32) and sized.kept_axes == (axis,)
    assert not sized.needs_spacing and len(sized.spacing) == 3 and sized.spacing[axis] == (1.0, 1.0, 4.0)[axis]
    assert str(axis) in sized.reasons["spacing"] and "null" in sized.reasons["size"]


def test_null_in_a_spacing_of_the_plane_keeps_that_of_every_volume():
    plan = planned(data_of(), "planning.spatial_dims=2", "planning.spacing=[null, 2]").plan
    assert plan.spacing == (1.0, 2.0, 4.0) and plan.kept_axes == (0, 2) and plan.patch == (40, 24)
    three = planned(data_of(), "planning.spatial_dims=2", "planning.spacing=[null, 2, 2]", "planning.patch=[16, 16]")
    assert three.plan.spacing == (1.0, 2.0, 2.0) and three.plan.kept_axes == (0,)


def test_a_size_across_the_slices_leaves_their_number_to_every_volume():
    """A spacing of three lengths beside a size of the plane: both are of one volume."""
    fixed = ("planning.spatial_dims=2", "planning.size=[20, 24]")
    plan = planned(data_of(), *fixed, "planning.spacing=[null, null, 2]").plan
    assert plan.size == (20, 24, None) and plan.spacing == (2.0, 2.0, 2.0) and plan.kept_axes == ()
    with pytest.raises(UsageError, match="both fix axis 0"):
        planned(data_of(), *fixed, "planning.spacing=[2, 2, 2]")


def test_what_a_recipe_requires_is_asked_of_slices():
    data = data_of()
    required = ("requires.spatial_dims=2", "requires.channels=1", "requires.size=[40, 48]")
    plan = planned(data, "planning.spatial_dims=2", "planning.neighbours=2", *required).plan
    check_again = recommended("unet")
    for change in (*SMALL, *required):
        check_again = set_value(check_again, change)
    plan_training(data, check_again, given=plan, device=CPU)
    with pytest.raises(UsageError, match=r"requires.spatial_dims is 2, these data have 3"):
        planned(data, *required)


def test_flips_go_by_the_axes_of_the_patient_that_a_slice_spans():
    labels = ("background", "left kidney", "right kidney")
    oriented = {"orientation": "RAS", "worlds": (0, 1, 2), "world_axes": (0, 1, 2), "classes": labels}
    data = data_of(**oriented)
    data = type(data)(data.dataset, data.split, plans.Labels(names=labels), data.fingerprint, slices=data.slices)
    assert planned(data, "planning.spatial_dims=2").plan.mirror_axes == (1,)
    sagittal = planned(data, "planning.spatial_dims=2", "planning.slice_axis=0").plan
    assert sagittal.mirror_axes == (0, 1), "flat from left to right"
    assert planned(data, "planning.spatial_dims=2").plan.turn_axes is None


def test_the_axes_of_a_slice_are_told_from_those_of_its_volume():
    assert plane_axes((2, 0, 1), Slices(axis=0, full_count=1, empty_count=0)) == [1, None, 0]
    assert plane_axes((None, 1, 2), Slices(axis=2, full_count=1, empty_count=0)) == [ASKEW, 1, None]
    assert plane_axes(None, Slices(axis=2, full_count=1, empty_count=0)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["planning.neighbours=1"], "planning.neighbours=1: .*add planning.spatial_dims=2"),
        (
            ["planning.slice_axis=0", "planning.empty_slices=0.5"],
            "slice_axis=0, planning.empty_slices=0.5: is of slices",
        ),
        (["planning.neighbours=1", "planning.spatial_dims=3"], "sees volumes whole"),
        (["planning.neighbours=-1"], "planning.neighbours: .*greater than or equal to 0, got -1"),
        (["planning.slice_axis=3"], "planning.slice_axis: .*less than or equal to 2, got 3"),
        (["planning.empty_slices=1.5"], "planning.empty_slices: .*less than or equal to 1, got 1.5"),
        (["planning.spatial_dims=4"], "planning.spatial_dims: .*got 4"),
        (["planning.spatial_dims=2", "planning.patch=[8, 8, 8]"], r"planning.patch=\[8, 8, 8\] does not fit 2D"),
        (["planning.spatial_dims=2", "planning.size=[8, 8, 8]"], "planning.size has 3 entries, .*give 2 numbers"),
        (["planning.spatial_dims=2", "planning.crop=[8]"], "planning.crop has 1 entry, .*give 2 numbers"),
        (["planning.size=[8, 8]"], "does not fit 3D images"),
        (["planning.spatial_dims=2", "planning.spacing=[1]"], "planning.spacing has 1 entry, .*give 2 lengths"),
    ],
)
def test_what_is_wrong_about_slices_gets_one_sentence(changes, message):
    with pytest.raises(UsageError, match=message) as error:
        planned(data_of(), *changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change", ["planning.neighbours=1", "planning.slice_axis=0", "planning.empty_slices=0", "planning.spatial_dims=3"]
)
def test_2d_images_have_no_slices(change):
    flat = plans.training_data(Fingerprint(**plans.fingerprint((1.0, 1.0))))
    key = change.partition("=")[0]
    with pytest.raises(UsageError, match=rf"{key}.*2D and have no slices; leave it out"):
        planned(flat, change)
    assert planned(flat, "planning.spatial_dims=2").plan == planned(flat).plan


def test_a_plan_of_slices_from_a_file_fits_what_it_was_made_for_alone():
    data = data_of()
    made = planned(data, "planning.spatial_dims=2", "planning.neighbours=1", "planning.spacing=[2, 2]")
    recipe = made.recipe
    plan = made.plan.replaced(recipe=recipe)
    check_plan(plan, recipe, "plan.yaml", labels=data.labels, channel_names=("grey",), found=data.fingerprint)
    assert recipe_of(plan).planning == recipe.planning
    fixed = ("planning.size=[20, null]", "planning.crop=[16, 24]", "planning.spacing=[null, 2]")
    sized = planned(data, "planning.spatial_dims=2", *fixed)
    held = sized.plan.replaced(recipe=sized.recipe)
    check_plan(held, sized.recipe, "plan.yaml", found=data.fingerprint)
    assert recipe_of(held).planning == sized.recipe.planning
    assert recipe_of(held.replaced(crop=(16, 20, None))).planning.crop == (16, 20)
    with pytest.raises(UsageError, match=r"planning.crop is \[16, 24\], in the plan it is \[16, 20\]"):
        check_plan(held.replaced(crop=(16, 20, None)), sized.recipe, "plan.yaml", found=data.fingerprint)
    for change, message in [
        ("planning.neighbours=2", "planning.neighbours is 2, in the plan it is 1"),
        ("planning.slice_axis=0", "planning.slice_axis is 0, in the plan it is 2"),
        ("planning.spatial_dims=3", "planning.spatial_dims is 3, the plan is of a 2D network"),
        ("planning.spacing=[1, 1]", r"planning.spacing is \[1.0, 1.0\], in the plan it is \[2.0, 2.0\]"),
    ]:
        with pytest.raises(UsageError, match=message):
            check_plan(plan, set_value(recipe, change), "plan.yaml")
    whole = planned(data).plan
    with pytest.raises(UsageError, match=r"planning.neighbours is 1, the plan is not of slices"):
        check_plan(whole, set_value(planned(data).recipe, "planning.neighbours=1"), "plan.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"spatial_dims": 3, "patch": (8, 8, 8), "strides": ((2, 2, 2),), "mirror_axes": (), "turn_axes": None},
            "2D networks",
        ),
        ({"spacing": (1.0, 1.0)}, "spacing has 2 entries, the images have 3 axes"),
        ({"mirror_axes": (2,)}, r"mirror_axes is \[2\]; it holds axes below 2"),
        ({"kept_axes": (2, 2)}, r"kept_axes is \[2, 2\]; it holds axes below 3, each once"),
    ],
)
def test_a_damaged_plan_of_slices_is_refused(changes, message):
    plan = planned(data_of(), "planning.spatial_dims=2").plan
    with pytest.raises(UsageError, match=message):
        plan.replaced(**changes)


def test_an_epoch_of_slices_is_bounded():
    many = data_of(counts=(SliceCount(100_000, 0, 0),) * 3)
    made = planned(many, "planning.spatial_dims=2")
    training, batch = made.recipe.training, made.plan.batch
    assert training.samples_of_epoch(made.plan.slices.per_epoch, batch, 250) == 250 * batch
    every = training.replaced(samples_per_epoch="all")
    assert every.samples_of_epoch(10**6, batch, 250) == 10**6
    assert every.samples_of_epoch(3, batch, 250) == training.min_steps * batch
    assert every.replaced(steps_per_epoch=7).samples_of_epoch(10**6, batch, 250) == 7 * batch
    assert training.replaced(min_steps=400).samples_of_epoch(10**6, batch, 250) == 400 * batch
    assert training.replaced(steps_per_epoch=600).samples_of_epoch(10**6, batch, 250) == 600 * batch
    assert training.samples_of_epoch(3, batch, 250) == training.min_steps * batch
    assert np.isfinite(made.memory.total)
