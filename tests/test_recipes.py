"""The recipes of the papers' protocols: each states what it reproduces, trains as printed, and refuses other data."""

import json
import re

import pytest
import yaml

import ulna
from tests import miniatures
from tests.places import ROOT
from ulna.cli import main as cli
from ulna.errors import UsageError
from ulna.networks.build import validate
from ulna.networks.catalog import NAMED
from ulna.planning.choosing import choose
from ulna.recipe import Recipe, parse, stated
from ulna.recipe.library import FIELDS, FOLDER, names, recipe_file
from ulna.study.variants import make_variants

PUBLISHED = yaml.safe_load((ROOT / "src" / "ulna" / "study" / "published.yaml").read_text(encoding="utf-8"))
# changes of samples that the papers state; all others must be off
AUGMENTED = {
    "laird": {"flip", "shear"},
    "marimont_lung": {"flip", "rotation", "scaling", "elastic", "noise", "contrast"},
    "marimont_pancreas": {"flip", "rotation", "scaling", "elastic", "noise", "contrast"},
}
# in a recipe: its words, and the data of published.yaml
TABLES = {
    "zhou_nuclei": ("Zhou", "nuclei"),
    "zhou_polyp": ("Zhou", "polyp"),
    "zhou_liver": ("Zhou", "liver"),
    "zhou_lung": ("Zhou", "lidc"),
    "carvalho_nuclei": ("Carvalho", "nuclei"),
    "carvalho_polyps": ("Carvalho", "polyp"),
    "carvalho_liver": ("Carvalho", "liver"),
    "wang_kidney": ("Wang", "kidney"),
    "wang_pancreas": ("Wang", "pancreas"),
    "wang_liver": ("Wang", "liver"),
    "marimont_lung": ("Marimont", "lung"),
    "marimont_pancreas": ("Marimont", "pancreas"),
    "laird": ("Laird", "brain"),
}


def test_they_are_those_of_the_papers():
    ablations = {f"carvalho_ablation_{what}" for what in ("axes", "channels", "directions", "scales")}
    assert set(names()) == {*TABLES, *ablations}


@pytest.mark.parametrize("name", names())
def test_a_recipe_loads_and_says_what_it_reproduces(name):
    recipe = choose(model=None, recipe=name)
    entry = NAMED[recipe.model]
    validate(recipe.architecture, in_channels=entry.input[0], classes=entry.maps, spatial_dims=len(entry.input) - 1)
    (packaged,) = ulna.recipes(name)
    assert tuple(packaged.about) == FIELDS
    assert all(packaged.about.values())
    for command in ("train", "compare"):
        if f"ulna {command}" in packaged.text:
            assert f"ulna {command} DATA --recipe {name}" in packaged.text
    assert recipe.requires.data
    assert recipe.requires.spatial_dims
    fixed = recipe.planning.size or recipe.planning.crop or recipe.requires.size
    assert fixed == recipe.planning.patch or name.startswith("marimont")


def tables_of(name):
    """Those of published.yaml that a recipe is for."""
    author, data = TABLES[name]
    return [table for table in PUBLISHED if table["paper"].startswith(author) and data in table["data"]]


@pytest.mark.parametrize("name", TABLES)
def test_it_prints_every_published_figure(name):
    (packaged,) = ulna.recipes(name)
    said = packaged.about["Published"].replace(",", "")
    assert tables_of(name)
    for table in tables_of(name):
        for row in table["rows"].values():
            for figure in row.values():
                number = str(figure).split()[0]
                assert number in said or f"{float(number) / 100:.4f}" in said, (figure, said)


def switched_on(augmentation):
    """The changes of samples that can happen."""
    a = augmentation
    contrast, brightness = (a.intensity if own is None else own for own in (a.contrast, a.brightness))
    moved = {"rotation": a.degrees, "scaling": a.scale, "shear": a.shear, "elastic": a.elastic}
    on = {name for name, strength in moved.items() if a.affine and strength}
    alone = ("flip", "quarter_turn", "gamma", "noise", "blur")
    on |= {name for name in alone if getattr(a, name)}
    return on | {name for name, p in (("contrast", contrast), ("brightness", brightness)) if p}


@pytest.mark.parametrize("name", names())
def test_it_changes_samples_as_the_paper_states_and_in_no_other_way(name):
    assert switched_on(choose(model=None, recipe=name).augmentation) == AUGMENTED.get(name, set())


@pytest.mark.parametrize("name", names())
def test_an_epoch_is_one_pass(name):
    recipe = choose(model=None, recipe=name)
    assert recipe.training.samples_of_epoch(1000, 2) == 1000
    assert recipe.training.samples_of_epoch(51, 6) == 51  # 9 steps of Task06, not 20


