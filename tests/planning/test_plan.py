import math

import pytest

from tests.plans import training_data
from ulna.errors import UsageError
from ulna.networks.build import count_parameters, validate
from ulna.planning.choosing import choose, recommended
from ulna.planning.plan import plan_training
from ulna.recipe import PLAN_FORMAT, Fingerprint, Recipe, set_value, to_yaml
from ulna.system.device import Device
from ulna.system.files import write_text

CPU = Device("cpu")


def data(size=(96, 96), spacing=None, unit="px", *, cases=100, channels=1, names=None, low=None, high=None, **told):
    spacing = spacing or (1.0,) * len(size)
    return Fingerprint(
        cases=cases,
        spatial_dims=len(size),
        channels=channels,
        channel_names=list(names or ["grey"] * channels),
        dtypes=["uint8"],
        size={"min": list(size), "median": list(size), "max": list(size)},
        spacing={"min": list(low or spacing), "median": list(spacing), "max": list(high or spacing)},
        unit=unit,
        foreground=[{"low": -50.0, "high": 200.0, "mean": 90.0, "std": 30.0}] * channels,
        classes=["background", "a"],
        **told,
    )


def all_planned(fingerprint, *changes, model="unet", labels=None, device=None):
    recipe = recommended(model)
    for change in changes:
        recipe = set_value(recipe, change)
    return plan_training(training_data(fingerprint, labels), recipe, device=device)


def planned(fingerprint, *changes, model="unet", labels=None, device=CPU):
    return all_planned(fingerprint, *changes, model=model, labels=labels, device=device).plan


def test_small_images_are_taken_whole_with_five_levels():
    plan = planned(data((96, 96)))
    assert plan.patch == (96, 96)
    assert plan.levels == 5
    assert plan.spacing == (1.0, 1.0)  # pixels


def test_patch_sides_are_multiples_of_the_strides():
    for size in ((97, 110), (35, 51, 35), (520, 700)):
        plan = planned(data(size))
        for axis, side in enumerate(plan.patch):
            assert side % math.prod(step[axis] for step in plan.strides) == 0


def test_large_volumes_go_by_patches_close_to_cubes_in_space():
    plan = planned(data((512, 512, 80), (0.8, 0.8, 5.0), "mm"))
    assert math.prod(plan.patch) < 1.3 * 96**3
    extent = [n * s for n, s in zip(plan.patch, (0.8, 0.8, 5.0), strict=True)]
    assert max(extent) / min(extent) < 1.6


def test_depth_leaves_four_voxels_along_every_axis():
    plan = planned(data((35, 51, 35), (1.0, 1.0, 1.0), "mm"))
    assert plan.levels == 4
    assert "fewer than 4" in plan.reasons["levels"]
    assert planned(data((12, 12))).levels == 2


def test_a_coarse_axis_is_pooled_later():
    plan = planned(data((128, 128, 24), (1.0, 1.0, 5.0), "mm"))
    assert plan.strides[0] == (2, 2, 1)
    assert any(step[2] == 2 for step in plan.strides)


def test_paper_rows_keep_their_depth():
    plan = planned(data((35, 51, 35), (1.0,) * 3, "mm"), model="zhou/unet")
    assert plan.levels == 5
    assert "fixed by the architecture" in plan.reasons["levels"]


def test_spacing_is_the_median_where_cases_differ():
    plan = planned(data((40, 40, 40), (1.0, 1.0, 2.0), "mm", low=(0.5, 0.5, 1.0), high=(2.0, 2.0, 3.0)))
    assert plan.spacing == (1.0, 1.0, 2.0)


def test_the_plan_holds_the_spacing_that_all_cases_share():
    """It was forgotten, and images of another spacing were predicted as if they had this one."""
    plan = planned(data((40, 40, 40), (1.0, 1.0, 2.0), "mm"))
    assert plan.spacing == (1.0, 1.0, 2.0)
    assert plan.format == PLAN_FORMAT


def test_ct_is_normalised_by_the_foreground_of_all_cases_and_others_by_themselves():
    ct = planned(data(names=["CT"])).normalization[0]
    assert (ct.kind, ct.low, ct.high, ct.mean, ct.std) == ("ct", -50.0, 200.0, 90.0, 30.0)
    assert planned(data(names=["T1"])).normalization[0].kind == "zscore"


def test_widths_can_be_scaled_to_a_budget():
    changes = ("planning.parameters=300_000", "architecture.levels=3")
    made = all_planned(data((96, 96), channels=4), *changes, model="attention_unet")
    assert made.parameters == pytest.approx(300_000, rel=0.02)
    architecture = made.recipe.architecture
    assert made.plan.reasons["widths"].startswith(", ".join(map(str, architecture.channels)))
    again = validate(architecture, in_channels=4, classes=1, spatial_dims=2)
    assert count_parameters(again) == made.parameters
    assert made.recipe.planning.parameters is None  # the widths say it now


def test_more_levels_than_an_image_has_pixels_for_are_refused():
    with pytest.raises(UsageError, match=r"9 levels divide 96 pixels by 256.* take at most 7 levels"):
        planned(data((96, 128)), "architecture.levels=9")
    assert planned(data((12, 128)), model="zhou/unet").patch == (16, 128)


