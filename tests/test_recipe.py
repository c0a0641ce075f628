import pytest

from tests import plans
from ulna.errors import UsageError
from ulna.recipe import Architecture, Labels, Plan, Recipe, Slot, Split, from_yaml, parse, set_value, to_yaml


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
    with pytest.raises(ValueError, match="1 cases stand in train and in val"):
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
        ({"patch": (16,)}, "patch has 1 entries"),
        ({"patch": (16, 0)}, "greater than or equal to 1"),
        ({"patch": (16, 10**12)}, "less than or equal to"),
        ({"strides": ((2, 2), (2,))}, r"strides\[1\] has 1 entries"),
        ({"strides": ((2, 0),)}, "greater than or equal to 1"),
        ({"batch": 0}, "greater than or equal to 1"),
        ({"in_channels": 0}, "greater than or equal to 1"),
        ({"in_channels": 2}, "channel_names has 1 entries, the images have 2 channels; normalization has 1 entries"),
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
            {"fingerprint": {"spacing": {"min": [1.0]}}},
            r"fingerprint\.spacing\.min is \[1\.0\], and no length for each of 2",
        ),
        ({"fingerprint": {"size": 3}}, r"fingerprint\.size is 3"),
        ({"fingerprint": {"worlds": [0, 7]}}, r"fingerprint\.worlds"),
    ],
)
def test_a_plan_with_numbers_that_mean_nothing_is_refused(changes, message):
    fields = plans.make().model_dump()
    with pytest.raises(UsageError, match=message):
        parse(Plan, {**fields, **changes}, source="plan.yaml")


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
