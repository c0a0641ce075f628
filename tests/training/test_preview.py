"""Real cases and samples of them on one sheet, before anything is trained, in a folder that keeps what others made."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.training.tiny import TINY
from tests.volumes import draw_balls
from ulna.cli import main as cli
from ulna.data.pipeline.augment import Draw
from ulna.errors import UsageError
from ulna.training import estimate, preview
from ulna.training.estimate import plan

FLIPS = ("augmentation.flip=1", "augmentation.quarter_turn=0", "augmentation.affine=0", "augmentation.intensity=0",
         "augmentation.gamma=0", "augmentation.noise=0", "augmentation.blur=0")  # fmt: skip


def look(data, out, *changes, **flags):
    return plan(data, model="unet", untimed=True, preview=out, set=(*TINY, *changes), **flags)


@pytest.fixture
def pictures(monkeypatch):
    """The rows that a sheet is drawn of."""
    kept = []
    real = preview.panels
    monkeypatch.setattr(
        preview, "panels", lambda rows, *args, **more: (kept.extend(rows), real(rows, *args, **more))[1]
    )
    return kept


def test_a_sheet_shows_every_case_and_its_samples(discs, tmp_path, pictures):
    made = look(discs, tmp_path / "look")
    assert made.preview == tmp_path / "look" / "preview.png"
    with Image.open(made.preview) as sheet:
        assert sheet.width > 1000
    told = json.loads((tmp_path / "look" / "preview.json").read_text())
    assert len(pictures) == len(told["cases"]) == preview.CASES
    for (title, row), case in zip(pictures, told["cases"], strict=True):
        assert title == case["case"] and title in made.planned.split.train
        assert [picture.caption for picture in row[1:]] == case["samples"]
        assert len(row) == 1 + preview.DRAWS
        assert row[0].values.shape[:2] == made.patch
    assert sorted(path.name for path in (tmp_path / "look").iterdir()) == ["preview.json", "preview.png"]


def test_a_sheet_is_drawn_within_a_limit(discs, tmp_path, monkeypatch):
    look(discs, tmp_path / "free")
    made = []
    real = preview.PreparedCases
    monkeypatch.setattr(preview, "PreparedCases", lambda *some, **how: made.append(real(*some, **how)) or made[-1])
    look(discs, tmp_path / "bound", max_ram=8)
    assert all(map(made[0].lies_in_a_file, range(len(made[0])))) and not made[0]._structures
    for name in ("preview.png", "preview.json"):
        assert (tmp_path / "bound" / name).read_bytes() == (tmp_path / "free" / name).read_bytes()
    monkeypatch.setattr(preview, "drawing_bytes", lambda *_: 9e9)
    with pytest.raises(UsageError, match=r"its preview needs [\d.]+ GB at least, more than --max-ram 8 allows"):
        look(discs, tmp_path / "none", max_ram=8)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("neighbours", [0, 1])
@pytest.mark.parametrize("stored", ["RAS", "SAR"])
@pytest.mark.share(3)
def test_slices_are_drawn_as_the_network_sees_them(tmp_path, pictures, neighbours, stored):
    data = draw_balls(tmp_path / "data", 5, stored=stored, channels=2)
    slices = ("planning.spatial_dims=2", f"planning.neighbours={neighbours}")
    made = look(data, tmp_path / "look", *slices)
    assert made.planned.plan.slices.axis == 2 and len(pictures) == 3
    for _, (whole, *samples) in pictures:
        assert len(samples) == preview.DRAWS
        assert {one.values.shape[:2] for one in samples} == {made.patch[::-1]}
        assert np.all(whole.values == preview.CLASS_COLOURS[0], axis=-1).any()


def test_samples_are_those_that_are_drawn(discs, tmp_path, pictures):
    """With flips alone every picture is that of the case, flipped."""
    look(discs, tmp_path / "look", *FLIPS)
    for _, (whole, *samples) in pictures:
        for sample in samples:
            assert sample.caption == "flip along axes 0 and 1"
            outline = np.all(whole.values == preview.CLASS_COLOURS[0], axis=-1)
            assert outline.any()
            assert np.array_equal(sample.values, whole.values[::-1, ::-1])


@pytest.mark.slow
def test_the_same_call_draws_the_same_sheet_and_another_seed_another(discs, tmp_path):
    first = look(discs, tmp_path / "a").preview.read_bytes()
    assert look(discs, tmp_path / "a").preview.read_bytes() == first
    assert look(discs, tmp_path / "a", seed=4).preview.read_bytes() != first


def test_of_a_volume_the_slice_across_the_coarsest_axis_is_drawn(tmp_path, pictures):
    data = tmp_path / "data"
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (data / folder).mkdir(parents=True)
    for name in "abcdef":
        array, labels = rng.normal(size=(9, 24, 20)).astype(np.float32), np.zeros((9, 24, 20), np.uint8)
        labels[3, 4:9, 5:12], labels[6, 2:20, 2:18] = 1, 1
        for kind, values in (("images", array), ("labels", labels)):
            nib.save(nib.Nifti1Image(values, np.diag([4.0, 1.0, 1.0, 1.0])), data / kind / f"{name}.nii.gz")
    made = look(data, tmp_path / "look", *FLIPS)
    assert made.patch[0] < 16
    (_, (whole, *samples)) = pictures[0]
    assert whole.values.shape == (20, 24, 3)  # foot to head by back to front
    assert (whole.sides.plane, whole.sides.left) == ("sagittal", "A")
    assert {sample.sides.left for sample in samples} == {""}  # a flipped one has no sides
    outline = np.all(whole.values == preview.CLASS_COLOURS[0], axis=-1)
    assert np.ptp(np.argwhere(outline), axis=0).tolist() == [15, 17]  # of the slice with the most


def test_a_volume_without_orientation_is_drawn_across_its_coarsest_axis_too():
    array, maps = np.zeros((2, 3, 8, 7)), np.zeros((3, 8, 7))
    one, two, spacing = preview._coarsest_last(array, maps, (5.0, 1.0, 1.5))
    assert (one.shape, two.shape, spacing) == ((2, 8, 7, 3), (8, 7, 3), (1.0, 1.5, 5.0))
    assert preview._coarsest_last(array, maps, (1.0, 1.0, 1.0))[0] is array


def test_what_happens_to_a_sample_in_words():
    turn = np.array([[0.0, -1.0], [1.0, 0.0]]) / 1.1
    assert preview.in_words(Draw(matrix=turn, bends=np.ones((2, 3, 3)))) == "about 90°, scale 1.10, elastic"
    assert preview.in_words(Draw(matrix=np.eye(3), bends=np.ones((3, 3, 3, 3)))) == "elastic"
    every = Draw(flips=(2,), quarters=3, scale=0.1, shift=-0.2, gamma=0.8, noise=(1, 0.05), blur=(1.0, 1.0))
    said = "flip along axis 2, turn by 270°, contrast +0.10, brightness -0.20, gamma 0.80, noise 0.05, blur"
    assert preview.in_words(every) == said


def test_a_folder_keeps_what_others_made_and_nothing_is_read_then(discs, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "read_training_data", lambda *_: pytest.fail("data were read"))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "preview.png").write_bytes(b"mine")
    for out, message in (
        (taken, "preview.png is not written by ulna, and would be replaced; choose another --preview"),
        (discs, "choose another --preview"),
        (discs / "labels", "choose another --preview"),
        (taken / "preview.png", "is a file; choose another --preview"),
    ):
        with pytest.raises(UsageError, match=message):
            look(discs, out)
    assert (taken / "preview.png").read_bytes() == b"mine"


@pytest.mark.slow
def test_the_command_names_the_sheet(discs, tmp_path, capsys):
    argv = ["plan", str(discs), "--untimed", "--preview", str(tmp_path / "look"), *(f"--set={one}" for one in TINY)]
    assert cli.run(argv) == 0
    assert str(tmp_path / "look" / "preview.png") in capsys.readouterr().out.replace("\n", "")
    assert cli.run([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["preview"].endswith("preview.png")