def test_every_field_can_be_fixed_and_says_so():
    plan = planned(
        data((200, 200)),
        "planning.patch=[64, 48]",
        "planning.batch=3",
        "planning.spacing=[2, 2]",
        "planning.normalization=rescale",
    )
    assert (plan.patch, plan.batch, plan.spacing) == ((64, 48), 3, (2.0, 2.0))
    assert plan.normalization[0].kind == "rescale"
    assert sum("fixed by the recipe" in reason for reason in plan.reasons.values()) == 4


def test_costlier_networks_take_smaller_batches_where_there_is_no_gpu(monkeypatch):
    assert planned(data((96, 96))).batch == 8
    assert planned(data((96, 96)), model="unetpp").batch == 4
    monkeypatch.setattr("ulna.planning.sizes.STEP_GMACS", 1e9)
    assert planned(data((96, 96)), model="unetpp").batch == 8


def test_small_data_sets_take_small_batches():
    assert planned(data((32, 32), cases=12)).batch == 3


def test_less_memory_means_smaller_batches(monkeypatch):
    monkeypatch.setattr("ulna.planning.sizes.STEP_GMACS", 1e9)  # else the work of a step decides
    assert planned(data((256, 256)), "planning.memory_gb=2").batch < planned(data((256, 256))).batch


def test_networks_that_keep_more_maps_take_smaller_patches_and_batches(monkeypatch):
    monkeypatch.setattr("ulna.planning.sizes.STEP_GMACS", 1e9)  # else the work of a step decides
    volumes = data((200, 200, 200), (1.0,) * 3, "mm")
    usual, hungry = planned(volumes), planned(volumes, model="efficient_unet")
    assert usual.patch == (96, 96, 96)
    assert math.prod(hungry.patch) < math.prod(usual.patch) / 2
    assert "values that this network keeps per voxel" in hungry.reasons["batch"]
    images = data((256, 256))
    assert planned(images, model="efficient_unet").batch < planned(images).batch


@pytest.mark.slow
def test_points_leave_room_for_patches_and_batches_that_every_voxel_would_not(monkeypatch):
    monkeypatch.setattr("ulna.planning.sizes.STEP_GMACS", 1e9)  # else the work of a step decides
    volumes = data((200, 200, 200), (1.0,) * 3, "mm")
    few = planned(volumes, model="implicit_unet")
    many = planned(volumes, "points.fraction=0.99", model="implicit_unet")
    assert few.patch == (96, 96, 96)
    assert math.prod(many.patch) < math.prod(few.patch) / 3
    small = data((48, 48, 48), (1.0,) * 3, "mm")  # there, as many points weigh more on a voxel
    batches = [
        planned(small, "planning.memory_gb=3", f"points.count={n}", model="implicit_unet").batch for n in (1e3, 1e5)
    ]
    assert batches[1] < batches[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("planning.patch=[64]", "does not fit 2D"),
        ("planning.spacing=[1, 0]", "does not fit 2D"),
        ("planning.patch=[0, 4]", "greater than or equal to 1"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        planned(data(), change)


def test_the_resolved_architecture_can_be_built_as_it_is():
    made = all_planned(data((35, 51, 35), (1.0,) * 3, "mm"), model="nnunet")
    assert made.recipe.architecture.channels == (32, 64, 128, 256)
    assert made.recipe.architecture.strides == made.plan.strides
    assert made.network.divisor == tuple(math.prod(step[axis] for step in made.plan.strides) for axis in range(3))
    assert all(parameter.is_meta for parameter in made.network.parameters())


def test_the_recommended_recipe_of_a_model():
    assert recommended("nnunet").loss.heads == "halving"
    for name in ("zhou/unet", "zhou/wide_unet", "zhou/unetpp", "zhou/unetpp_ds"):  # Table 3: all trained alike
        recipe = recommended(name)
        assert (recipe.loss.kind, recipe.optimizer.kind, recipe.optimizer.lr) == ("unetpp", "adam", 3e-4)
    assert recommended("unet") == Recipe(model="unet", architecture=recommended("unet").architecture)


def test_another_head_drops_what_the_model_recommends_for_its_own(tmp_path):
    points = "architecture.head=points"
    assert choose(model="omega_net", recipe=None).loss.heads == {"aux0": 1, "main0": 10}
    changed = choose(model="omega_net", recipe=None, set=(points,))
    assert (changed.loss.heads, changed.loss.options) == ("equal", {"reduction": "batch"})
    assert choose(model="nnunet", recipe=None, set=(points,)).loss.heads == "equal"
    stated = choose(model="unetpp", recipe=None, set=(points, "loss.options={weight: 2}"))
    assert stated.loss.options == {"weight": 2}
    assert choose(model="unetpp", recipe=None, set=("architecture.head=dense",)).loss.options == {}
    assert choose(model="unetpp", recipe=None, set=(points, "loss.options={}")).loss.options == {}
    other = choose(model="omega_net", recipe=None, set=(points, "loss.kind=cross_entropy"))
    assert (other.loss.heads, other.loss.options) == ("equal", {})
    write_text(tmp_path / "file.yaml", to_yaml(other.replaced(loss=other.loss.replaced(kind="dice"))))
    assert choose(model=None, recipe=tmp_path / "file.yaml").loss.options == {}  # as a study hands it to its trainings
