"""A network of one's own through every verb, and the gate before its code; networks of libraries where they are."""

import json
import shutil
import sys
import types

import pytest
import torch
import yaml

import ulna
from tests.discs import draw_discs
from tests.foreign_code import SMP, TINY
from tests.training.tiny import rows_of
from tests.volumes import draw_balls
from ulna.cli import main as cli
from ulna.errors import UsageError
from ulna.networks.foreign import CODE_FILE, code, libraries

SETTINGS = ("planning.batch=2", "training.min_steps=4", "training.checkpoint_minutes=0", "optimizer.lr=1e-2")


@pytest.fixture(autouse=True)
def nothing_permitted():
    code.forget()


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    path = tmp_path_factory.mktemp("code") / "net.py"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def trained(discs, net, tmp_path_factory):
    """Two epochs; tests that change it take a copy."""
    out = tmp_path_factory.mktemp("runs") / "own"
    return ulna.train(discs, model=f"module:{net}:Tiny", out=out, epochs=2, set=SETTINGS)


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained.folder, tmp_path / "run")


def test_a_run_keeps_what_its_network_is(trained, net):
    recipe = yaml.safe_load((trained.folder / "recipe.yaml").read_text())
    foreign = recipe["architecture"]["foreign"]
    assert recipe["model"] == foreign["source"] == f"module:{net}:Tiny"
    assert foreign["digest"] == code.digest_of(net) == code.digest_of(trained.folder / CODE_FILE)
    assert (foreign["divisor"], foreign["least"]) == ([2, 2], [2, 2])
    assert trained.summary["network"] == foreign
    assert trained.summary["command"].endswith("--allow-code")
    assert trained.summary["parameters"] == 317
    reasons = yaml.safe_load((trained.folder / "plan.yaml").read_text())["reasons"]
    assert reasons["levels"] == "its own: a network of others, whose images are padded to multiples of 2 x 2"


def test_a_run_with_code_is_loaded_only_where_a_person_says_so(run, discs, tmp_path, capsys):
    image = str(discs / "images" / "disc0.png")
    said = "its network is code of its own"
    for words in (["predict", str(run), image], ["explain", str(run), image]):
        assert cli.run([*words, "--out", str(tmp_path / words[0]), "--quiet"]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UsageError, match=f"{said}.*net.py.*--allow-code"):
        ulna.load(run)
    assert not code._loaded
    with pytest.raises(UsageError, match="is one of others, which cannot be pruned"):
        ulna.predict(run, image, out=tmp_path / "level", level=1, allow_code=True)
    mask = ulna.load(run, allow_code=True)(image).mask
    assert cli.run(["predict", str(run), image, "--out", str(tmp_path / "masks"), "--allow-code", "--quiet"]) == 0
    assert mask.shape == (32, 40)


def test_a_run_needs_nothing_beside_its_folder(run, tmp_path):
    recipe = (run / "recipe.yaml").read_text()
    source = yaml.safe_load(recipe)["model"]
    (run / "recipe.yaml").write_text(recipe.replace(source, f"module:{tmp_path}/gone.py:Tiny"))
    assert ulna.load(run, allow_code=True).network.module.first[0].weight.shape == (4, 1, 3, 3)


def test_code_that_was_changed_in_a_run_is_refused(run, net):
    (run / CODE_FILE).write_text(TINY + "\n# changed\n")
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace(str(net), str(net.with_name("gone.py"))))
    with pytest.raises(UsageError, match=rf"{CODE_FILE}: has changed since this run \(sha256 .*bring back the file"):
        ulna.load(run, allow_code=True)


def test_it_goes_on_where_its_code_is_allowed_or_named(run, discs, net):
    with pytest.raises(UsageError, match="its network is code of its own"):
        ulna.train(discs, out=run, resume=True, epochs=3)
    ulna.train(discs, out=run, resume=True, epochs=3, allow_code=True)
    code.forget()
    ulna.train(discs, out=run, resume=True, epochs=4, model=f"module:{net}:Tiny")
    assert [row["epoch"] for row in rows_of(run)] == ["1", "2", "3", "4"]