@pytest.mark.parametrize("name", names())
def test_every_network_of_its_table_is_named_and_trains_alike(name):
    recipe = parse(Recipe, stated(name))
    variants = make_variants(list(recipe.study.models), stated(name), recipe.study.vary, [])
    assert len(variants) >= 2
    if name in TABLES:
        rows = {
            r
            for t in PUBLISHED
            if t["paper"].startswith(TABLES[name][0]) and TABLES[name][1] in t["data"]
            for r in t["rows"]
        }
        assert {row for row in rows if "=" not in row} <= {v.name for v in variants}
    assert all(v.recipe.optimizer == variants[0].recipe.optimizer for v in variants)


@pytest.mark.parametrize("row", ["zhou/unet", "zhou/wide_unet", "zhou/unetpp", "zhou/unetpp_ds"])
def test_the_rows_of_unetpp_are_trained_alike(row):
    recipe = choose(model=row, recipe="zhou_nuclei")
    assert (recipe.loss.kind, recipe.optimizer.kind, recipe.optimizer.lr) == ("unetpp", "adam", 3e-4)
    assert recipe.loss.heads == "equal"


@pytest.mark.parametrize("task", ["nuclei", "polyps", "liver"])
def test_the_sdu_net_recipes_hold_table_5(task):
    for network in ("unet", "unetpp", "sdu_net", "sdnu_net"):
        recipe = choose(model=f"carvalho/{network}_{task}", recipe=f"carvalho_{task}")
        assert recipe.optimizer.lr == {"nuclei": 1e-3, "polyps": 1e-4, "liver": 1e-4}[task]
        assert recipe.planning.batch == {"nuclei": 20, "polyps": 20, "liver": 16}[task]
        assert recipe.training.accumulate == 4
        assert recipe.architecture == NAMED[f"carvalho/{network}_{task}"].architecture
        assert recipe.study.seeds == 5


@pytest.mark.parametrize("name", [name for name in NAMED if name.startswith("laird/")])
def test_the_modular_protocol_is_that_of_the_paper_for_every_row(name):
    recipe = choose(model=name, recipe="laird")
    assert recipe.architecture == NAMED[name].architecture
    assert (recipe.optimizer.kind, recipe.optimizer.lr, recipe.planning.batch) == ("adam", 1e-4, 40)
    assert (recipe.training.epochs, recipe.loss.kind, recipe.planning.patch) == (20, "dice", (144, 144))
    assert recipe.augmentation.shear == 2


@pytest.mark.parametrize("task", ["kidney", "pancreas", "liver"])
@pytest.mark.parametrize("network", ["fcn", "unet", "unetpp", "attention_unet", "omega_net", "omega_net_mda_star"])
def test_the_omega_net_recipes_fit_every_row_of_table_1(network, task):
    recipe = choose(model=f"wang/{network}", recipe=f"wang_{task}")
    assert recipe.optimizer.weight_decay == 1.5e-4
    assert recipe.loss.heads == ({"aux0": 1, "main0": 10} if "omega_net" in network else "equal")


@pytest.mark.parametrize("task", ["lung", "pancreas"])
def test_the_implicit_unet_recipes_fit_both_rows_of_table_1(task):
    implicit, unet = (choose(model=f"marimont/{n}", recipe=f"marimont_{task}") for n in ("implicit_unet", "unet"))
    assert implicit.training.epochs == unet.training.epochs == {"lung": 2000, "pancreas": 800}[task]
    assert (implicit.planning.patch, implicit.planning.batch) == ((160, 160, 96), 6)
    assert (implicit.points.count, implicit.points.alpha, implicit.points.sigma) == (30_000, 0.5, 5.0)
    assert (unet.points.count, unet.loss.heads) == (None, "halving")
    for recipe in (implicit, unet):
        assert (recipe.optimizer.kind, recipe.optimizer.weight_decay) == ("adamw", 0.01)
        assert (recipe.training.placement, round(3 * recipe.training.foreground, 3)) == ("centred", 1)
        assert recipe.study.folds == 5


# other data, other recipes -------------------------------------------------------------------------------------------


