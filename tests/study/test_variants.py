"""What makes a comparison fair: everything but the architecture is the same, and what is not is said."""

import pytest

from tests.plans import training_data
from ulna.data.quality.check import Report
from ulna.errors import UsageError
from ulna.executors.places import Places
from ulna.networks.build import count_parameters, validate
from ulna.networks.foreign import permit_named
from ulna.networks.profile.cost import count_gmacs
from ulna.planning.length import BUDGETS, FIELDS
from ulna.planning.plan import plan_training
from ulna.recipe import Fingerprint, Recipe, stated
from ulna.recipe.library import recipe_file
from ulna.study import compare as comparing
from ulna.study import same_study
from ulna.study.budget import Budget
from ulna.study.jobs import make_jobs
from ulna.study.variants import Variant, make_variants, plan_variants, settings_of
from ulna.system.device import Device

SHAPE = {"in_channels": 3, "classes": 1, "spatial_dims": 2}


def facts(size=(96, 96), cases=100, channels=3):
    each = {"min": list(size), "median": list(size), "max": list(size)}
    ones = {name: [1.0] * len(size) for name in ("min", "median", "max")}
    found = Fingerprint(
        cases=cases, digest="0", spatial_dims=len(size), channels=channels,
        channel_names=[f"channel {c}" for c in range(channels)], dtypes=["uint8"], size=each, spacing=ones,
        world_axes=None, unit="px", intensity=[{"min": 0, "max": 255}] * channels, foreground=[], classes=["a", "b"],
    )  # fmt: skip
    return training_data(found)


def test_a_study_reckons_with_the_memory_of_its_own_processes(monkeypatch):
    """Those replace the allocator, and hold nothing of what the process that called `compare` holds."""
    settled = plan_variants(make_variants(["unet"], {}, [], []), facts(), match=None)
    monkeypatch.setattr("ulna.planning.memory.allocator_in_use", lambda: "torch")
    monkeypatch.setattr("ulna.planning.memory.allocator_when_tuned", lambda: "ulna")
    monkeypatch.setattr("ulna.planning.memory.program_bytes", lambda: 1e15)
    (planned,) = settled.planned
    here, there = planned.memory.parts, planned.memory_elsewhere.parts
    assert here["maps of a step"] / there["maps of a step"] == pytest.approx(1.55 / 1.25)
    room = int(2.1 * sum(there.values()))
    monkeypatch.setattr("ulna.planning.memory.memory", lambda: room)
    monkeypatch.setattr("ulna.executors.places.machine_memory", lambda: room)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    need, places = comparing._needs(settled)["unet"], Places.of(planned.device, 3)
    assert places.at_once([need] * 3) == 2
    assert places.gpu_for(need, [(need, 0)]) == 0 and places.gpu_for(need, [(need, 0)] * 2) is None


def test_only_the_architecture_differs():
    variants = make_variants(["unet", "carvalho/unet_polyps", "laird/unet", "omega_net"], {}, [], [])
    settled = plan_variants(variants, facts(), match=None)
    assert len({settings_of(v.recipe).replace("heads", "") for v in settled.variants[:3]}) == 1
    assert len({(v.recipe.planning.patch, v.recipe.planning.batch) for v in settled.variants}) == 1


def test_what_a_recipe_of_its_own_would_have_set_is_a_footnote():
    polyps, omega = make_variants(["carvalho/unet_polyps", "omega_net"], {}, [], [])
    assert any("optimizer.lr = 0.0001" in note and "with 0.001" in note for note in polyps.footnotes)
    assert any("loss.heads" in note and "belongs to this network" in note for note in omega.footnotes)
    assert omega.recipe.loss.heads != "equal"


def test_a_varied_field_is_named_by_its_row_and_is_no_footnote():
    base, focal = make_variants(["laird/unet"], {}, ["loss.kind=dice,focal_tversky"], [])
    for variant in (base, focal):
        assert not any("loss.kind" in note for note in variant.footnotes)
        assert any("optimizer.lr" in note for note in variant.footnotes)