def test_an_explanation_leaves_out_what_needs_known_nodes(run, discs, tmp_path):
    told = ulna.explain(run, discs / "images" / "disc0.png", out=tmp_path / "why", allow_code=True).facts
    assert {"saliency", "uncertainty"} <= told["maps"].keys()
    assert told["left_out"]["gradcam"] == "which of the maps of a network of others is the deepest is not known"


def test_it_cannot_be_pruned_and_is_not_loaded_for_that(run, tmp_path):
    with pytest.raises(UsageError, match="is one of others, which cannot be pruned"):
        ulna.prune(run, out=tmp_path / "small")
    assert not code._loaded


def test_a_plan_from_a_file_trains_where_the_code_is_named(discs, net, tmp_path):
    name, file = f"module:{net}:Tiny", tmp_path / "plan.yaml"
    estimate = ulna.plan(discs, model=name, out=file, untimed=True, set=SETTINGS)
    assert estimate.planned.memory.parts["maps of a step"] > 0
    assert estimate.to_json()["parameters"] == 317
    code.forget()
    with pytest.raises(UsageError, match=r"names code as its network.*name it yourself, --model"):
        ulna.train(discs, plan=file, epochs=1, out=tmp_path / "a")
    ulna.train(discs, plan=file, model=name, epochs=1, out=tmp_path / "b")


def test_a_recipe_from_elsewhere_runs_no_code(run, discs, tmp_path):
    with pytest.raises(UsageError, match=r"recipe.yaml: names code as its network"):
        ulna.train(discs, recipe=run / "recipe.yaml", out=tmp_path / "a")
    assert not code._loaded
    ulna.train(discs, recipe=run / "recipe.yaml", plan=run / "plan.yaml", epochs=1, out=tmp_path / "b", allow_code=True)


def test_wrong_words_cost_no_reading_of_data(net, tmp_path):
    for set, said in (
        ("architecture.foreign.options.widht=8", "no option of module:.* named 'widht'; did you mean 'width'"),
        ("architecture.foreign.options.classes=8", "classes is said already, by the data or the name"),
        ("loss.kind=dise", "no loss named 'dise'"),
    ):
        with pytest.raises(UsageError, match=said):
            ulna.train(tmp_path, model=f"module:{net}:Tiny", set=[set])


def test_volumes_are_learned_as_images_are(net, tmp_path):
    data = draw_balls(tmp_path / "balls")
    run = ulna.train(data, model=f"module:{net}:Tiny", out=tmp_path / "run", epochs=1, set=SETTINGS)
    plan = yaml.safe_load((run.folder / "plan.yaml").read_text())
    assert (plan["spatial_dims"], plan["strides"]) == (3, [[2, 2, 2]])
    assert ulna.load(run.folder)(data / "images" / "ball0.nii.gz").mask.shape == (20, 24, 9)  # named here: no flag


@pytest.mark.slow
def test_folds_keep_the_code_each(net, tmp_path):
    root = tmp_path / "discs"
    root.mkdir()
    data = draw_discs(
        root, 6, seed=0, size=(32, 32), smallest=5, contrast=90, noise=15, foreground=1, train=4, val=1
    )  # fmt: skip
    (data / "splits.json").unlink()
    run = ulna.train(data, model=f"module:{net}:Tiny", out=tmp_path / "run", epochs=1, folds=2, set=SETTINGS)
    assert [path.parent.name for path in sorted(run.folder.rglob(CODE_FILE))] == ["fold_0", "fold_1"]
    code.forget()
    with pytest.raises(UsageError, match="its network is code of its own"):
        ulna.train(data, out=run.folder, resume=True)
    ulna.train(data, out=run.folder, resume=True, allow_code=True)
    assert len(ulna.load(run.folder, allow_code=True).members) == 2


