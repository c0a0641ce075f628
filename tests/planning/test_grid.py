"""What recipes fix of the grid and of the values: the papers' preparations, and what contradicts itself."""

import pytest

from tests.planning.test_plan import all_planned, data, planned
from tests.plans import training_data
from ulna.errors import UsageError
from ulna.planning.choosing import check_words, choose, recommended
from ulna.planning.fitting import check_plan, recipe_of
from ulna.planning.grid import median_grid, stated_spacing
from ulna.planning.plan import plan_training
from ulna.recipe import Plan, from_yaml, set_value, to_yaml

POLYPS = data((288, 384), channels=3, names=("red", "green", "blue"))
LUNG = data((512, 512, 280), (0.8, 0.8, 1.0), "mm", names=("CT",), low=(0.6, 0.6, 0.625), high=(0.98, 0.98, 2.5))
BRAIN = data((240, 240), channels=4, names=("FLAIR", "T1w", "t1gd", "T2w"))


def test_polyps_are_resized_as_in_carvalho():
    plan = planned(POLYPS, "planning.size=[144, 192]", "planning.normalization=rescale", model="carvalho/unet_polyps")
    assert (plan.size, plan.spacing, plan.patch) == ((144, 192), (2.0, 2.0), (144, 192))
    assert {(n.kind, n.low, n.high, n.clip) for n in plan.normalization} == {("rescale", 0, 255, None)}
    assert "every image is resampled to it" in plan.reasons["size"] and "288 x 384" in plan.reasons["size"]
    assert plan.sized_axes == (0, 1) and not plan.needs_spacing
    assert plan.turn_axes is None or plan.patch[0] == plan.patch[1]
    assert median_grid(plan) == (144, 192)


def test_ct_is_windowed_as_in_carvalho():
    ct = data((512, 512), (0.7, 0.7), "mm", names=("CT",))
    plan = planned(ct, "planning.size=[128, 128]", "planning.window=[-1000, 1000]", model="carvalho/unet_liver")
    (how,) = plan.normalization
    assert (how.kind, how.low, how.high, how.clip) == ("rescale", -1000, 1000, (-1000, 1000))
    assert "-1000 to 1000" in plan.reasons["window"] and "planning.window" in plan.reasons["normalization"]
    assert plan.patch == (128, 128)
    assert plan.spacing == pytest.approx((2.8, 2.8))


def test_brains_are_cropped_and_standardised_as_in_laird():
    changes = ("planning.crop=[144, 144]", "planning.normalization=zscore_joint", "planning.patch=[144, 144]")
    plan = planned(BRAIN, *changes, model="laird/unet")
    assert (plan.crop, plan.size, plan.patch, plan.spacing) == ((144, 144), None, (144, 144), (1.0, 1.0))
    assert {how.kind for how in plan.normalization} == {"zscore_joint"}
    assert "about the middle" in plan.reasons["crop"]
    assert median_grid(plan) == (144, 144)


def test_volumes_are_resampled_along_z_alone_and_capped_as_in_marimont():
    changes = ("planning.spacing=[null, null, 1.25]", "planning.cap=95", "planning.patch=[160, 160, 96]")
    recipe = recommended("implicit_unet")
    for change in changes:
        recipe = set_value(recipe, change)
    plan = plan_training(training_data(LUNG), recipe, whiten=False).plan  # the percentile is read from files
    assert (plan.kept_axes, plan.spacing) == ((0, 1), (0.8, 0.8, 1.25))
    assert "every image keeps its own along axis 0 and 1" in plan.reasons["spacing"]
    assert [(how.kind, how.cap) for how in plan.normalization] == [("zscore", 95.0)]
    assert stated_spacing(plan) == (None, None, 1.25)
    assert median_grid(plan) == (512, 512, 224)


def test_a_window_may_be_followed_by_another_normalisation():
    plan = planned(LUNG, "planning.window=[-200, 300]", "planning.normalization=zscore")
    assert [(how.kind, how.clip) for how in plan.normalization] == [("zscore", (-200, 300))]
    assert "fixed by the recipe" in plan.reasons["normalization"]


def test_a_size_along_some_axes_leaves_the_spacing_of_the_others():
    plan = planned(LUNG, "planning.size=[128, 128, null]", "planning.spacing=[null, null, 2.5]")
    assert (plan.kept_axes, plan.sized_axes, plan.needs_spacing) == ((), (0, 1), True)
    assert plan.spacing == pytest.approx((3.2, 3.2, 2.5))
    assert median_grid(plan) == (128, 128, 112)


def test_a_crop_of_the_resampled_image_bounds_the_patch():
    plan = planned(data((256, 256)), "planning.size=[128, 128]", "planning.crop=[112, 96]")
    assert plan.patch == (112, 96)


def test_a_patch_that_is_rounded_up_can_be_fixed_as_a_study_does():
    plan = planned(data((256, 256)), "planning.size=[100, 100]")
    assert plan.patch == (112, 112)
    again = planned(data((256, 256)), "planning.size=[100, 100]", "planning.patch=[112, 112]")
    assert again.patch == plan.patch


