"""The recipes of the papers' protocols: each loads, builds its network and says what it reproduces."""

from pathlib import Path

import pytest

from ulna.networks.build import validate
from ulna.networks.catalog import NAMED
from ulna.training.train import choose

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_says_what_it_reproduces(path):
    recipe = choose(model=None, recipe=path)
    assert recipe.model in NAMED
    entry = NAMED[recipe.model]
    validate(recipe.architecture, in_channels=entry.input[0], classes=entry.maps, spatial_dims=len(entry.input) - 1)
    head = path.read_text().split("\n\n")[0].partition("\nmodel:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert "Published" in head
    assert "ulna train" in head


@pytest.mark.parametrize("task", ["nuclei", "polyps"])
def test_the_sdu_net_recipes_hold_table_5(task):
    path = Path(__file__).parents[1] / "recipes" / f"carvalho_{task}.yaml"
    for network in ("unet", "unetpp", "sdu_net", "sdnu_net"):
        recipe = choose(model=f"carvalho/{network}_{task}", recipe=path)
        assert recipe.optimizer.lr == {"nuclei": 1e-3, "polyps": 1e-4}[task]
        assert recipe.planning.batch * recipe.training.accumulate == 20 * 4
        assert recipe.architecture == NAMED[f"carvalho/{network}_{task}"].architecture