def test_the_pooling_of_points_goes_with_the_network_while_the_loss_is_the_one_it_speaks_of():
    (alone,) = make_variants(["implicit_unet"], {}, [], [])
    assert alone.recipe.loss.options == {"reduction": "batch"}
    assert any("loss.options" in note and "belongs to this network" in note for note in alone.footnotes)
    for base in ({"loss": {"kind": "dice"}}, {"loss": {"options": {"smooth": 0.5}}}):
        (stated,) = make_variants(["implicit_unet"], base, [], [])
        assert stated.recipe.loss.options == base["loss"].get("options", {})
        assert any("its own recipe would set loss.options" in note for note in stated.footnotes)


def test_what_is_stated_for_all_holds_for_all():
    base = {"optimizer": {"lr": 3e-4}, "loss": {"kind": "dice"}}
    for variant in make_variants(["unet", "carvalho/unet_polyps"], base, [], ["training.patience=7"]):
        assert variant.recipe.optimizer.lr == 3e-4
        assert variant.recipe.loss.kind == "dice"
        assert variant.recipe.training.patience == 7


@pytest.mark.slow
def test_the_smallest_batch_holds_for_all():
    variants = make_variants(["unet", "nas_unet"], {}, [], [])
    settled = plan_variants(variants, facts((128, 128)), match=None)
    alone = [plan_variants([v], facts((128, 128)), match=None).plan.batch for v in variants]
    assert alone[0] != alone[1]
    assert settled.plan.batch == min(alone)
    assert any(note.startswith(f"batch {min(alone)} for all") for note in settled.footnotes)


def test_a_study_is_planned_once_whatever_its_trainings_run_on(monkeypatch, tmp_path):
    variants, settled = make_variants(["unet", "nnunet"], {}, [], []), {}
    for device in (Device("cuda", 80e9), Device("cpu")):
        monkeypatch.setattr("ulna.planning.plan.find_device", lambda device=device: device)
        settled[device.kind] = plan_variants(variants, facts((128, 128)), match=None)
    jobs = make_jobs(settled["cuda"].variants, seeds=2, folds=2, runs=tmp_path)
    made = [plan_training(facts((128, 128)), job.recipe) for job in jobs]  # on a CPU, where it went on
    shared = {
        (one.plan.patch, one.plan.batch, *(getattr(one.recipe.training, name) for name in FIELDS)) for one in made
    }
    assert len(made) == 8 and shared == {((128, 128), 25, *BUDGETS["standard"])}
    before, now = (
        same_study.settings_of_study(settled[kind], [], Report, None, variants, None) for kind in ("cuda", "cpu")
    )
    with pytest.raises(UsageError, match=r"the recipe of unet: max_hours: 2.0 there, max_hours: null now"):
        same_study.check_same(tmp_path, before, now)
    fixed = make_variants(["unet", "nnunet"], {"training": {"budget": "quick"}}, [], [])
    both = [plan_variants(fixed, facts((128, 128)), match=None, fixed=before["plan"])]
    assert {tuple(one.recipe.training.model_dump()[name] for name in FIELDS) for one in both[0].planned} == {
        BUDGETS["quick"]
    }


def test_one_field_is_varied_at_a_time():
    vary = ["optimizer.lr=1e-3,1e-2", "loss.kind=dice,cross_entropy"]
    rows = make_variants(["unet"], {"optimizer": {"lr": 1e-3}}, vary, [], one_at_a_time=True)
    assert [row.name for row in rows] == [
        "unet",  # has the first rate already
        "unet optimizer.lr=1e-2",
        "unet loss.kind=dice",
        "unet loss.kind=cross_entropy",
    ]
    assert rows[1].recipe.loss == rows[0].recipe.loss != rows[2].recipe.loss
    assert rows[2].recipe.optimizer.lr == rows[0].recipe.optimizer.lr == 1e-3
    assert len(make_variants(["unet"], {}, vary, [])) == 4


@pytest.mark.parametrize("model", ["unet", "unetpp", "attention_unet", "sdu_net", "omega_net"])
def test_parameters_are_matched(model):
    settled = plan_variants(make_variants([model], {}, [], []), facts(), match=Budget.read("params=1M"))
    network = validate(settled.variants[0].recipe.architecture, **SHAPE)
    assert count_parameters(network) == pytest.approx(1e6, rel=0.03)


