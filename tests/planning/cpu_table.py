"""A table of plans for a CPU, from before there were plans for a GPU; `python -m tests.planning.cpu_table` writes it."""

import json
from pathlib import Path

from tests.plans import training_data
from ulna.planning.choosing import recommended
from ulna.planning.plan import plan_training
from ulna.recipe import Fingerprint, set_value

STORED = Path(__file__).with_name("cpu_plans.json")
MODELS = (
    "unet", "unetpp", "nnunet", "attention_unet", "implicit_unet", "efficient_unet", "zhou/unet", "sdu_net", "omega_net",
)  # fmt: skip
# size, spacing, training cases
IMAGES = (
    ((96, 96), (1, 1), 498), ((12, 128), (1, 1), 12), ((64, 48), (1, 1), 6), ((256, 256), (1, 1), 100),
    ((520, 700), (0.5, 0.5), 60), ((1024, 1280), (1, 1), 1000),
    ((35, 51, 35), (1, 1, 1), 208), ((48, 48, 48), (1, 1, 1), 9), ((128, 128, 24), (1, 1, 5), 40),
    ((200, 200, 200), (1, 1, 1), 300), ((512, 512, 80), (0.8, 0.8, 5), 50), ((160, 192, 160), (1, 1, 1), 24),
)  # fmt: skip
CHANGES = ("planning.memory_gb=2", "planning.batch=3", "planning.patch", "architecture.levels=3", "points.count=20000")
CASES = [
    *((model, image, "") for model in MODELS for image in IMAGES),
    *(("unet", image, change) for image in (IMAGES[3], IMAGES[9]) for change in CHANGES),
]


def name_of(model, image, change):
    size, spacing, cases = image
    return " ".join(
        [model, "x".join(map(str, size)), "x".join(map(str, spacing)), str(cases), *([change] if change else [])]
    )


def plan_of(model, image, change, **where):
    """The plan of one row."""
    size, spacing, cases = image
    recipe = recommended(model)
    if change:
        recipe = set_value(recipe, change if "=" in change else f"{change}={[64] * len(size)}")
    same = {"min": list(size), "median": list(size), "max": list(size)}
    apart = {name: list(map(float, spacing)) for name in ("min", "median", "max")}
    found = Fingerprint(
        cases=cases, spatial_dims=len(size), channels=1, channel_names=["grey"], dtypes=["uint8"], size=same, spacing=apart,
        unit="px" if len(size) == 2 else "mm", foreground=[], classes=["background", "a"],
    )  # fmt: skip
    return plan_training(training_data(found), recipe, **where)


def told(planned):
    """What the table keeps of a plan: sizes and why."""
    plan = planned.plan
    strides = ["".join(map(str, step)) for step in plan.strides]
    reasons = [plan.reasons[name] for name in ("patch", "levels", "batch")]
    return [list(plan.patch), " ".join(strides), plan.batch, *reasons]


if __name__ == "__main__":
    rows = [json.dumps([name_of(*case), *told(plan_of(*case))]) for case in CASES]
    STORED.write_text("[\n" + ",\n".join(rows) + "\n]\n")
