"""What Python hands over is understood as files are, or refused with what is wrong."""

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from tests.inference.test_geometry import RECIPE, Shifted, plan_of
from tests.plans import make
from ulna.data.pipeline.orientation import AS_STORED, turn_of, world_of
from ulna.data.pipeline.preprocess import differences
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.inference.inputs import as_volume
from ulna.inference.segmenter import Segmenter
from ulna.recipe import Normalization


def plan_2d(channels=1, **changes):
    names = tuple(f"c{n}" for n in range(channels))
    return make(in_channels=channels, channel_names=names, spacing=(1.0, 1.0),
                normalization=(Normalization(kind="none"),) * channels, **changes)  # fmt: skip


def test_an_array_with_its_affine_is_the_file(tmp_path):
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    array = np.random.default_rng(0).normal(size=(9, 12, 7)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "x.nii")
    segment = Segmenter(Shifted((1, 2, -1)), plan_of(), RECIPE)
    by_file, by_array = segment(tmp_path / "x.nii"), segment(array, affine=affine)
    assert np.array_equal(by_file.mask, by_array.mask)
    assert by_array.spacing == by_file.spacing == (1.0, 1.0, 2.0)
    assert not np.array_equal(by_array.mask, segment(array, spacing=(1, 1, 2)).mask)  # it lay the other way


def test_what_an_array_does_not_say_is_assumed_with_a_note(caplog):
    plan = plan_of()
    assert as_volume(np.zeros((4, 5, 6)), plan).spacing == plan.spacing
    assert "is taken to lie on the grid of the training, 1.5 x 1.2 x 2 mm" in caplog.messages[-1]
    assert "along left to right, back to front, foot to head" in caplog.messages[-1]
    assert as_volume(np.zeros((4, 5, 6)), plan, spacing=(1, 2, 3)).spacing == (1, 2, 3)
    assert "its axes are taken to run as left to right, back to front, foot to head" in caplog.messages[-1]
    before = len(caplog.messages)
    as_volume(np.zeros((4, 5, 6)), plan, affine=np.eye(4))
    as_volume(np.zeros((8, 8), np.uint8), plan_2d())  # pixels have no size to know
    assert len(caplog.messages) == before


@pytest.mark.parametrize(
    ("placed", "message"),
    [
        ({"spacing": (1, 2)}, "expected 3 lengths in mm"),
        ({"spacing": (1, 2, -3)}, "expected 3 lengths in mm"),
        ({"spacing": "wide"}, "expected 3 lengths in mm"),
        ({"affine": np.zeros((4, 4))}, r"regular \(4, 4\) matrix"),
        ({"affine": np.eye(3)}, r"regular \(4, 4\) matrix"),
        ({"affine": np.eye(4), "spacing": (1, 1, 2)}, "give one of them"),
    ],
)
def test_a_place_that_cannot_be_is_refused(placed, message):
    with pytest.raises(UsageError, match=message):
        as_volume(np.zeros((4, 5, 6)), plan_of(), **placed)


def test_a_file_that_states_its_place_is_not_overruled():
    stated = Volume(np.zeros((1, 4, 5, 6)), (1.0, 1.0, 1.0), "mm", np.eye(4))
    with pytest.raises(UsageError, match="states its own spacing"):
        as_volume(stated, plan_of(), spacing=(2, 2, 2))


def test_the_channel_files_of_a_case_are_one_image(tmp_path):
    rng = np.random.default_rng(0)
    files = [tmp_path / f"a_000{n}.png" for n in range(2)]
    for file in files:
        Image.fromarray(rng.integers(0, 255, (8, 9), dtype=np.uint8)).save(file)
    volume = as_volume(files, plan_2d(2))
    assert [np.asarray(Image.open(file)).tolist() for file in files] == volume.array.tolist()
    assert np.array_equal(as_volume(tuple(map(str, files)), plan_2d(2)).array, volume.array)
    with pytest.raises(UsageError, match=r"1 channel; this model reads 2 .* segment\(\[\[file_0, file_1\]\]\)"):
        as_volume(files[0], plan_2d(2))


def test_a_list_in_a_list_is_a_case_and_other_lists_are_several_images(tmp_path):
    class Sum(Shifted):
        def forward(self, x):
            return x.sum(1, keepdim=True)

    segment = Segmenter(Sum(()), plan_2d(2), RECIPE)
    array = np.random.default_rng(0).integers(0, 255, (8, 9), dtype=np.uint8)
    files = [tmp_path / "0.png", tmp_path / "1.png"]
    for file in files:
        Image.fromarray(array).save(file)
    (one,) = segment([files])
    assert one.mask.shape == (8, 9)
    assert len(segment([files, files])) == 2
    assert len(segment([np.zeros((2, 8, 9)), np.zeros((2, 8, 9))])) == 2


def test_tensors_are_detached_and_converted():
    array = np.arange(48, dtype=np.float32).reshape(6, 8)
    for tensor in (
        torch.from_numpy(array).requires_grad_(),
        torch.from_numpy(array).bfloat16(),
        torch.from_numpy(array).half(),
        torch.from_numpy(array).int(),
    ):
        assert as_volume(tensor, plan_2d()).array.tolist() == array[None].tolist()


@pytest.mark.parametrize("bad", [torch.zeros(4, 4).to_sparse(), torch.zeros(4, 4, dtype=torch.complex64)])
def test_tensors_that_are_no_image_are_refused(bad):
    with pytest.raises(UsageError, match="give"):
        as_volume(bad, plan_2d())


@pytest.mark.parametrize("bad", [np.array([["a"]]), np.array([[None]]), np.zeros((4, 4), complex), {"image": 1}, None])
def test_arrays_that_are_no_numbers_are_refused(bad):
    with pytest.raises(UsageError, match="give integers or real numbers"):
        as_volume(bad, plan_2d())


def test_alpha_is_dropped_as_for_files(tmp_path, caplog):
    rgba = np.random.default_rng(0).integers(0, 255, (64, 48, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "x.png")
    assert np.array_equal(as_volume(rgba, plan_2d(3)).array, as_volume(tmp_path / "x.png", plan_2d(3)).array)
    assert "taken for alpha and dropped" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [((64, 64, 4), 1, " 4 channels; this model reads 1"), ((64, 64, 3), 1, " 3 channels"), ((5, 64, 60), 3, " 5 channels"),
     ((64, 64, 1), 3, " 1 channel;"), ((64,), 1, "2 spatial axes"), ((64, 64), 3, "2 spatial axes")],
)  # fmt: skip
def test_a_wrong_number_of_channels_is_named_rightly(shape, channels, message):
    with pytest.raises(UsageError, match=message):
        as_volume(np.zeros(shape), plan_2d(channels))


@pytest.mark.parametrize("worlds", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("spacing", [None, (2.0, 3.0)])
def test_an_array_for_slices_of_any_plane_lies_as_those_of_the_training(worlds, spacing):
    trained = {"worlds": list(worlds), "spacing": dict.fromkeys(("min", "median", "max"), (2.0, 3.0))}
    plan = make(spacing=(2.0, 3.0), unit="mm", orientation="RAS", fingerprint=trained)
    volume = as_volume(np.zeros((8, 9)), plan, spacing=spacing)
    assert world_of(volume.affine, 2) == worlds
    assert np.array_equal(np.abs(volume.affine[:3, :2]).sum(0), (2, 3)) and np.linalg.det(volume.affine)
    assert differences(volume, plan) == ()
    assert turn_of(volume, plan) == AS_STORED
