import nibabel as nib
import numpy as np
import pytest
import torch

from tests.plans import make
from ulna.data.formats.read import read_image
from ulna.data.formats.source import Source
from ulna.data.pipeline.normalising import normalise_channel
from ulna.data.pipeline.preprocess import differences, normalised_on, prepare, prepare_labels, restored
from ulna.data.pipeline.whitening import fit_whitening, whiten
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.recipe import Normalization

CPU = torch.device("cpu")
NONE = (Normalization(kind="none"),)


def volume(size=(6, 8, 5), spacing=(1.0, 1.0, 2.0), channels=1, seed=0):
    array = np.random.default_rng(seed).normal(100, 20, (channels, *size)).astype(np.float32)
    return Volume(array, spacing, "mm", np.diag([*spacing, 1.0]))


def back(prepared, heights=None):
    """Back from the grid, in slabs of some heights."""
    maps = prepared.image
    slabs = maps.split(heights or maps.shape[1], dim=1)
    return torch.cat([slab.clone() for slab in restored(slabs, prepared)], dim=1)


def test_on_the_grid_of_the_plan_nothing_is_resampled():
    v = volume()
    prepared = prepare(v, make(spatial_dims=3, spacing=v.spacing, unit="mm", normalization=NONE))
    assert torch.equal(prepared.image, torch.from_numpy(v.array))
    assert torch.equal(back(prepared), torch.from_numpy(v.array))


def test_an_image_that_is_linear_comes_back_as_it_was():
    """Up to the border, where a coarser grid has no neighbour to go between."""
    ramp = np.linspace(0, 1, 24, dtype=np.float32)[None, :, None, None] * np.ones((1, 24, 6, 10), np.float32)
    v = Volume(ramp, (1.0, 2.0, 1.0), "mm")
    for spacing in ((2.0, 1.0, 0.7), (0.5, 2.0, 1.0), (1.3, 3.0, 2.5)):
        prepared = prepare(v, make(spatial_dims=3, spacing=spacing, unit="mm", normalization=NONE))
        inside = slice(3, -3)
        torch.testing.assert_close(back(prepared, 3)[:, inside], torch.from_numpy(ramp)[:, inside], atol=1e-5, rtol=0)


def test_labels_are_resampled_by_nearest_neighbour():
    labels = np.zeros((4, 4), np.uint8)
    labels[2:] = 7
    plan = make(spacing=(0.5, 0.5), unit="mm")
    image = Volume(labels[None], (1.0, 1.0), "mm")
    bigger = prepare_labels(labels, image, plan)
    assert bigger.shape == (8, 8)
    assert bigger.unique().tolist() == [0, 7]
    assert torch.equal(bigger[4:], torch.full((4, 8), 7, dtype=torch.uint8))
    two = np.stack([labels > 0, labels == 0]).astype(np.uint8)
    assert prepare_labels(two, image, plan).shape == (2, 8, 8)


def test_normalisations_are_their_formulas():
    x = np.array([[0.0, 50.0, 100.0, 1000.0]], np.float32)
    z = normalise_channel(x, Normalization(kind="zscore"))
    assert (z.mean(), z.std()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-6))
    ct = normalise_channel(x, Normalization(kind="ct", low=10, high=100, mean=40, std=20))
    np.testing.assert_allclose(ct, [[-1.5, 0.5, 3.0, 3.0]])
    np.testing.assert_allclose(normalise_channel(x, Normalization(kind="rescale", low=0, high=100)), x / 100)
    assert normalise_channel(x, Normalization(kind="none")) is x


def test_a_constant_image_becomes_zero_and_not_nan():
    assert not normalise_channel(np.full((4, 4), 9.0, np.float32), Normalization(kind="zscore")).any()


def test_zscore_of_huge_values_does_not_overflow():
    x = np.random.default_rng(0).uniform(0, 1.7e6, (64, 64)).astype(np.float32) * 1e18
    assert abs(normalise_channel(x, Normalization(kind="zscore")).mean()) < 1e-4


