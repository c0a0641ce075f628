"""Objects of one structure: how touching ones are divided, and what a mask file, `evaluate` and Python have of them."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from pydantic import ValidationError
from scipy.ndimage import distance_transform_edt, gaussian_filter

import ulna
from tests.inference.test_predict import run_folder
from tests.plans import make
from ulna.cli import main as cli
from ulna.data.formats.read import read_labels
from ulna.data.formats.source import Source
from ulna.data.formats.write import write_labels
from ulna.data.layout.dataset import Dataset
from ulna.data.volume import Meta, Volume
from ulna.errors import UsageError
from ulna.inference.instances import Links, climbed, merged, number_objects, saddles
from ulna.inference.segmenter import Segmenter, network_for
from ulna.planning.choosing import choose
from ulna.planning.plan import plan_training, read_training_data
from ulna.recipe import Instances, Labels, Recipe, set_value, to_yaml
from ulna.system.files import Tensors, write_tensors, write_text

DEFAULT = Instances()


def discs(size, *circles):
    """A mask of balls: (centre, radius)."""
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
    away = [((grid - np.reshape(c, (-1,) + (1,) * len(size))) ** 2).sum(0) <= r**2 for c, r in circles]
    return np.any(away, axis=0)


def matched(numbers, *masks):
    """Whether each mask is an object of its own but for a rim: the IoU of the best."""
    found = []
    for mask in masks:
        best = np.bincount(numbers[mask]).argmax()
        same = numbers == best
        found.append((best, (same & mask).sum() / (same | mask).sum()))
    return len({best for best, _ in found}) == len(masks) and all(best and share > 0.9 for best, share in found)


@pytest.mark.parametrize("factor", [1, 3])
def test_discs_that_touch_are_divided_whatever_their_size(factor):
    circles = [((14, 12), 8), ((14, 26), 8), ((27, 19), 7)]
    circles = [((y * factor, x * factor), r * factor) for (y, x), r in circles]
    mask = discs((40 * factor, 40 * factor), *circles)
    numbers = number_objects(mask, DEFAULT)
    assert numbers.dtype == np.uint16 and set(np.unique(numbers)) == {0, 1, 2, 3}
    assert np.array_equal(numbers > 0, mask)
    assert matched(numbers, *(discs(mask.shape, one) for one in circles))


def test_what_is_long_or_bent_and_nowhere_thin_stays_one():
    rod, size = np.zeros((40, 60), bool), (60, 100)
    rod[10:18, 5:55] = True
    bow = discs(size, ((5, 50), 40)) & ~discs(size, ((5, 50), 30)) & (np.arange(60)[:, None] > 7)
    for mask in (rod, bow):
        assert number_objects(mask, DEFAULT).max() == 1


def test_the_depth_of_a_neck_decides():
    """Two discs, joined by a neck that is a third thinner than they are."""
    mask = discs((40, 60), ((20, 18), 10), ((20, 40), 10))
    mask[14:27, 18:40] = True
    found = [number_objects(mask, Instances(depth=depth)).max() for depth in (0.0, 0.1, 0.6)]
    assert found == [2, 2, 1]


def test_balls_of_a_volume_are_divided_by_its_spacing():
    """Slices are three times as far apart as voxels within them: without that, each ball is flat."""
    circles = [((15, 15, 12), 9), ((15, 15, 27), 9)]
    fine = discs((31, 31, 40), *circles)
    numbers = number_objects(fine[1::3], DEFAULT, (3.0, 1.0, 1.0))
    assert numbers.max() == 2
    assert matched(numbers, *(discs(fine.shape, one)[1::3] for one in circles))
    assert np.array_equal(number_objects(fine[1::3], DEFAULT, (0.3, 0.1, 0.1)), numbers), "lengths have no unit"


def test_an_object_at_the_edge_of_the_image_goes_on_there():
    """A border at the edge would divide nothing here, but it would make half a disc of half the height."""
    mask = discs((20, 44), ((0, 12), 10), ((0, 30), 10))
    assert matched(number_objects(mask, DEFAULT), mask & (np.arange(44) < 21), mask & (np.arange(44) >= 22))
    assert number_objects(np.ones((6, 7), bool), DEFAULT).max() == 1


def test_small_objects_are_left_out_and_numbers_have_no_gap():
    mask = discs((30, 60), ((15, 10), 8), ((15, 50), 8))
    mask[3, 30] = mask[27, 30:33] = True
    assert number_objects(mask, DEFAULT).max() == 4
    kept = number_objects(mask, Instances(smallest=4))
    assert sorted(np.unique(kept)) == [0, 1, 2] and not kept[3, 30] and not kept[27, 30:33].any()
    assert kept[15, 10] == 1 and kept[15, 50] == 2
    assert number_objects(np.zeros((4, 5), np.uint8), DEFAULT).max() == 0


def by_hand(heights, mask, depth):
    """The same watershed voxel by voxel: sets of voxels, one an object."""
    near = {}
    voxels = [tuple(v) for v in np.argwhere(mask).tolist()]
    for v in voxels:
        near[v] = [u for u in voxels if u != v and max(abs(a - b) for a, b in zip(u, v, strict=True)) == 1]
    order = {v: (heights[v], v) for v in voxels}

    def peak(v):
        above = max(near[v], key=order.get, default=v)
        return v if order[above] <= order[v] else peak(above)

    owner = {v: peak(v) for v in voxels}
    ways = {}
    for v in voxels:
        for u in near[v]:
            if owner[u] != owner[v]:
                pair = frozenset((owner[u], owner[v]))
                ways[pair] = max(ways.get(pair, 0), min(heights[u], heights[v]))
    for pair, height in sorted(ways.items(), key=lambda way: (-way[1], sorted(way[0]))):
        ends = sorted({owner[v] for v in pair}, key=lambda p: (-heights[p], p))
        if len(ends) == 2 and heights[ends[1]] - height <= depth * heights[ends[1]]:
            owner = {v: ends[0] if top == ends[1] else top for v, top in owner.items()}
    return {frozenset(v for v in voxels if owner[v] == top) for top in owner.values()}


@pytest.mark.parametrize("size", [(11, 13), (5, 6, 7)])
@pytest.mark.parametrize("depth", [0.0, 0.15, 0.5, 1.0])
def test_the_watershed_is_that_by_hand(size, depth):
    rng = np.random.default_rng(len(size))
    for _ in range(4):
        mask = rng.random(size) < 0.75
        heights = gaussian_filter(distance_transform_edt(mask), 0.6) + 0.01 * rng.random(size)
        of_mask, links = heights[mask], Links(mask)
        peaks, of_peak = climbed(of_mask, links)
        names = merged(of_mask[peaks], *saddles(of_mask, links, of_peak), depth)
        voxels = np.argwhere(mask)
        found = {frozenset(map(tuple, voxels[names[of_peak] == n].tolist())) for n in range(names.max() + 1)}
        assert found == by_hand(heights, mask, depth)


def test_panoptic_quality_rises_over_connected_components():
    """Discs that were thrown at random, many of which touch: the objects that were meant are found."""
    objects = pytest.importorskip("ulna.evaluation.objects", reason="these scores are not there yet")
    rng = np.random.default_rng(0)
    reference = np.zeros((140, 140), np.uint16)
    for number in range(1, 81):
        one = discs(reference.shape, (rng.integers(8, 132, 2), rng.integers(6, 10)))
        if np.count_nonzero(reference[one]) < 0.1 * one.sum():
            reference[one & (reference == 0)] = number
    found = number_objects(reference > 0, DEFAULT)

    def quality(numbers):
        return objects.object_scores(objects.match_objects(numbers, reference))["pq"]

    assert quality(found) > 0.95 > 0.6 > quality(objects.objects_of(reference > 0))


# files


@pytest.fixture
def bright(monkeypatch):
    """What every network says here: all that is bright."""
    monkeypatch.setattr(Segmenter, "mask", lambda self, volume: (volume.array[0] > 100).astype(np.uint8))


PAIR = discs((37, 50), ((18, 14), 8), ((18, 30), 9))


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray((200 * PAIR).astype(np.uint8)).save(folder / "a.png")
    tifffile.imwrite(folder / "b.tif", (200 * PAIR[::-1]).astype(np.uint8))
    return folder


def test_a_mask_file_holds_the_numbers_and_is_scored_as_the_structure(bright, pictures, tmp_path):
    run = run_folder(tmp_path / "run", 0, mask_values=(0, 255))
    made = ulna.predict(run, pictures, out=tmp_path / "masks", instances=True)
    assert not made.failed
    with Image.open(tmp_path / "masks" / "a.png") as picture:
        a = np.array(picture)
    b = tifffile.imread(tmp_path / "masks" / "b.tif")
    assert a.dtype == b.dtype == np.uint16
    for numbers, mask in ((a, PAIR), (b, PAIR[::-1])):
        assert sorted(np.unique(numbers)) == [0, 1, 2] and np.array_equal(numbers > 0, mask)
    assert json.loads((tmp_path / "masks" / "predict.json").read_text())["instances"] is True

    references = tmp_path / "references"
    references.mkdir()
    for name, mask in (("a", PAIR), ("b", PAIR[::-1])):
        Image.fromarray((255 * mask).astype(np.uint8)).save(references / f"{name}.png")
    assert ulna.evaluate(tmp_path / "masks", references).summary["mean"]["dice"]["mean"] == 1.0
    page = ulna.predict(run, pictures, out=tmp_path / "masks", instances=True, report=True).report
    assert "no picture" not in page.read_text()


def test_numbered_masks_are_scored_against_numbered_references_by_their_numbers(bright, pictures, tmp_path):
    """The two discs touch: as components they are one, that finds one of two."""
    (tmp_path / "data" / "labels").mkdir(parents=True)
    shutil.copytree(pictures, tmp_path / "data" / "images")
    (tmp_path / "data" / "classes.json").write_text('{"labels": {"1": "cell"}, "instances": true}')
    left = discs(PAIR.shape, ((18, 14), 8))
    numbers = np.where(PAIR, 900, 0) - 893 * left
    for name, which in (("a", numbers), ("b", numbers[::-1])):
        Image.fromarray(which.astype(np.uint16)).save(tmp_path / "data" / "labels" / f"{name}.png")
    run = run_folder(tmp_path / "run", 0, labels=Labels(names=("background", "cell")))
    found = {}
    for instances in (False, True):
        masks = tmp_path / f"masks{instances}"
        ulna.predict(run, pictures, out=masks, instances=instances)
        scored = ulna.evaluate(masks, tmp_path / "data", metrics=["lesions"])
        found[instances] = scored.summary["mean"]["pq"]["mean"]
        assert scored.summary["mean"]["dice"]["mean"] == 1.0
    assert found[True] > 0.9
    assert found[False] < 0.5
    lone = ulna.evaluate(tmp_path / "masksTrue", tmp_path / "masksFalse", metrics=["lesions"])  # components there
    assert lone.summary["mean"]["pq"]["mean"] < 0.5


def test_objects_and_classes_of_one_folder_are_told_apart(bright, pictures, tmp_path):
    run = run_folder(tmp_path / "run", 0)
    ulna.predict(run, pictures, out=tmp_path / "masks")
    with pytest.raises(UsageError, match="--overwrite"):
        ulna.predict(run, pictures, out=tmp_path / "masks", instances=True)
    ulna.predict(run, pictures, out=tmp_path / "masks", instances=True, overwrite=True)
    again = ulna.predict(run, pictures, out=tmp_path / "masks", instances=True)
    assert set(again.skipped) == {"a", "b"}


def test_in_python_a_result_has_its_objects_beside_its_mask(bright, pictures, tmp_path):
    run = run_folder(tmp_path / "run", 0)
    image = Volume((200 * PAIR[None]).astype(np.float32), (1.0, 1.0))
    assert ulna.load(run).segment(image).objects is None
    result = ulna.load(run, instances=True).segment(image)
    assert result.mask.max() == 1 and result.objects.max() == 2 and "2 objects" in repr(result)
    assert np.array_equal(result.in_file(), result.objects)


def test_several_runs_number_objects_also_over_mirrored_copies(tmp_path):
    runs = [run_folder(tmp_path / name, 0) for name in "ab"]
    mirrored = ulna.load(runs, instances=True).mirrored()
    assert mirrored.instances == DEFAULT and mirrored.recipe.inference.tta


def volumes_run(folder):
    plan = make(spatial_dims=3, strides=((2, 2, 2),), patch=(8, 8, 8))
    recipe = Recipe(model="unet").replaced(architecture={"channels": (4, 8), "strides": plan.strides})
    network = network_for(recipe, plan, torch.Generator().manual_seed(0))
    write_text(folder / "recipe.yaml", to_yaml(recipe))
    write_text(folder / "plan.yaml", to_yaml(plan))
    write_tensors(folder / "weights.safetensors", Tensors(dict(network.state_dict()), {}))
    return folder


def test_volumes_and_npz_have_numbers_too(bright, tmp_path):
    run = volumes_run(tmp_path / "run")
    folder = tmp_path / "volumes"
    folder.mkdir()
    balls = discs((20, 20, 34), ((9, 9, 9), 7), ((9, 9, 22), 7))
    nib.save(nib.Nifti1Image((200 * balls).astype(np.float32), np.diag([1, 1, 1, 1.0])), folder / "v.nii.gz")
    assert not ulna.predict(run, folder, out=tmp_path / "masks", instances=True).failed
    numbers = np.asarray(nib.load(tmp_path / "masks" / "v.nii.gz").dataobj)
    assert numbers.dtype == np.uint16 and sorted(np.unique(numbers)) == [0, 1, 2]
    rows = tmp_path / "rows.npz"
    np.savez(rows, images=(200 * np.stack([PAIR, discs(PAIR.shape, ((18, 14), 8))])).astype(np.uint8))
    flat = run_folder(tmp_path / "flat", 0)
    ulna.predict(flat, rows, out=tmp_path / "npz", instances=True)
    with np.load(tmp_path / "npz" / "rows.npz") as found:
        assert found["masks"].dtype == np.uint16 and found["masks"].max((1, 2)).tolist() == [2, 1]


@pytest.mark.parametrize("size", [(300, 320), (5, 160, 180)])
def test_more_objects_than_16_bits_count_go_into_tiff_and_not_into_png(tmp_path, size):
    numbers = np.arange(np.prod(size), dtype=np.uint32).reshape(size)
    like = Volume(np.zeros((1, *size), np.uint8), (1.0,) * len(size), meta=Meta(format="tiff", suffix=".tif"))
    path = write_labels(tmp_path / "many", numbers, like, keep_type=True)
    found = read_labels(Source(path), len(size)).array[0]
    assert np.array_equal(found, numbers)
    if len(size) == 2:
        png = Volume(like.array, like.spacing, meta=Meta(format="raster", suffix=".png"))
        with pytest.raises(UsageError, match="a PNG numbers 65,535 at most; save the image as TIFF"):
            write_labels(tmp_path / "many", numbers, png, keep_type=True)


# what is refused, and the recipe


def test_numbers_of_dicom_go_into_nifti_alone(bright, tmp_path):
    dicom = pytest.importorskip("tests.dicom_series", reason="pydicom is not installed (extra dicom)")
    balls = discs((12, 20, 34), ((6, 9, 9), 6), ((6, 9, 20), 6))
    dicom.write_series(tmp_path / "study" / "ct", (200 * balls).astype(np.int16), step=1.0)
    run = volumes_run(tmp_path / "run")
    for formats in ([], ["seg"], ["nifti", "rtstruct"]):
        with pytest.raises(UsageError, match="not written as DICOM; write them with --format nifti"):
            ulna.predict(run, tmp_path / "study", out=tmp_path / "masks", instances=True, format=formats)
        assert not (tmp_path / "masks").exists()
    made = ulna.predict(run, tmp_path / "study", out=tmp_path / "masks", instances=True, format=["nifti"])
    (row,) = made.cases
    numbers = np.asarray(nib.load(tmp_path / "masks" / row["file"]).dataobj)
    assert numbers.max() == 2 and np.count_nonzero(numbers) == balls.sum()
    result = ulna.load(run, instances=True)(tmp_path / "study" / "ct")
    with pytest.raises(UsageError, match="not written as DICOM"):
        result.save(tmp_path / "mask")


def test_several_structures_are_refused_before_anything_is_written(bright, pictures, tmp_path, capsys):
    run = run_folder(tmp_path / "run", 0, labels=Labels(names=("background", "x", "y")))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["predict", str(run), str(pictures), "--out", str(tmp_path / "masks"), "--instances"])
    assert "numbers the objects of one structure, and these labels name x, y" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()


def test_a_training_on_several_structures_refuses_the_field(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        labels = np.repeat([[0], [1], [2], [0]], 8, 0).repeat(32, 1).astype(np.uint8)
        Image.fromarray(labels).save(tmp_path / "labels" / f"{number}.png")
        Image.fromarray(rng.integers(0, 255, labels.shape, np.uint8)).save(tmp_path / "images" / f"{number}.png")
    recipe = choose(model="unet", recipe=None, set=("inference.instances=true",))
    data = read_training_data(Dataset.from_folder(tmp_path), recipe.training)
    with pytest.raises(UsageError, match=r"inference\.instances: numbers the objects of one structure"):
        plan_training(data, recipe)


def test_the_field_is_off_by_default_and_set_whole_or_in_parts():
    assert Recipe().inference.instances is None
    assert set_value(Recipe(), "inference.instances=true").inference.instances == Instances()
    assert set_value(Recipe(), "inference.instances={smallest: 20}").inference.instances == Instances(smallest=20)
    part = set_value(Recipe(), "inference.instances.depth=0.2")
    assert part.inference.instances == Instances(depth=0.2)
    assert set_value(part, "inference.instances=false").inference.instances is None
    with pytest.raises(UsageError, match=r"inference\.instances\.dept"):
        set_value(Recipe(), "inference.instances.dept=0.2")
    with pytest.raises(ValidationError):
        Instances(smooth=-1)


def test_a_run_whose_recipe_says_so_numbers_by_itself(bright, pictures, tmp_path):
    run = run_folder(tmp_path / "run", 0)
    text = (run / "recipe.yaml").read_text()
    assert "  instances: null\n" in text
    (run / "recipe.yaml").write_text(text.replace("  instances: null\n", "  instances: {depth: 0.9}\n"))
    ulna.predict(run, pictures, out=tmp_path / "masks")
    with Image.open(tmp_path / "masks" / "a.png") as picture:
        assert sorted(np.unique(np.array(picture))) == [0, 1], "so deep is no neck"
