import json

import pytest

from tests import plans
from ulna.errors import UsageError
from ulna.recipe import (
    Architecture,
    Fingerprint,
    Labels,
    Plan,
    Recipe,
    Slot,
    Split,
    from_yaml,
    parse,
    set_value,
    to_yaml,
)
from ulna.system.reading import read_yaml


def test_yaml_round_trip(tmp_path):
    recipe = set_value(Recipe(), "architecture.conv.double_conv.norm=instance")
    recipe = recipe.replaced(architecture=recipe.architecture.replaced(strides=(2, (1, 2, 2))))
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(recipe))
    assert from_yaml(Recipe, path) == recipe


def test_a_bare_name_replaces_the_list_and_text_becomes_a_slot():
    a = parse(Architecture, {"conv": "residual", "skip": ["concat"]})
    assert a.conv == (Slot(kind="residual"),)
    assert a.skip == (Slot(kind="concat"),)


def test_a_kind_addresses_every_entry_of_that_kind():
    both = parse(Architecture, {"conv": [{"kind": "double_conv", "levels": [0]}, "double_conv"]})
    recipe = set_value(Recipe(architecture=both), "architecture.conv.double_conv.dropout=0.5")
    assert [slot.options for slot in recipe.architecture.conv] == [{"dropout": 0.5}] * 2
    assert recipe.architecture.conv[0].levels == (0,)


@pytest.mark.parametrize(
    ("assignment", "get", "value"),
    [
        ("optimizer.lr=3e-4", lambda r: r.optimizer.lr, 3e-4),
        ("training.max_hours=0.5", lambda r: r.training.max_hours, 0.5),
        ("planning.patch=[64, 64]", lambda r: r.planning.patch, (64, 64)),
        ("loss.options.smooth=0.1", lambda r: r.loss.options, {"smooth": 0.1}),
        ("architecture.skip=concat", lambda r: r.architecture.skip, (Slot(kind="concat"),)),
        ("training.clip_gradients=null", lambda r: r.training.clip_gradients, None),
    ],
)
def test_set_changes_one_field(assignment, get, value):
    assert get(set_value(Recipe(), assignment)) == value


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optimzer.lr=1", "did you mean 'optimizer'"),
        ("optimizer.lrr=1", "did you mean 'lr'"),
        ("optimizer.lr=-1", "greater than 0, got -1"),
        ("optimizer.lr", "expected KEY=VALUE"),
        ("optimizer.lr.x=1", "nothing below it"),
        ("architecture.conv.doubl_conv.norm=1", "did you mean 'double_conv'"),
        ("planning.patch=[a]", "valid integer"),
        ("optimizer.lr=[", "not a YAML value"),
    ],
)
def test_a_wrong_assignment_says_what_is_wrong(assignment, message):
    with pytest.raises(UsageError, match=message):
        set_value(Recipe(), assignment)


def test_a_misspelt_key_in_a_file_names_the_file_and_the_nearest(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("architecture: {topolgy: unet}\noptimizer: {lr: fast}\n")
    with pytest.raises(UsageError, match="did you mean 'topology'") as error:
        from_yaml(Recipe, path)
    assert "r.yaml" in str(error.value)
    assert "optimizer.lr" in str(error.value)  # all faults at once


@pytest.mark.parametrize("text", ["a: [", "\x00"])
def test_a_broken_file_is_named(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"r\.yaml: not readable as YAML"):
        from_yaml(Recipe, path)


def test_labels_tell_the_maps_of_the_network():
    assert Labels().outputs == 1
    assert Labels(names=("background", "a", "b")).outputs == 3
    assert Labels(names=("a", "b"), multilabel=True).outputs == 2
    assert Labels(names=("a", "b"), multilabel=True).foreground == ("a", "b")


def test_a_case_in_two_sets_is_refused():
    with pytest.raises(ValueError, match="1 case both in train and in val"):
        Split(train=("a", "b"), val=("b",))


def test_recipes_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().optimizer.lr = 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing": (1.0, float("nan"))}, "finite number"),
        ({"spacing": (1.0, 0.0)}, "greater than"),
        ({"spacing": None}, "spacing is missing"),
        ({"spacing": (1.0, 1.0, 1.0)}, "spacing has 3 entries, the images have 2 axes"),
        ({"patch": (16,)}, "patch has 1 entry"),
        ({"patch": (16, 0)}, "greater than or equal to 1"),
        ({"patch": (16, 10**12)}, "less than or equal to"),
        ({"strides": ((2, 2), (2,))}, r"strides\[1\] has 1 entry"),
        ({"strides": ((2, 0),)}, "greater than or equal to 1"),
        ({"batch": 0}, "greater than or equal to 1"),
        ({"in_channels": 0}, "greater than or equal to 1"),
        ({"in_channels": 2}, "channel_names has 1 entry, the images have 2 channels; normalization has 1 entry"),
        ({"normalization": ({"kind": "ct", "std": float("inf")},)}, "finite number"),
        ({"normalization": ({"kind": "ct", "std": -1.0},)}, "greater than or equal to 0"),
        ({"normalization": ({"kind": "rescale", "low": 2.0, "high": 1.0},)}, "low 2 lies above high 1"),
        ({"whitening": {"mean": (0.0,), "matrix": ((float("nan"),),)}}, "finite number"),
        ({"whitening": {"mean": (0.0, 0.0), "matrix": ((1.0,),)}}, r"whitening\.mean has 2 entries"),
        ({"whitening": {"mean": (0.0,), "matrix": ((1.0, 2.0),)}}, r"a row of whitening\.matrix has 2 entries"),
        ({"mirror_axes": (0, 0)}, "each once"),
        ({"mirror_axes": (2,)}, "below 2"),
        ({"turn_axes": (1, 1)}, "each once"),
        ({"labels": {"names": ("background",)}}, "background only"),
        (
            {"fingerprint": {"spacing": dict.fromkeys(("min", "median", "max"), (1.0,))}},
            "spacing.min has 1 entry",
        ),
        ({"fingerprint": {"spacing": {"min": [1.0, 1.0]}}}, r"fingerprint\.spacing\.median: field required"),
        ({"fingerprint": {"spacing": {"min": [1.0, float("nan")]}}}, r"fingerprint\.spacing\.min\.1"),
        ({"fingerprint": {"size": 3}}, r"fingerprint\.size: .*, got 3"),
        ({"fingerprint": {"worlds": [0, 7]}}, r"fingerprint\.worlds\.1: .*less than or equal to 2, got 7"),
        ({"fingerprint": {"sizes": 3}}, r"fingerprint\.sizes: not a field; did you mean 'size'"),
        ({"fingerprint": plans.fingerprint((1.0, 1.0, 1.0))}, "fingerprint is of 3D images, the plan of 2D ones"),
    ],
)
def test_a_plan_with_numbers_that_mean_nothing_is_refused(changes, message):
    fields = plans.make().model_dump()
    if "fingerprint" in changes:
        changes = {"fingerprint": {**fields["fingerprint"], **changes["fingerprint"]}}
    with pytest.raises(UsageError, match=message):
        parse(Plan, {**fields, **changes}, source="plan.yaml")


