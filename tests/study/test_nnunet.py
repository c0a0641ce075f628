"""nnU-Net itself as a row: its names, its files, its commands in their order, after a stop too, and a study without it.

A stand-in obeys its command line: nnU-Net wants a torchvision, which does not run beside every torch.
"""

import csv
import json
import os
import runpy
import signal
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import nibabel
import numpy as np
import pytest

from tests.discs import draw_discs
from tests.plans import make
from tests.study.stand_in import calls, install
from tests.training.tiny import TINY
from ulna.data.layout.dataset import Dataset
from ulna.errors import Interrupted, UsageError
from ulna.networks.build import named
from ulna.recipe import Labels, Recipe, Split, Training, to_yaml
from ulna.study import nnunet_worker
from ulna.study.compare import compare
from ulna.study.nnunet import Row, find, read_row, trained_epochs
from ulna.study.nnunet_data import names_of, read_mask, write_dataset
from ulna.study.nnunet_rows import Rows, leave_for_processes, nnunet_rows, settings_of_rows, split_names
from ulna.study.variants import Variant

ROW = "nnunetv2:2d"


def test_names_say_configuration_and_epochs():
    assert read_row("nnunetv2:2d") == Row("2d", None) and read_row("nnunetv2:3d_fullres/50") == Row("3d_fullres", 50)
    assert read_row("nnunetv2:2d/0.05") == Row("2d", 1, 12)
    for name, said in (
        ("nnunetv2:", "expected nnunetv2:2d"),
        ("nnunetv2:2D", "did you mean '2d'"),
        (
            "nnunetv2:2d/3",
            "no trainer of 3 epochs; it has those of 1, 5, 10, 20, 50, 100, 250, 500, 750, 1000, 2000, 4000, 8000",
        ),
        ("nnunetv2:2d/0.0001", "less than one step; an epoch of nnU-Net has 250"),
        ("nnunetv2:2d/1.5", "expected nnunetv2:2d or"),
    ):
        with pytest.raises(UsageError, match=said):
            read_row(name)
    assert [trained_epochs(n) for n in (1, 4, 30, 250, 999, 1000, 5000)] == [1, 1, 20, 250, 750, 1000, 4000]
    with pytest.raises(UsageError, match="name a network of ulna's beside"):
        split_names([ROW])
    with pytest.raises(UsageError, match="named twice"):
        split_names(["unet", ROW, ROW])
    with pytest.raises(UsageError, match="a row of ulna compare"):
        named(ROW)


