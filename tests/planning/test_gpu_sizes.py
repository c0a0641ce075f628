"""Plans for a GPU, named and not there: larger with its memory, never beyond it, and never beyond what a network can use."""

import math

import pytest

from tests.planning.test_plan import all_planned, data, planned
from ulna.planning.gpu_sizes import LARGEST_BATCH, LEAST_BATCH, LEAST_SEEN, SEEN, _first_that_fits
from ulna.planning.memory import GPU_SHARE
from ulna.system.device import Device

SMALL, LARGE = (Device("cuda", gb * 1e9) for gb in (8, 80))
MM = {"unit": "mm"}
IMAGES = {
    "small pictures": data((96, 96)),
    "large pictures": data((1100, 1300), cases=1000),
    "flat pictures": data((20, 300)),
    "small volumes": data((35, 51, 35), (1.0, 1.0, 1.0), **MM),
    "large volumes": data((300, 280, 260), (1.0, 1.0, 1.0), **MM),
    "thick slices": data((512, 512, 90), (0.8, 0.8, 5.0), **MM),
}


@pytest.mark.share(4)
@pytest.mark.parametrize(
    ("model", "images"),
    [("implicit_unet", "thick slices"), *(("unet", images) for images in IMAGES), ("nnunet", "large volumes")],
)
def test_sizes_grow_with_the_memory_and_stay_within_it(model, images):
    made = [all_planned(IMAGES[images], model=model, device=Device("cuda", gb * 1e9)) for gb in (5, 12, 80)]
    voxels = [math.prod(one.plan.patch) for one in made]
    assert voxels == sorted(voxels)
    assert [v * one.plan.batch for v, one in zip(voxels, made, strict=True)] == sorted(
        v * one.plan.batch for v, one in zip(voxels, made, strict=True)
    )
    for one in made:
        plan = one.plan
        steps = [math.prod(step[axis] for step in plan.strides) for axis in range(plan.spatial_dims)]
        assert all(side % step == 0 for side, step in zip(plan.patch, steps, strict=True))
        assert all(
            side < size + step for side, size, step in zip(plan.patch, plan.fingerprint.size.median, steps, strict=True)
        )
        assert LEAST_BATCH <= plan.batch <= LARGEST_BATCH[plan.spatial_dims]
        assert one.memory.on_the_gpu <= GPU_SHARE * one.device.memory_bytes
        one.memory.check("this", "do that", one.device)


@pytest.mark.slow
def test_volumes_go_by_patches_as_large_as_the_deepest_map_can_use_where_there_is_memory():
    volumes = IMAGES["large volumes"]
    few, many = planned(volumes, device=LARGE), planned(volumes, model="nnunet", device=LARGE)
    assert few.patch == (128, 128, 128) and math.prod(few.patch) == LEAST_SEEN[3]  # five levels
    assert many.patch == (SEEN * 32,) * 3  # six
    assert "all that the deepest map can use" in many.reasons["patch"]
    small = planned(volumes, model="nnunet", device=SMALL)
    assert math.prod(small.patch) < math.prod(many.patch) and small.batch == LEAST_BATCH
    assert "6.8 GB of the GPU" in small.reasons["patch"]


def test_patches_of_thick_slices_stay_close_to_cubes_in_space():
    for device in (SMALL, LARGE):
        plan = planned(IMAGES["thick slices"], device=device)
        extent = [n * s for n, s in zip(plan.patch, (0.8, 0.8, 5.0), strict=True)]
        assert max(extent) / min(extent) < 1.6


def test_sizes_depend_on_the_kind_of_device_and_its_memory_alone(monkeypatch):
    told = planned(IMAGES["thick slices"], device=LARGE)
    monkeypatch.setattr("ulna.planning.memory.memory", lambda: 10**8)  # what else the machine has
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert planned(IMAGES["thick slices"], device=Device("cuda", 80e9)) == told


@pytest.mark.slow
def test_what_is_allowed_or_fixed_bounds_a_plan_for_a_gpu():
    volumes = IMAGES["large volumes"]
    allowed = all_planned(volumes, "planning.memory_gb=5", device=LARGE)
    assert allowed.memory.on_the_gpu <= 5e9 and allowed.plan.patch < planned(volumes, device=LARGE).patch
    single = planned(volumes, "planning.batch=1", device=SMALL)
    assert single.batch == 1 and math.prod(single.patch) > math.prod(planned(volumes, device=SMALL).patch)
    fixed = planned(volumes, "planning.patch=[64, 64, 64]", device=LARGE)
    assert fixed.patch == (64, 64, 64) and fixed.batch == LARGEST_BATCH[3]


@pytest.mark.slow
def test_presets_of_the_residual_encoder_are_one_network_planned_for_their_memory():
    volumes = IMAGES["large volumes"]
    made = {
        size: all_planned(volumes, model=f"isensee/nnunet_resenc_{size}", device=LARGE) for size in ("m", "l", "xl")
    }
    for gigabytes, one in zip((8, 24, 40), made.values(), strict=True):
        assert one.memory.on_the_gpu <= gigabytes * 1e9
    voxels = [math.prod(one.plan.patch) for one in made.values()]
    assert voxels == sorted(set(voxels))
    assert made["l"].plan == all_planned(volumes, model="nnunet_resenc", device=LARGE).plan
    # a smaller GPU bounds them all
    small = [
        planned(volumes, model=f"isensee/nnunet_resenc_{size}", device=Device("cuda", 7e9)) for size in ("m", "xl")
    ]
    assert small[0] == small[1]


def test_memory_of_a_gpu_changes_no_plan_for_a_cpu():
    kept = Device("cpu", 1e9)
    for images in ("large pictures", "small volumes"):
        stated = planned(IMAGES[images], "planning.gpu_memory_gb=1", device=kept)
        assert stated == planned(IMAGES[images], device=kept)


def test_a_gpu_that_is_too_small_gets_the_least_and_is_refused_where_it_is_used():
    made = all_planned(IMAGES["large volumes"], model="unetpp", device=Device("cuda", 1e9))
    assert math.prod(made.plan.patch) <= 48**3 and made.plan.batch == LEAST_BATCH
    with pytest.raises(ValueError, match=r"of GPU memory .*the GPU has 1\.0 GB; do that"):
        made.memory.check("this", "do that", made.device)


@pytest.mark.slow
def test_maps_in_float32_leave_less_room_than_in_bf16():
    volumes = IMAGES["large volumes"]
    old = planned(volumes, device=Device("cuda", 8e9, bf16=False))
    assert math.prod(old.patch) < 0.7 * math.prod(planned(volumes, device=SMALL).patch)
    assert old == planned(volumes, "training.precision=fp32", device=SMALL)


def test_depth_that_an_architecture_fixes_is_kept_however_little_memory_there_is():
    plan = planned(data((12, 128)), model="zhou/unet", device=Device("cuda", 1e9))
    assert plan.levels == 5 and plan.patch[0] == 16


def test_patches_that_are_too_large_by_a_larger_one_are_not_counted():
    asked = []

    def taken(number):
        asked.append(number)
        return 10 + voxels[number]  # what does not shrink with the patch makes small ones no cheaper a voxel

    voxels = list(range(100, 0, -1))
    assert voxels[_first_that_fits(voxels, 60, taken)] == 50
    assert len(set(asked)) < 10
    assert _first_that_fits(voxels, 200, taken) == 0
    assert _first_that_fits(voxels, 1, taken) == 99  # the smallest, though it does not fit