def test_whitening_decorrelates_the_channels_of_all_voxels_and_is_symmetric():
    rng = np.random.default_rng(0)
    mix = np.array([[1.0, 0.2, 0.5], [0.0, 2.0, 1.0], [0.3, 0.0, 0.7]])
    images = [torch.from_numpy((mix @ rng.normal(3, 1, (3, n))).reshape(3, n // 4, 4)).float() for n in (400, 240)]
    how = fit_whitening(images)
    voxels = np.concatenate([image.flatten(1).numpy() for image in images], axis=1).astype(np.float64)
    W = np.array(how.matrix)
    np.testing.assert_allclose(how.mean, voxels.mean(1), rtol=1e-6)
    np.testing.assert_allclose(W, W.T)
    np.testing.assert_allclose(W @ np.cov(voxels, bias=True) @ W.T, np.eye(3), atol=1e-5)
    white = whiten(images[0], how)
    assert white.shape == images[0].shape
    literal = W @ (images[0][:, 7, 2].numpy() - np.array(how.mean))
    np.testing.assert_allclose(white[:, 7, 2], literal, atol=1e-5)


def test_whitening_of_two_channels_by_hand():
    x = torch.tensor([[1.0, -1.0, 1.0, -1.0], [2.0, 2.0, -2.0, -2.0]]).reshape(2, 2, 2)
    how = fit_whitening([x + 5])  # uncorrelated, variances 1 and 4
    assert how.mean == pytest.approx((5, 5))
    np.testing.assert_allclose(how.matrix, [[1, 0], [0, 0.5]], atol=1e-5)


def test_a_channel_that_never_changes_stays_finite():
    assert whiten(torch.ones(2, 3, 3), fit_whitening([torch.ones(2, 3, 3)])).abs().max() == 0


def test_an_image_is_whitened_after_it_is_normalised():
    v = volume(channels=2)
    both = (Normalization(kind="zscore"),) * 2
    plain = make(spatial_dims=3, in_channels=2, channel_names=("a", "b"), normalization=both)
    normalised = prepare(v, plain).image
    how = fit_whitening([normalised])
    assert torch.equal(prepare(v, plain.replaced(whitening=how)).image, whiten(normalised, how))


@pytest.mark.parametrize(
    ("v", "message"),
    [(volume(channels=2), "2 channels; this model reads 1"), (Volume(np.zeros((1, 4, 4)), (1.0, 1.0)), "a 2D image")],
)
def test_an_image_that_does_not_fit_the_plan_is_refused(v, message):
    with pytest.raises(UsageError, match=message):
        prepare(v, make(spatial_dims=3, normalization=NONE))


def test_a_grid_in_mm_needs_an_image_that_states_its_spacing():
    plan = make(spacing=(0.5, 0.5), unit="mm", normalization=NONE)
    with pytest.raises(UsageError, match="its spacing is in px"):
        prepare(Volume(np.zeros((1, 8, 8), np.float32), (1.0, 1.0)), plan)


def test_where_all_training_images_had_one_spacing_an_image_without_is_one_more_of_them():
    one = {"spacing": {"min": [0.5, 0.5], "median": [0.5, 0.5], "max": [0.5, 0.5]}}
    plan = make(spacing=(0.5, 0.5), unit="mm", normalization=NONE, fingerprint=one)
    image = Volume(np.random.default_rng(0).normal(size=(1, 8, 8)).astype(np.float32), (1.0, 1.0))
    assert torch.equal(prepare(image, plan).image, torch.from_numpy(image.array))
    assert "states no spacing; it is taken to have that of all training images" in differences(image, plan)[0]


def test_a_plan_in_pixels_takes_an_image_in_mm_pixel_by_pixel_and_says_so():
    plan = make(spacing=(1.0, 1.0), normalization=NONE)
    image = Volume(np.random.default_rng(0).normal(size=(1, 8, 8)).astype(np.float32), (0.2, 0.2), "mm")
    assert torch.equal(prepare(image, plan).image, torch.from_numpy(image.array))
    assert "its pixels and axes are taken as stored" in differences(image, plan)[0]


def test_a_spacing_beyond_those_of_the_training_is_noted_and_one_within_them_is_not():
    seen = {"spacing": {"min": [1.0, 1.0, 1.0], "median": [1.0, 1.0, 2.0], "max": [1.0, 1.0, 3.0]}}
    plan = make(spatial_dims=3, spacing=(1.0, 1.0, 2.0), unit="mm", normalization=NONE, fingerprint=seen)
    assert differences(volume(spacing=(1.0, 1.04, 2.9)), plan) == ()
    (note,) = differences(volume(spacing=(1.0, 1.0, 4.0)), plan)
    assert "has a spacing of 1 x 1 x 4 mm, the training images 1 x 1 x 1 mm to 1 x 1 x 3 mm" in note
    assert differences(volume(spacing=(1.0, 1.0, 4.0)), plan.replaced(format=1)) == ()


def test_an_oriented_plan_refuses_a_file_that_does_not_say_how_it_lies():
    plan = make(spatial_dims=3, spacing=(1.0, 1.0, 2.0), unit="mm", normalization=NONE, orientation="RAS")
    with pytest.raises(UsageError, match="states no orientation"):
        prepare(Volume(volume().array, (1.0, 1.0, 2.0), "mm"), plan)


def test_an_orientation_that_is_only_assumed_is_noted(tmp_path):
    plan = make(spatial_dims=3, spacing=(1.0, 1.0, 2.0), unit="mm", normalization=NONE, orientation="RAS")
    array = np.zeros((4, 5, 6), np.float32)
    for code, noted in ((0, True), (1, False)):
        image = nib.Nifti1Image(array, None)
        image.header.set_zooms((1, 1, 2))
        image.header.set_xyzt_units("mm")
        if code:
            image.set_sform(np.diag([1.0, 1.0, 2.0, 1.0]), code)
        nib.save(image, tmp_path / "x.nii")
        notes = differences(read_image([Source(tmp_path / "x.nii")]), plan)
        assert any("states no orientation; LAS is assumed" in note for note in notes) == noted


@pytest.mark.parametrize(
    ("header", "oriented"),
    [("TransformMatrix = 1 0 0 0 1 0 0 0 1\n", True), ("", False), ("CenterOfRotation = 0 0 0\n", False)],
)
def test_a_metaimage_says_whether_it_has_an_orientation(tmp_path, header, oriented):
    head = f"ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\n{header}ElementSpacing = 1 1 1\nElementType = MET_UCHAR\n"
    (tmp_path / "x.mha").write_bytes(f"{head}ElementDataFile = LOCAL\n".encode() + bytes(24))
    assert read_image([Source(tmp_path / "x.mha")]).meta.oriented == oriented


def test_spacing_and_labels_follow_the_turn():
    """The plan's 3 mm are from foot to head, whatever axis of the file that is."""
    plan = make(spatial_dims=3, spacing=(1.0, 1.0, 3.0), unit="mm", normalization=NONE, orientation="RAS")
    affine = np.array([(0, 2.0, 0, 0), (0, 0, -1.0, 0), (3.0, 0, 0, 0), (0, 0, 0, 1)])  # S, R, P
    array = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    image = Volume(array, (3.0, 2.0, 1.0), "mm", affine)
    prepared = prepare(image, plan)
    assert prepared.size == (5, 6, 4)
    assert prepared.image.shape == (1, 10, 6, 4)
    labels = (array[0] > 0).astype(np.uint8)
    straight = np.flip(labels.transpose(1, 2, 0), 1)
    assert np.array_equal(prepare_labels(labels, image, plan)[::2].numpy(), straight)


def test_values_that_are_not_finite_are_refused():
    array = np.zeros((1, 4, 4), np.float32)
    array[0, 0, :2] = np.nan, np.inf
    with pytest.raises(UsageError, match="2 values are NaN or infinite"):
        prepare(Volume(array, (1.0, 1.0)), make())


@pytest.mark.parametrize(
    "stored", ["uint8", "int8", "int16", "uint16", ">i2", "int32", "float32", "float64", "read-only"]
)
@pytest.mark.parametrize("how", ["zscore", "ct", "rescale", "none"])
def test_what_a_gpu_normalises_is_what_a_cpu_does(stored, how):
    """The operations that a GPU gets, on the CPU: also of flipped axes, and of values that may not be written to."""
    dtype = "int16" if stored == "read-only" else stored
    values = np.random.default_rng(0).integers(-100, 100, (2, 9, 10, 11)).astype(dtype)[:, ::-1].transpose(0, 2, 1, 3)
    if stored == "read-only":
        values = np.ascontiguousarray(values)
        values.flags.writeable = False
    one = {"kind": how, "low": -50.0, "high": 70.0, "mean": 3.0, "std": 20.0}
    plan = make(spatial_dims=3, in_channels=2, channel_names=("a", "b"), normalization=(Normalization(**one),) * 2)
    volume = Volume(values, (1.0,) * 3)
    before = values.copy()
    made = normalised_on(torch.device("cpu"), values, plan, "x")
    torch.testing.assert_close(made, prepare(volume, plan).image, atol=2e-6, rtol=1e-6)
    assert made.dtype == torch.float32
    assert np.array_equal(values, before)


def test_what_a_gpu_finds_not_finite_is_told_as_by_a_cpu():
    values = np.zeros((1, 3, 4), np.float32)
    values[0, 1, 2] = np.nan
    plan = make()
    for call in (lambda: prepare(Volume(values, (1.0, 1.0)), plan), lambda: normalised_on(CPU, values, plan, "image")):
        with pytest.raises(UsageError, match="image: 1 values are NaN or infinite; replace them"):
            call()