# as the first runs of format 1 and the last ones stored it
FORMAT_1 = """
format: 1
spatial_dims: 2
in_channels: 1
channel_names: [grey]
labels: {names: [background, foreground], multilabel: false}
spacing: null
unit: px
normalization: [{kind: zscore, low: 0.0, high: 1.0, mean: 0.0, std: 1.0}]
patch: [32, 48]
batch: 2
strides: [[2, 2]]
whole_image_limit: 1048576
mirror_axes: [0, 1]
turn_axes: null
reasons: {}
fingerprint:
  cases: 5
  spatial_dims: 2
  channels: 1
  channel_names: [grey]
  dtypes: [uint8]
  size: {min: [32, 40], median: [32.0, 40.0], max: [32, 40]}
  spacing: {min: [1.0, 1.0], median: [1.0, 1.0], max: [1.0, 1.0]}
  unit: px
  classes: [background, foreground]
"""
FIRST = "  foreground_intensity: {mean: [3.0]}\n  lowest: [0.0]\n"
LAST = "  digest: 0f\n  left_right_axis: null\n  intensity: [{min: 0.0, max: 255.0}]\n  foreground: []\n"


@pytest.mark.parametrize("more", ["", FIRST, LAST, "  world_axes: null\n"])
def test_plans_of_format_1_are_read(tmp_path, more):
    (tmp_path / "plan.yaml").write_text(FORMAT_1 + more)
    plan = from_yaml(Plan, tmp_path / "plan.yaml")
    assert plan.fingerprint.size.median == (32.0, 40.0)
    assert plan.fingerprint.digest == ("0f" if more is LAST else None)
    assert (plan.fingerprint.worlds, plan.fingerprint.orientation) == (None, None)


def test_a_fingerprint_is_stored_as_it_was(tmp_path):
    """Whole numbers stay whole, and no field comes or goes."""
    fields = plans.fingerprint((1.0, 1.0), digest="0f", orientation="RAS", orientations={"RA": 5}, worlds=[0, 1],
                               world_axes=[0, 1, None], intensity=[{"min": 0, "max": 255.0}],
                               foreground=[{"low": 1.0, "high": 9, "mean": 4.5, "std": 0}],
                               extent={"median": [40, 40.5], "min": [40, 40], "max": [41, 41]}, values=[], tilt=None,
                               modalities={"MR": 5}, body_parts={}, voxels=[])  # fmt: skip
    plan = plans.make(fingerprint=fields, spacing=(1.0, 1.0), orientation="RAS")
    (tmp_path / "plan.yaml").write_text(to_yaml(plan))
    stored = read_yaml(tmp_path / "plan.yaml")["fingerprint"]
    assert stored == json.loads(json.dumps(fields))
    assert isinstance(stored["intensity"][0]["min"], int) and isinstance(stored["intensity"][0]["max"], float)
    assert list(stored) == list(Fingerprint.model_fields)
    assert from_yaml(Plan, tmp_path / "plan.yaml") == plan


@pytest.mark.parametrize(
    "assignment",
    [
        "optimizer.lr=.nan",
        "training.max_hours=.inf",
        "architecture.levels=1000000",
        "architecture.channels=[4, 100000000]",
        "architecture.conv.double_conv.dropout=.nan",
        "architecture.conv.double_conv.convs=1000000",
        "architecture.strides=[[2, 0]]",
        "loss.options.smooth=.inf",
    ],
)
def test_numbers_out_of_all_bounds_are_refused(assignment):
    with pytest.raises(UsageError, match=r"finite|at most|less than|greater than"):
        set_value(Recipe(), assignment)