@pytest.mark.parametrize("model", ["unet", "unetpp", "nnunet"])
def test_gmacs_are_matched(model):
    settled = plan_variants(make_variants([model], {}, [], []), facts(), match=Budget.read("gmacs=0.5G"))
    network = validate(settled.variants[0].recipe.architecture, **SHAPE)
    assert count_gmacs(network, (96, 96)) == pytest.approx(0.5, rel=0.08)


def test_a_budget_out_of_reach_names_the_floor():
    variants = make_variants(["unet"], {}, [], [])
    with pytest.raises(UsageError, match="unet: cannot be scaled to 10 parameters: the narrowest such network has"):
        plan_variants(variants, facts(), match=Budget.read("params=10"))


@pytest.mark.parametrize(
    ("options", "said"),
    [("width=4", "width 4 to 1); +"), ("", "not scaled: its constructor has no widths; +")],
)
def test_a_network_of_others_that_cannot_come_to_a_size_stands_with_a_footnote(tmp_path, options, said):
    file, name = tmp_path / "net.py", options.partition("=")[0] or "hidden"
    file.write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n"
        f"    def __init__(self, in_channels, out_channels, {name}=4):\n"
        f"        super().__init__(nn.Conv2d(in_channels, {name}, 3, padding=1), nn.Conv2d({name}, out_channels, 1))\n"
    )
    model = f"module:{file}:Net"
    permit_named(model)
    (variant,) = plan_variants(make_variants([model], {}, [], []), facts(), match=Budget.read("params=10")).variants
    assert any(
        said in note and "away from 10 parameters, the closest that its widths allow" in note
        for note in variant.footnotes
    )


@pytest.mark.slow
def test_gmacs_of_a_head_that_reads_points_are_those_of_a_training_step():
    rows = make_variants(["implicit_unet"], {}, [], ["points.count=100"])
    (variant,) = plan_variants(rows, facts(), match=Budget.read("gmacs=0.5G")).variants
    network = validate(variant.recipe.architecture, **SHAPE)
    assert count_gmacs(network, (96, 96), points=100) == pytest.approx(0.5, rel=0.08)
    assert count_gmacs(network, (96, 96)) > 2  # the decoder alone, at every pixel


@pytest.mark.parametrize("text", ["", "8.5M", "params=", "params=x", "flops=3G", "params=0", "gmacs=-1"])
def test_a_wrong_budget_is_refused(text):
    with pytest.raises(UsageError, match=r"params=8\.5M or gmacs=3G|above 0"):
        Budget.read(text)


def test_values_are_varied_in_every_combination():
    rows = make_variants(["unet"], {}, ["loss.kind=dice,cross_entropy", "architecture.channels=[4, 8],[8, 16]"], [])
    assert [row.name for row in rows] == [
        "unet loss.kind=dice channels=[4, 8]",
        "unet loss.kind=dice channels=[8, 16]",
        "unet loss.kind=cross_entropy channels=[4, 8]",
        "unet loss.kind=cross_entropy channels=[8, 16]",
    ]
    assert rows[3].recipe.loss.kind == "cross_entropy"
    assert rows[3].recipe.architecture.channels == (8, 16)
    assert len({row.folder for row in rows}) == 4
    assert not any("/" in row.folder or " " in row.folder for row in rows)


def test_values_may_hold_brackets_within_brackets():
    rows = make_variants(
        ["unet"], {}, ["architecture.strides=[[2, 2], [1, 2]],[[2, 2], [2, 2]]"], ["architecture.levels=3"]
    )
    assert [row.recipe.architecture.strides for row in rows] == [((2, 2), (1, 2)), ((2, 2), (2, 2))]


def test_names_that_look_alike_in_a_path_have_folders_of_their_own():
    names = ["a x=[1, 2]", "a x={1, 2}", "a x=" + "y" * 400, "a x=" + "y" * 399]
    folders = [Variant(name, Recipe()).folder for name in names]
    assert len(set(folders)) == 4
    assert all(len(folder) < 120 and "/" not in folder for folder in folders)
    assert Variant("zhou/unet", Recipe()).folder == "zhou_unet"