VOLUMES = {"size": (36, 34, 20), "channels": 1}
OTHER = {  # recipe -> a wrong data set, and what is said of it
    "zhou_nuclei": ({"size": (40, 40), "channels": 3, "classes": 2}, "requires.classes is 1, these data have 2"),
    "zhou_polyp": ({"size": (40, 40), "channels": 1}, "requires.channels is 3, these data have 1"),
    "zhou_liver": ({**VOLUMES, "channels": 2}, "requires.channels is 1, these data have 2"),
    "zhou_lung": (VOLUMES, "requires.size is 64x64x64, these images are 36x34x20"),
    "carvalho_nuclei": ({"size": (40, 40), "channels": 1}, "requires.channels is 3, these data have 1"),
    "carvalho_polyps": ({"size": (40, 40), "channels": 3}, "the split 23/3/3 groups adds up to 29, and there are 8 groups"),
    "carvalho_liver": ({**VOLUMES, "classes": 2}, 'training.test=["volume-?", "volume-1?", "volume-2[0-7]"] names no case'),
    "carvalho_ablation_axes": ({"size": (40, 40), "channels": 3}, "adds up to 29"),
    "carvalho_ablation_channels": ({"size": (40, 40), "channels": 3}, "adds up to 29"),
    "carvalho_ablation_directions": ({"size": (40, 40), "channels": 3}, "adds up to 29"),
    "carvalho_ablation_scales": ({"size": (40, 40), "channels": 3}, "adds up to 29"),
    "laird": ({**VOLUMES, "classes": 3}, "requires.channels is 4, these data have 1"),
    "wang_kidney": (VOLUMES, "the recipe makes 'tumour' of the label values 2, and none of them occurs in 8 cases"),
    "wang_pancreas": ({"size": (40, 40), "channels": 1, "classes": 2}, "these images are 2D and have no slices"),
    "wang_liver": ({**VOLUMES, "classes": 3}, "label values 3 belong to no class (liver (1, 2), tumour (2))"),
    "marimont_lung": ({**VOLUMES, "classes": 2}, "requires.classes is 1, these data have 2"),
    "marimont_pancreas": (VOLUMES, "requires.classes is 2, these data have 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", names())
def test_other_data_are_refused_in_one_sentence(name, tmp_path, capsys):
    made, said = OTHER[name]
    folder = miniatures.arrays(tmp_path / "data", **made)
    for verb, out in (("plan", "plan.yaml"), ("train", "run"), ("compare", "study")):
        assert cli.run([verb, str(folder), "--recipe", name, "--out", str(tmp_path / out), "--quiet"]) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert said in error
        assert error.startswith("error: ") and error.count("error: ") == 1
        assert error.count("requires.") == 2 * error.count("--set requires.")  # once a field, and its way out
        assert not (tmp_path / out).exists()


def test_a_requirement_may_be_left_out(tmp_path):
    folder = miniatures.arrays(tmp_path / "data", size=(96, 96), channels=1, cases=12)
    with pytest.raises(UsageError, match="channels"):
        ulna.plan(folder, recipe="carvalho_nuclei", untimed=True)
    assert ulna.plan(folder, recipe="carvalho_nuclei", untimed=True, set=["requires.channels=null"]).in_channels == 1


# by name --------------------------------------------------------------------------------------------------------------


def test_a_recipe_is_taken_by_name_or_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert stated("laird") == stated(FOLDER / "laird.yaml") == stated(str(FOLDER / "laird.yaml"))
    (tmp_path / "laird").mkdir()  # a folder of that name, such as data, is no recipe
    assert stated("laird")["model"] == "laird/unet"
    (tmp_path / "laird").rmdir()
    (tmp_path / "laird").write_text("model: unet\n")  # a file is
    assert stated("laird") == {"model": "unet"}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("lairt", "no recipe named 'lairt'; did you mean 'laird'?"),
        ("zhou", "valid: carvalho_ablation_axes, "),
        ("recipes/laird.yaml", "recipes/laird.yaml: no such file; --recipe laird is one that comes with ulna"),
        ("nothing/like/it.yml", "nothing/like/it.yml: no such file; `ulna recipes` lists"),
        ("", "no recipe named ''"),
    ],
)
def test_a_wrong_name_names_the_nearest(word, said, tmp_path, capsys):
    with pytest.raises(UsageError, match=re.escape(said)):
        recipe_file(word) if word else ulna.recipes(word)
    for verb in ("plan", "train", "compare"):
        if word:
            assert cli.run([verb, str(tmp_path), "--recipe", word, "--out", str(tmp_path / "out")]) == 2
            assert said in capsys.readouterr().err


def test_the_verb_lists_and_shows_them(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.run(["recipes"]) == 0
    shown = capsys.readouterr().out
    for one in names():
        assert one in shown
    assert re.search(r"zhou_lung +UNet\+\+ \(zhou2018\) +Table 3 +1,012 nodules of LIDC-IDRI", shown)
    assert cli.run(["recipes", "zhou_lung"]) == 0
    text = capsys.readouterr().out
    assert text.rstrip() == (FOLDER / "zhou_lung.yaml").read_text(encoding="utf-8").rstrip()
    assert yaml.safe_load(text)["model"] == "zhou/unetpp_ds"
    assert cli.run(["recipes", "zhou_lun"]) == 2
    assert "did you mean 'zhou_lung'?" in capsys.readouterr().err


def test_the_verb_gives_plain_values(capsys):
    assert cli.run(["recipes", "marimont_lung", "--json"]) == 0
    (values,) = json.loads(capsys.readouterr().out)
    assert values["table"] == "Table 1"
    assert "65.7 ± 23.3" in values["published"]
    assert values["deviations"].startswith("- ")
    assert values["recipe"]["training"]["placement"] == "centred"
    assert cli.run(["recipes", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == list(names())