WRONG = {
    "no width": (["planning.window=[5, 5]"], r"planning.window: \[5.0, 5.0\] has no width"),
    "a window upside down": (["planning.window=[100, -100]"], "has no width; give the lowest value first"),
    "a percentile": (["planning.cap=120"], "planning.cap: input should be less than or equal to 100, got 120"),
    "no percentile": (["planning.cap=0"], "planning.cap: input should be greater than 0"),
    "two bounds": (["planning.window=[0, 1]", "planning.cap=95"], "both bound the values; leave out one"),
    "ct and a window": (
        ["planning.normalization=ct", "planning.window=[0, 1]"],
        "and planning.window bounds the values otherwise",
    ),
    "ct and a cap": (["planning.normalization=ct", "planning.cap=95"], "and planning.cap bounds the values otherwise"),
    "a crop beyond the size": (
        ["planning.size=[96, 96]", "planning.crop=[96, 128]"],
        r"planning.crop=\[96, 128\] is larger than planning.size=\[96, 96\]",
    ),
    "size and spacing": (
        ["planning.size=[96, 96]", "planning.spacing=[null, 2]"],
        r"planning.spacing=\[null, 2\] and planning.size=\[96, 96\] both fix axis 1; set one of them to null",
    ),
    "lengths": (
        ["planning.size=[96, 96]", "planning.crop=[64, 64, 64]"],
        r"planning.size=\[96, 96\] and planning.crop=\[64, 64, 64\] are of different numbers of axes",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=list(WRONG))
def test_what_contradicts_itself_costs_no_reading_of_data(changes, message):
    with pytest.raises(UsageError, match=message) as refused:
        check_words(choose(model="unet", recipe=None, set=changes))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["planning.size=[64, 64, 64]"], r"planning.size=\[64, 64, 64\] does not fit 2D images; give 2 numbers"),
        (["planning.crop=[64]"], r"planning.crop=\[64\] does not fit 2D images"),
        (["planning.spacing=[1, 1, null]"], r"planning.spacing=\[1, 1, null\] does not fit 2D images; give 2 lengths"),
        (["planning.spacing=[1, -2]"], r"give 2 lengths above 0, or null"),
        (["planning.size=[8, 64]"], r"planning.size=\[8, 64\] is smaller than what the 5 levels of zhou/unet divide"),
        (["planning.crop=[64, 12]"], r"planning.crop=\[64, 12\] is smaller than what the 5 levels of zhou/unet divide"),
        (
            ["planning.size=[64, 64]", "planning.patch=[96, 96]"],
            r"planning.patch=\[96, 96\] is larger than planning.size=\[64, 64\].*at most 64 x 64",
        ),
        (["planning.crop=[64, null]", "planning.patch=[65, 96]"], r"is larger than planning.crop=\[64, null\]"),
    ],
)
def test_what_does_not_fit_the_data_or_the_network_is_refused(changes, message):
    with pytest.raises(UsageError, match=message) as refused:
        planned(data(), *changes, model="zhou/unet")
    assert len(str(refused.value).splitlines()) == 1


def test_a_network_of_free_depth_takes_fewer_levels_for_a_small_size():
    assert planned(data(), "planning.size=[8, 8]").levels == 2


ALL = (
    "planning.size=[96, null]",
    "planning.spacing=[null, 2]",
    "planning.crop=[64, 80]",
    "planning.window=[0, 200]",
)


def test_a_plan_holds_all_of_it_in_a_file(tmp_path):
    told = data((192, 192))
    made = all_planned(told, *ALL)
    file = tmp_path / "plan.yaml"
    recipe = recommended("unet")
    for change in ALL:
        recipe = set_value(recipe, change)
    file.write_text(to_yaml(made.plan.replaced(recipe=recipe)))
    plan = from_yaml(Plan, file)
    assert plan == made.plan.replaced(recipe=recipe)
    assert recipe_of(plan) == recipe
    check_plan(plan, recipe, "plan.yaml", found=told)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("planning.size=[64, null]", r"planning.size is \[64, null\], in the plan it is \[96, null\]"),
        ("planning.spacing=[null, 3]", r"planning.spacing is \[null, 3.0\], in the plan it is \[null, 2.0\]"),
        ("planning.crop=[64, 64]", r"planning.crop is \[64, 64\], in the plan it is \[64, 80\]"),
        ("planning.window=[0, 100]", r"planning.window is \[0.0, 100.0\], in the plan it is \[0.0, 200.0\]"),
        ("planning.cap=95", "planning.cap is 95.0, in the plan it is null"),
    ],
)
def test_a_recipe_that_fixes_it_otherwise_does_not_fit_a_plan(change, message):
    plan = planned(data((192, 192)), *ALL)
    with pytest.raises(UsageError, match=message):
        check_plan(plan, set_value(recommended("unet"), change), "plan.yaml", found=plan.fingerprint)


def test_what_a_person_changed_in_a_plan_holds():
    plan = planned(data((192, 192)), *ALL)
    recipe = recommended("unet")
    for change in ALL:
        recipe = set_value(recipe, change)
    changed = plan.replaced(
        crop=(48, 48), recipe=recipe, normalization=[one.replaced(clip=(1, 9)) for one in plan.normalization]
    )
    assert recipe_of(changed).planning.crop == (48, 48)
    assert recipe_of(changed).planning.window == (1, 9)
    assert recipe_of(changed).planning.spacing == (None, 2.0)