@pytest.mark.slow
def test_what_is_fixed_by_a_row_stays_and_a_study_that_goes_on_says_the_same():
    rows = make_variants(["unet"], {}, ["planning.batch=2,8"], [])
    assert [v.recipe.planning.batch for v in plan_variants(rows, facts(), match=None).variants] == [2, 8]
    variants = make_variants(["unet", "nas_unet"], {}, [], [])
    first = plan_variants(variants, facts((128, 128)), match=None)
    again = plan_variants(
        variants, facts((128, 128)), match=None, fixed={"patch": first.plan.patch, "batch": first.plan.batch}
    )
    assert first.footnotes
    assert again.footnotes == first.footnotes


def test_a_footnote_tells_what_was_trained_after_all_changes():
    polyps, nnunet = make_variants(
        ["carvalho/unet_polyps", "nnunet"], {}, [], ["optimizer.lr=1e-4", "loss.heads=equal"]
    )
    assert not any("optimizer.lr" in note for note in polyps.footnotes)
    assert not any("loss.heads" in note for note in nnunet.footnotes)
    assert nnunet.recipe.loss.heads == "equal"


def test_a_changed_architecture_is_told_beside_published_figures():
    plain, changed = (
        make_variants(["zhou/unet"], {}, [], change)[0] for change in ([], ["architecture.skip=additive"])
    )
    assert not any("architecture was changed" in note for note in plain.footnotes)
    assert any("architecture was changed" in note for note in changed.footnotes)


def test_an_option_of_a_block_can_be_varied():
    rows = make_variants(["sdu_net"], {}, ["architecture.conv.sdn.state_channels=8,16"], [])
    assert [r.recipe.architecture.conv[0].options["state_channels"] for r in rows] == [8, 16]


def test_every_wrong_name_is_told_at_once():
    with pytest.raises(UsageError) as caught:
        make_variants(["unett", "unet", "nnunett"], {}, [], [])
    assert "did you mean 'unet'" in str(caught.value)
    assert "did you mean 'nnunet'" in str(caught.value)


def test_a_network_named_twice_is_refused():
    with pytest.raises(UsageError, match="unet is named twice"):
        make_variants(["unet", "unet"], {}, [], [])


@pytest.mark.parametrize("text", ["loss.kind", "loss.kind=dice", "=1,2"])
def test_a_wrong_variation_is_refused(text):
    with pytest.raises(UsageError, match="expected KEY=V1,V2"):
        make_variants(["unet"], {}, [text], [])


def test_networks_that_the_data_do_not_allow_are_all_named():
    variants = make_variants(["unet", "carvalho/unet_polyps", "carvalho/unetpp_polyps"], {}, [], [])
    with pytest.raises(UsageError) as caught:
        plan_variants(variants, facts((12, 12)), match=None)
    assert "carvalho/unet_polyps: " in str(caught.value)
    assert "carvalho/unetpp_polyps: " in str(caught.value)


def test_the_loss_table_of_the_modular_paper_is_one_command():
    losses = ("dice", "dice_squared", "cross_entropy", "focal_tversky")
    vary = f"loss.kind={','.join(losses)}"
    assert vary in recipe_file("laird").read_text(encoding="utf-8")
    rows = make_variants(["laird/unet"], stated("laird"), [vary], [])
    assert tuple(row.recipe.loss.kind for row in rows) == losses
    alike = [row.recipe.replaced(loss={"kind": "dice"}) for row in rows]
    assert all(one == alike[0] for one in alike)


@pytest.mark.parametrize(("what", "sizes"), [("channels", 4), ("directions", 4), ("axes", 1), ("scales", 4)])
def test_the_ablations_of_the_sdu_net_paper_are_one_command_each(what, sizes):
    recipe = stated(f"carvalho_ablation_{what}")
    rows = make_variants([], recipe, recipe["study"]["vary"], [])
    settled = plan_variants(rows, facts((144, 192), cases=500), match=None)
    counts = {count_parameters(validate(v.recipe.architecture, **SHAPE)) for v in settled.variants}
    assert len(settled.variants) == max(2, sizes)
    assert len(counts) == sizes
    assert all(v.recipe.planning.batch == 20 and v.recipe.optimizer.lr == 1e-4 for v in settled.variants)
    assert all(v.recipe.training.accumulate == 4 for v in settled.variants)  # 20 images on each of 4 GPUs