def test_the_environment_is_where_it_is_said_or_on_the_path(tmp_path, monkeypatch):
    folder = install(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("ULNA_NNUNET", raising=False)
    assert find() == "no nnUNetv2_train on the path, and ULNA_NNUNET names no python that has it"
    monkeypatch.setenv("ULNA_NNUNET", str(tmp_path / "python"))
    assert find().endswith("beside which there is no nnUNetv2_plan_and_preprocess")
    monkeypatch.setenv("ULNA_NNUNET", str(folder / "python"))
    assert find().folder == folder and find().version() == "unknown"
    monkeypatch.delenv("ULNA_NNUNET")
    monkeypatch.setenv("PATH", str(folder))
    assert find().command("nnUNetv2_train") == str(folder / "nnUNetv2_train")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return draw_discs(
        tmp_path_factory.mktemp("many discs"),
        9, seed=1, size=(32, 32), smallest=4, contrast=60, noise=25, foreground=1, train=4, val=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def studies(many, tmp_path_factory):
    """The same command before nnU-Net is there and after: folder of commands, both outcomes, both tables."""
    out, place = tmp_path_factory.mktemp("studies") / "a", tmp_path_factory.mktemp("env") / "bin"
    words = {"models": f"unet,{ROW}", "epochs": 2, "set": TINY, "threads": 1, "out": out}
    tables = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(place.parent))
        patch.delenv("ULNA_NNUNET", raising=False)
        before = compare(many, **words)
        tables.append((out / "table.md").read_text())
        patch.setenv("ULNA_NNUNET", str(install(place) / "python"))
        after = compare(many, **words)
        tables.append((out / "table.md").read_text())
    return place, before, after, tables


@pytest.mark.slow
def test_a_study_without_it_says_so_in_its_table(studies):
    _, before, _, (table, _) = studies
    assert before.outcome.models == ["unet"]
    (row,) = [line for line in table.splitlines() if line.startswith(f"| {ROW} |")]
    assert row.split(" | ")[1] == "not there" and set(row.split(" | ")[2:-1]) == {"–"}
    assert f"- {ROW}: not there, no nnUNetv2_train on the path" in table
    json.dumps(before.to_json(), allow_nan=False)


@pytest.mark.slow
def test_it_is_scored_on_the_same_cases_by_the_same_rule(studies, many):
    place, _, after, (_, table) = studies
    assert after.outcome.models == ["unet", ROW] and not after.failed
    rows = list(csv.DictReader((after.folder / "results.csv").read_text().splitlines()))
    cases = {model: sorted(row["case"] for row in rows if row["model"] == model) for model in after.outcome.models}
    assert cases["unet"] == cases[ROW] == ["disc6", "disc7", "disc8"]
    assert len(after.outcome.pairs) == 1
    # what the stand-in does, done here
    dataset = Dataset.from_folder(many)
    image, reference = (dataset.case("disc7").read_image().array[0], dataset.case("disc7").read_labels().array[0])
    mask = image > (float(image.min()) + float(image.max())) / 2
    wanted = 2 * np.sum(mask & (reference > 0)) / (mask.sum() + (reference > 0).sum())
    (found,) = [float(row["dice"]) for row in rows if (row["model"], row["case"]) == (ROW, "disc7")]
    assert found == pytest.approx(wanted, abs=1e-9)
    line = next(line for line in table.splitlines() if line.startswith(f"| {ROW} |")).split(" | ")
    assert line[1:3] == ["–", "–"] and line[12] == "1"  # parameters, GMACs; epochs
    assert f"{ROW}: nnU-Net unknown, 1 epochs of 250 steps" not in table and "1 epoch of 250 steps" in table
    assert "1 epoch, not 2: nnU-Net has no trainer of so many" in table
    json.dumps(after.to_json(), allow_nan=False)
    plan, train, predict = calls(place)
    assert plan[:5] == ["nnUNetv2_plan_and_preprocess", "-d", "1", "-c", "2d"]
    assert train == ["nnUNetv2_train", "1", "2d", "0", "-tr", "nnUNetTrainer_1epoch", "-device", train[-1]]
    assert predict[0] == "nnUNetv2_predict"


def test_a_study_that_goes_on_knows_the_epochs_of_a_row():
    row = Variant(ROW, Recipe(model=ROW, training=Training(epochs=5)))
    settings = settings_of_rows(Rows([row], {"nnunetv2:3d_fullres": "gone"}))
    assert settings["architectures"] == {ROW: {"epochs": 5}} and settings["recipes"].keys() == {ROW}


def test_what_it_cannot_be_trained_on_is_refused(tmp_path, monkeypatch):
    for name, plan, said in (
        ("nnunetv2:3d_fullres", make(), "nnunetv2:3d_fullres: these images are 2D; name nnunetv2:2d"),
        (ROW, make(labels=Labels(names=("a", "b"), multilabel=True)), "these classes overlap"),
    ):
        with pytest.raises(UsageError, match=said):
            nnunet_rows([name], SimpleNamespace(plan=plan))
    monkeypatch.setenv("ULNA_NNUNET", str(install(tmp_path / "bin")))
    recipe = Recipe(training=Training(epochs=30, max_hours=1))
    settled = SimpleNamespace(plan=make(), variants=[Variant("unet", recipe)], planned=[SimpleNamespace(recipe=recipe)])
    with pytest.raises(UsageError, match=r"no hours limit nnU-Net; .* such as nnunetv2:2d/50"):
        nnunet_rows([ROW], settled)
    (row,) = nnunet_rows([f"{ROW}/50"], settled).variants
    assert row.recipe.training.epochs == 50 and "hours do not limit it" in row.footnotes[-1]
    (row,) = nnunet_rows([f"{ROW}/0.1"], settled).variants
    assert row.recipe.training.epochs == 1 and "25 steps in place of the 250 of an epoch" in row.footnotes[1]
    for version, rows in (("2.7.1", 1), ("2.8", 2), ("2.10.0", 2), ("unknown", 2)):
        monkeypatch.setattr("ulna.study.nnunet.Environment.version", lambda _, version=version: version)
        found = nnunet_rows([f"{ROW}/50", f"{ROW}/0.1"], settled)
        assert len(found.variants) == rows
        assert rows == 2 or "needs nnU-Net 2.8, which takes" in found.absent[f"{ROW}/0.1"]
    with pytest.raises(UsageError, match="compare it without --vary"):
        split_names(["unet", ROW], varied=True)


@pytest.fixture
def begun(many, tmp_path, monkeypatch, request):
    """A study's folder before the training of the row, and what its process is given."""
    run, folder = tmp_path / "runs" / "row" / "seed0", install(tmp_path / "bin")
    run.mkdir(parents=True)
    model = getattr(request, "param", ROW)
    recipe = Recipe(model=model, training=Training(epochs=1))
    cases = [f"disc{n}" for n in range(9)]
    split = Split(train=cases[:4], val=cases[4:6], test=cases[6:])
    leave_for_processes(tmp_path, make(), [split], Rows([Variant(model, recipe)], {}))
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    monkeypatch.setenv("ULNA_NNUNET", str(folder / "python"))
    return folder, (many, tmp_path / "recipe.yaml", run, None)


def test_a_training_that_failed_goes_on_from_its_checkpoint(begun):
    folder, words = begun
    (folder / "fails").touch()
    with pytest.raises(UsageError, match="nnUNetv2_train ended with exit code 1: no memory is left for this"):
        nnunet_worker.train(*words)
    (folder / "fails").unlink()
    nnunet_worker.train(*words)
    assert [call[0].removeprefix("nnUNetv2_") + "--c" * ("--c" in call) for call in calls(folder)] == [
        "plan_and_preprocess", "train", "train--c", "predict",
    ]  # fmt: skip
    summary = json.loads((words[2] / "summary.json").read_text())
    assert summary["evaluated_on"] == "test" and summary["test"]["cases"] == 3 and summary["training_seconds"] > 0
    told = (words[2] / "nnunet.log").read_text()
    assert str(folder.parent) not in told and "lib/nnunetv2/run_training.py" in told
    assert sorted(path.name for path in (words[2] / "masks").iterdir() if path.suffix == ".json") == [
        "dataset.json", "plans.json",
    ]  # fmt: skip
    assert (summary["epochs"], summary["trainer"]) == (1, "nnUNetTrainer_1epoch")


@pytest.mark.parametrize("begun", [f"{ROW}/0.1"], indirect=True)
def test_less_than_an_epoch_is_a_trainer_with_fewer_steps(begun, monkeypatch):
    folder, words = begun
    monkeypatch.setenv("nnUNet_extTrainer", "/trainers/of/others")
    nnunet_worker.train(*words)
    assert (folder / "trainers.txt").read_text().split(os.pathsep)[1:] == ["/trainers/of/others"]
    assert [call[call.index("-tr") + 1] for call in calls(folder) if "-tr" in call] == ["ulna_25_steps"] * 2
    assert json.loads((words[2] / "summary.json").read_text())["steps_per_epoch"] == 25

    class Trainer:  # what nnU-Net's own has, and sets before it is initialised
        num_epochs, num_iterations_per_epoch, num_val_iterations_per_epoch, save_every = 1000, 250, 50, 50

        def initialize(self):
            self.scheduled = self.num_epochs

    name = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
    for depth in range(1, 5):
        module = ModuleType(".".join(name.split(".")[:depth]))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    module.nnUNetTrainer = Trainer
    trainer = runpy.run_path(str(words[2] / "trainer" / "ulna_25_steps.py"))["ulna_25_steps"]()
    trainer.initialize()
    assert trainer.scheduled == 1
    assert (trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch, trainer.save_every) == (25, 5, 50)


def test_a_stopped_training_ends_its_process_and_goes_on(begun):
    folder, words = begun
    (folder / "waits").touch()

    def stop():
        until = time.monotonic() + 60
        while not (folder / "waiting").exists() and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    with pytest.raises(Interrupted):
        nnunet_worker.train(*words)
    thread.join(60)
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "waiting").read_text()), 0)
    (folder / "waits").unlink()
    nnunet_worker.train(*words)
    assert [call[0] for call in calls(folder) if "--c" in call] == ["nnUNetv2_train"]
    assert (words[2] / "cases.csv").exists()


