"""Fields of a recipe that had another name: both work, in files, on the command line and in stored runs."""

import logging

import pytest

from ulna.errors import UsageError
from ulna.planning.choosing import recommended
from ulna.recipe import Recipe, Slot, former, from_yaml, parse, set_value, stated
from ulna.study.variants import make_variants

OLD = {
    "training": {"recompute": True},
    "inference": {"spacing": 2},
    "points": {"count": 0.25},
    "architecture": {"topology": "encoder", "head": {"kind": "points", "options": {"reinject": 4}}},
}


@pytest.fixture(autouse=True)
def nothing_said_yet():
    former._said_once.cache_clear()


def check(recipe: Recipe) -> None:
    assert recipe.training.activation_checkpointing is True
    assert recipe.inference.mesh_step == 2
    assert (recipe.points.count, recipe.points.fraction) == (None, 0.25)
    assert recipe.architecture.head.options == {"skip_layer": 4}


def test_a_stored_recipe_is_read_without_a_word(caplog):
    check(parse(Recipe, OLD))
    assert not caplog.records


def test_what_a_person_wrote_is_noted_once(tmp_path, caplog):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "inference: {spacing: 2}\ntraining: {recompute: true}\npoints: {count: 0.25}\n"
        "architecture: {strides: [2, [1, 2]], conv: [double_conv], head: {kind: points, options: {reinject: 4}}}\n"
    )
    with caplog.at_level(logging.WARNING, "ulna"):
        fields = stated(path)
        stated(path)
    assert fields == {
        "inference": {"mesh_step": 2},
        "training": {"activation_checkpointing": True},
        "points": {"count": None, "fraction": 0.25},
        "architecture": {
            "strides": [2, [1, 2]],
            "conv": ["double_conv"],
            "head": {"kind": "points", "options": {"skip_layer": 4}},
        },
    }
    assert [record.getMessage() for record in caplog.records] == [
        "note: training.recompute is called training.activation_checkpointing now; the former name works in this version",
        "note: inference.spacing is called inference.mesh_step now; the former name works in this version",
        "note: points.count below 1 is called points.fraction now; the former name works in this version",
        "note: architecture.head.options.reinject is called architecture.head.options.skip_layer now; "
        "the former name works in this version",
    ]


def test_set_takes_both_names(caplog):
    recipe = Recipe(architecture=recommended("implicit_unet").architecture)
    for change in (
        "training.recompute=true",
        "inference.spacing=2",
        "points.count=0.25",
        "architecture.head.points.reinject=4",
    ):
        recipe = set_value(recipe, change)
    assert recipe.architecture.head.options.pop("width") == 256
    check(recipe)
    assert "architecture.head.points.skip_layer now" in caplog.text


def test_vary_takes_both_names():
    rows = make_variants(["implicit_unet"], {}, ["points.count=0.25,0.5"], [])
    assert [row.recipe.points.fraction for row in rows] == [0.25, 0.5]


@pytest.mark.parametrize(
    "values",
    [
        {"inference": {"spacing": 2, "mesh_step": 4}},
        {"points": {"count": 0.5, "fraction": 0.5}},
        {"points": {"count": 5, "fraction": 0.5}},
    ],
)
def test_both_at_once_are_refused(values):
    with pytest.raises(UsageError, match="give one of them"):
        parse(Recipe, values)


def test_a_number_of_points_takes_the_place_of_a_fraction(tmp_path):
    own = recommended("implicit_unet")
    assert own.points.fraction == 1 / 32
    many = set_value(own, "points.count=500")
    assert (many.points.count, many.points.fraction) == (500, None)
    assert set_value(many, "points.fraction=0.5").points.count is None
    path = tmp_path / "recipe.yaml"
    path.write_text("points: {count: 500}\n")
    from ulna.planning.choosing import choose

    assert choose(model="implicit_unet", recipe=path).points == many.points


def test_a_file_with_both_names_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("inference: {spacing: 2, mesh_step: 4}\n")
    for read in (stated, lambda path: from_yaml(Recipe, path)):
        with pytest.raises(UsageError, match=r"mine\.yaml: .*inference\.spacing is the former name"):
            read(path)


def test_options_of_any_block_take_the_new_name():
    assert Slot(kind="points", options={"reinject": 2}).options == {"skip_layer": 2}