@pytest.mark.slow
def test_a_study_trains_it_beside_others(discs, net, tmp_path):
    names = f"unet,module:{net}:Tiny"
    study = ulna.compare(
        discs, models=names, epochs=1, match="params=3k", out=tmp_path / "study",
        set=("planning.batch=2", "training.min_steps=2"),
    )  # fmt: skip
    rows = json.loads((study.folder / "outcome.json").read_text())
    told = json.dumps(rows)
    assert "scaled by its own options (width 4 to " in told
    assert f"code of its own, sha256 {code.digest_of(net)[:12]}" in told
    assert len(list(study.folder.rglob(CODE_FILE))) == 1
    code.forget()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"study": {"models": ["unet", f"module:{net}:Tiny"]}}))
    with pytest.raises(UsageError, match="names code as its network"):
        ulna.compare(discs, recipe=recipe, epochs=1, out=tmp_path / "other")


def test_a_2d_network_of_smp_reads_volumes_as_slices(tmp_path, monkeypatch, caplog):
    module = types.ModuleType("segmentation_models_pytorch")
    exec(SMP, module.__dict__)  # noqa: S102
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", module)
    libraries._library.cache_clear()
    donor = module.Unet(encoder_weights=None, in_channels=1).encoder
    torch.save(donor.state_dict(), tmp_path / "resnet34.pth")
    data = draw_balls(tmp_path / "balls")
    weights = f"architecture.foreign.encoder_weights={tmp_path / 'resnet34.pth'}"
    run = ulna.train(
        data, model="smp:Unet/resnet34", out=tmp_path / "run", epochs=1,
        set=[weights, "planning.batch=2", "training.steps_per_epoch=2", "optimizer.lr=1e-9"],
    )  # fmt: skip
    plan = yaml.safe_load((run.folder / "plan.yaml").read_text())
    assert (plan["spatial_dims"], plan["strides"]) == (2, [[32, 32]])
    (tmp_path / "resnet34.pth").unlink()  # the run has its own weights
    segment = ulna.load(run.folder)
    assert torch.allclose(segment.network.module.encoder[0].weight.cpu(), donor[0].weight, atol=1e-6)
    assert segment(data / "images" / "ball0.nii.gz").mask.shape == (20, 24, 9)
    recipe = (run.folder / "recipe.yaml").read_text()
    (run.folder / "recipe.yaml").write_text(recipe.replace("0.0.1", "0.0.0"))
    with caplog.at_level("WARNING"):
        ulna.load(run.folder)
    assert (
        "was trained with segmentation-models-pytorch 0.0.0, and segmentation-models-pytorch 0.0.1 is here"
        in caplog.text
    )
    libraries._library.cache_clear()


def test_networks_of_monai_train_and_need_no_leave(discs, tmp_path):
    pytest.importorskip("monai.networks.nets", exc_type=ImportError)
    run = ulna.train(
        discs, model="monai:DynUNet", out=tmp_path / "run", epochs=1,
        set=[*SETTINGS, "architecture.foreign.options.filters=[4, 4, 8, 8, 8]",
             "architecture.foreign.options.deep_supervision=true"],
    )  # fmt: skip
    assert run.summary["network"]["version"].startswith("monai ")
    recipe = (run.folder / "recipe.yaml").read_text()
    (run.folder / "recipe.yaml").write_text(
        recipe.replace("      - 4\n      - 4\n", "      - 1048576\n      - 1048576\n")
    )
    with pytest.raises(UsageError, match=r"does not fit the recipe.yaml beside it"):  # nothing of that size was made
        ulna.load(run.folder)
    (run.folder / "recipe.yaml").write_text(recipe)
    assert ulna.load(run.folder)(discs / "images" / "disc0.png").mask.shape == (32, 40)