def test_a_volume_goes_to_it_along_the_axes_of_its_file(tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    affine = np.array([[0, 0, 3.0, 5], [-1.0, 0, 0, 7], [0, 2.0, 0, 9], [0, 0, 0, 1]])
    for name, shape in (("a.b", (6, 7, 4)), ("c_0001", (5, 6, 4)), ("d", (5, 5, 3))):
        for folder in ("images", "labels"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        image, label = rng.normal(size=shape).astype(np.float32), rng.integers(0, 2, shape).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(image, affine), root / "images" / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, affine), root / "labels" / f"{name}.nii.gz")
    dataset = Dataset.from_folder(root)
    ids = sorted(case.id for case in dataset.cases)
    write_dataset(tmp_path / "Dataset001_x", dataset, make(), Split(train=(ids[0],), val=(ids[1],), test=(ids[2],)))
    written = nibabel.load(tmp_path / "Dataset001_x" / "imagesTr" / "case_0000_0000.nii.gz")
    stored = nibabel.load(root / "images" / "a.b.nii.gz")
    assert np.array_equal(written.get_fdata(), stored.get_fdata())
    assert np.allclose(written.header.get_zooms(), stored.header.get_zooms())
    assert names_of(dataset.cases)["d"] == "case_0002"
    assert [path.name for path in (tmp_path / "Dataset001_x" / "imagesTs").iterdir()] == ["case_0002_0000.nii.gz"]
    assert not (tmp_path / "Dataset001_x" / "labelsTr" / "case_0002.nii.gz").exists()
    told = json.loads((tmp_path / "Dataset001_x" / "dataset.json").read_text())
    assert (told["labels"], told["file_ending"]) == ({"background": 0, "foreground": 1}, ".nii.gz")
    reference = np.zeros((6, 7, 4), np.uint8)
    with pytest.raises(UsageError, match="has the size"):
        read_mask(tmp_path / "Dataset001_x" / "labelsTr" / "case_0001.nii.gz", reference)
    with pytest.raises(UsageError, match="cannot be read"):
        read_mask(tmp_path / "gone.nii.gz", reference)
