"""Data sets: layouts, declared classes, splits; and all faults of a folder at once."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.places import SHARED
from ulna.data.layout.dataset import Dataset, split, split_hash
from ulna.data.layout.masks import find_masks
from ulna.errors import DataError, UsageError
from ulna.recipe import Labels, Split


def png(path, value=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full((4, 5), value, np.uint8) if value is not None else np.arange(20, dtype=np.uint8).reshape(4, 5)
    Image.fromarray(values).save(path)


def pairs(root, ids, **files):
    for case in ids:
        png(root / "images" / f"{case}.png")
        png(root / "labels" / f"{case}.png", 1)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (root / f"{name}.json").write_text(text, encoding="utf-8")
    return root


def decathlon(root, cases, **about):
    for case in cases:
        png(root / "imagesTr" / f"{case}.png")
        png(root / "labelsTr" / f"{case}.png", 1)
    listed = [{"image": f"./imagesTr/{case}.png", "label": f"./labelsTr/{case}.png"} for case in cases]
    about = {"training": listed, "labels": {"0": "background", "1": "liver"}, "modality": {"0": "CT"}, **about}
    (root / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
    return root


def faults(path, **options):
    with pytest.raises(DataError) as caught:
        Dataset.from_folder(path, **options)
    return caught.value.problems, str(caught.value)


NINE = [f"c{number}" for number in range(9)]


# pairs


def test_pairs_are_matched_by_name_whatever_the_extension(tmp_path):
    root = pairs(tmp_path, ["b", "a"])
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(root / "images" / "c.jpg")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(root / "labels" / "c.bmp")
    (root / "README.md").write_text("about")
    (root / ".hidden").write_text("")
    (root / "images" / "Thumbs.db").write_text("")
    dataset = Dataset.from_folder(root)
    assert [case.id for case in dataset.cases] == ["a", "b", "c"] and dataset.layout == "pairs"
    assert dataset.case("c").label.path.name == "c.bmp" and dataset.notes == () and dataset.labels is None
    assert dataset.case("a").read_image().size == (4, 5) and dataset.case("a").read_labels().array.max() == 1
    with pytest.raises(UsageError, match="no case named 'aa'; did you mean 'a'"):
        dataset.case("aa")


def test_numbered_files_are_channels_where_the_label_says_so(tmp_path):
    for number in range(2):
        for channel in range(3):
            png(tmp_path / "images" / f"p_{number}_{channel:04d}.png")
        png(tmp_path / "labels" / f"p_{number}.png", 1)
    dataset = Dataset.from_folder(tmp_path)
    assert [case.id for case in dataset.cases] == ["p_0", "p_1"]
    assert [source.path.name for source in dataset.cases[1].images] == [f"p_1_{c:04d}.png" for c in range(3)]
    assert dataset.cases[0].read_image().channels == 3
    (tmp_path / "images" / "p_1_0001.png").unlink()
    assert "p_1: has no file for channel 0001; add the file" in faults(tmp_path)[1]


def test_numbered_frames_with_labels_of_their_own_are_cases(tmp_path):
    dataset = Dataset.from_folder(pairs(tmp_path, ["frame_0000", "frame_0001"]))
    assert [case.id for case in dataset.cases] == ["frame_0000", "frame_0001"]


def test_all_faults_of_a_folder_come_at_once(tmp_path):
    root = pairs(tmp_path, ["a", "b", "c"], splits={"train": ["a", "x"], "val": ["a", "b.png"]}, classes="{broken")
    (root / "labels" / "b.png").unlink()
    (root / "images" / "c.png").unlink()
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(root / "images" / "a.bmp")
    (root / "images" / "d.mhd").write_text("x")
    problems, message = faults(root)
    for text in [
        "b.png: has no label map labels/b.*; add the label map",
        "c.png: has no image images/c.*; add the image",
        "has the name of a.",
        "d.mhd: has the extension '.mhd', which is not read; convert it",
        "classes.json: is not valid JSON (line 1, column 2",
        "'x', which is no case of the data set; take the id out",
        "'b.png', which is no case of the data set; write ids without extension",
        "'a' stands in train and in val; keep it in one set",
    ]:
        assert text in message
    assert len(problems) == 8 and f"{root}: 8 problems" in message


def test_a_hundred_faults_of_one_kind_are_all_kept_and_twelve_printed(tmp_path):
    root = pairs(tmp_path, [f"c{number:03d}" for number in range(100)])
    shutil.rmtree(root / "labels")
    (root / "labels").mkdir()
    problems, message = faults(root)
    assert len(problems) == 100 and message.count("has no label map") == 12
    assert "88 more problems of this kind" in message


def test_unknown_folder_says_what_lies_there_and_shows_a_layout(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "a.dcm").write_text("x")
    message = faults(tmp_path)[1]
    assert "it holds scans/, 1 .dcm file" in message and "DATA/labels/CASE.png" in message
    assert "it holds nothing" in faults(tmp_path / "scans")[1]
    assert "does not exist; check the path" in faults(tmp_path / "nowhere")[1]
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    assert "holds no case" in faults(tmp_path)[1]


def test_extra_folders_and_keys_are_noted(tmp_path):
    root = pairs(tmp_path, ["a", "b"], splits={"train": ["a"], "val": ["b"], "seed": 1})
    (root / "instances").mkdir()
    notes = Dataset.from_folder(root).notes
    assert "instances/ is not read" in notes and "splits.json: seed not used" in notes


# prediction


def test_prediction_needs_no_labels(tmp_path):
    png(tmp_path / "flat" / "a.png")
    png(tmp_path / "flat" / "b.png")
    flat = Dataset.from_folder(tmp_path / "flat", need_labels=False)
    assert (flat.layout, [case.id for case in flat.cases], flat.labelled) == ("images", ["a", "b"], ())
    one = Dataset.from_folder(tmp_path / "flat" / "a.png", need_labels=False)
    assert (one.layout, len(one), one.cases[0].id) == ("image", 1, "a")
    root = pairs(tmp_path / "pairs", ["a", "b"], splits={"train": ["gone"]})
    (root / "labels" / "b.png").unlink()
    assert len(Dataset.from_folder(root, need_labels=False).labelled) == 1
    shutil.rmtree(root / "labels")
    assert len(Dataset.from_folder(root, need_labels=False)) == 2
    assert "is one file, not a data set" in faults(tmp_path / "flat" / "a.png")[1]
    assert "layout that is not known" in faults(tmp_path / "flat")[1]
    (tmp_path / "a.txt").write_text("x")
    assert "has the extension '.txt'" in faults(tmp_path / "a.txt", need_labels=False)[1]


@pytest.mark.parametrize(("channels", "cases"), [(None, ["p", "q"]), (2, ["p", "q"]), (1, None), (3, None)])
def test_channels_without_labels_are_told_by_regular_names(tmp_path, channels, cases):
    names = [f"{case}_{channel:04d}" for case in "pq" for channel in range(2)]
    for name in names:
        png(tmp_path / f"{name}.png")
    dataset = Dataset.from_folder(tmp_path, need_labels=False, channels=channels)
    assert [case.id for case in dataset.cases] == (cases or names)


def test_a_film_of_numbered_frames_is_not_one_case(tmp_path):
    for number in range(20):
        png(tmp_path / f"film_{number:04d}.png")
    assert len(Dataset.from_folder(tmp_path, need_labels=False)) == 20


# dataset.json


def test_decathlon_lists_its_cases(tmp_path):
    root = decathlon(tmp_path, ["b", "a"], numTraining=5, test=["./imagesTs/t.png"])
    png(root / "imagesTs" / "t.png")
    png(root / "imagesTr" / "spare.png")
    dataset = Dataset.from_folder(root)
    assert [case.id for case in dataset.cases] == ["a", "b", "t"] and len(dataset.labelled) == 2
    assert dataset.labels == Labels(names=("background", "liver")) and dataset.channel_names == ("CT",)
    assert "dataset.json says numTraining 5, lists 2 cases" in dataset.notes
    assert any("imagesTr holds 1 file that dataset.json does not list" in note for note in dataset.notes)


def test_decathlon_lies_are_told_at_once(tmp_path):
    root = decathlon(tmp_path / "data", ["a"])
    png(tmp_path / "outside.png")
    entries = [
        {"image": "./imagesTr/gone.png", "label": "./labelsTr/a.png"},
        {"image": "../outside.png", "label": "./labelsTr/a.png"},
        {"image": str(tmp_path / "outside.png"), "label": "./labelsTr/a.png"},
        {"image": "./imagesTr/a.png"},
        {"label": "./labelsTr/a.png"},
        "a",
        {"image": 7, "label": "./labelsTr/a.png"},
    ]
    decathlon(root, ["a"], training=entries, labels={"0": "background", "2": "liver"})
    message = faults(root)[1]
    assert "names ./imagesTr/gone.png, which does not exist" in message
    assert message.count("which lies outside the folder") == 2
    assert "has an entry without label" in message and message.count("has an entry that names no image") == 2
    assert "has 7 in place of a file name" in message
    assert "declares the label values [0, 2], which skip [1]" in message


def test_old_nnunet_lists_names_without_channel(tmp_path):
    root = decathlon(tmp_path, ["a"])
    (root / "imagesTr" / "a.png").rename(root / "imagesTr" / "a_0000.png")
    png(root / "imagesTr" / "a_0001.png")
    dataset = Dataset.from_folder(root)
    assert dataset.cases[0].id == "a" and len(dataset.cases[0].images) == 2


def nnunet(root, **about):
    for case in "ab":
        for channel in range(2):
            png(root / "imagesTr" / f"{case}_{channel:04d}.png")
        png(root / "labelsTr" / f"{case}.png", 1)
    about = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "tumour": 1, "edema": 2},
        "numTraining": 2,
        "file_ending": ".png",
        **about,
    }
    (root / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
    return root


def test_nnunet_finds_its_cases(tmp_path):
    root = nnunet(tmp_path)
    png(root / "imagesTs" / "t_0000.png")
    png(root / "imagesTs" / "t_0001.png")
    dataset = Dataset.from_folder(root)
    assert dataset.layout == "nnunet" and [case.id for case in dataset.cases] == ["a", "b", "t"]
    assert [len(case.images) for case in dataset.cases] == [2, 2, 2] and len(dataset.labelled) == 2
    assert dataset.labels.names == ("background", "tumour", "edema") and dataset.channel_names == ("T1", "T2")


@pytest.mark.parametrize(
    ("about", "text"),
    [
        ({"channel_names": {"0": "a", "1": "b", "2": "c"}}, "names 3 channels, imagesTr holds 2 files per case"),
        ({"file_ending": ".nii.gz"}, "says that files end in '.nii.gz', none does"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "gives one label value to two classes"),
        ({"labels": {"background": 0}}, "declares the background only"),
        ({"labels": {}}, "declares no classes"),
        ({"labels": {"a": "b"}}, "labels that name no values"),
        ({"labels": ["liver", "liver"]}, "gives the name 'liver' to two classes"),
        ({"mode": "overlap"}, "has the mode 'overlap'"),
    ],
)
def test_nnunet_lies(tmp_path, about, text):
    assert text in faults(nnunet(tmp_path, **about))[1]


def test_a_wrong_number_of_cases_is_a_note(tmp_path):
    notes = Dataset.from_folder(nnunet(tmp_path, numTraining=3)).notes
    assert "dataset.json says numTraining 3, imagesTr holds 2 cases" in notes


def test_listed_test_image_is_named_without_its_channel(tmp_path):
    root = decathlon(
        tmp_path, ["a"], test=["./imagesTs/t.png", {"image": ["imagesTs/u_0000.png", "imagesTs/u_0001.png"]}]
    )
    for name in ("t_0000", "t_0001", "u_0000", "u_0001"):
        png(root / "imagesTs" / f"{name}.png")
    dataset = Dataset.from_folder(root)
    assert [(case.id, len(case.images)) for case in dataset.cases] == [("a", 1), ("t", 2), ("u", 2)]


def test_absolute_paths_are_told_also_from_a_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    png(tmp_path / "other" / "x_0000.png")
    entry = {"image": str(tmp_path / "other" / "x.png"), "label": "./labelsTr/a.png"}
    decathlon(Path("data"), ["a"], training=[entry, {"image": "a\0.png", "label": "./labelsTr/a.png"}])
    message = faults(Path("data"))[1]
    assert "x.png, which lies outside the folder" in message and "in place of a file name" in message


def test_broken_dataset_json_does_not_hide_other_faults(tmp_path):
    root = pairs(tmp_path, ["a"], dataset='{"labels": ')
    (root / "labels" / "a.png").unlink()
    message = faults(root)[1]
    assert "dataset.json: is not valid JSON" in message and "has no label map" in message


@pytest.mark.parametrize(
    ("declared", "names", "multilabel"),
    [
        ({"1": "liver", "2": "tumour"}, ("background", "liver", "tumour"), False),
        (["liver"], ("background", "liver"), False),
        (["Background", "liver"], ("Background", "liver"), False),
        ({"mode": "multilabel", "labels": ["disc", "cup"]}, ("disc", "cup"), True),
        ({"mode": "multilabel", "1": "disc", "2": "cup"}, ("disc", "cup"), True),
        ({"mode": "multilabel", "labels": {"0": "disc", "1": "cup"}}, ("disc", "cup"), True),
    ],
)
def test_classes_json(tmp_path, declared, names, multilabel):
    labels = Dataset.from_folder(pairs(tmp_path, ["a"], classes=declared)).labels
    assert (labels.names, labels.multilabel) == (names, multilabel)


@pytest.mark.parametrize(
    ("declared", "text"),
    [
        (
            {"255": "polyp"},
            """declares the label values [0, 255], which skip [1, 2, 3, 4, 5, 6, ...]; write {"1": "polyp"};""",
        ),
        ({"1": "a", "3": "b"}, "declares the label values [0, 1, 3], which skip [2]"),
        ({"-1": "a"}, "which skip below 0"),
        ({"99999999999": "a"}, "[0, 99999999999], which skip [1, 2, 3, 4, 5, 6, ...]"),
        ("[" + "9" * 5000 + "]", "classes.json: cannot be read"),
    ],
)
def test_classes_that_skip_values(tmp_path, declared, text):
    assert text in faults(pairs(tmp_path, ["a"], classes=declared))[1]


def test_ids_have_one_spelling(tmp_path):
    apart, whole = "e\u0301", "\u00e9"
    png(tmp_path / "images" / f"{apart}.png")
    png(tmp_path / "labels" / f"{whole}.png", 1)
    (tmp_path / "groups.json").write_text(json.dumps({apart: "p"}))
    (case,) = Dataset.from_folder(tmp_path).cases
    assert (case.id, case.group) == (whole, "p")


def test_an_image_beside_its_own_channels_is_told(tmp_path):
    root = pairs(tmp_path, ["A"])
    png(root / "images" / "A_0000.png")
    message = faults(root)[1]
    assert "A.png: stands beside A_0000.png, both would be the case 'A'; keep the one file" in message


def test_what_the_file_system_refuses_is_a_fault(tmp_path):
    (tmp_path / "images").write_text("a file in place of a folder")
    (tmp_path / "labels").mkdir()
    assert "images: cannot be read (Not a directory); check the path and its permissions" in faults(tmp_path)[1]
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "loop: " in faults(tmp_path / "loop")[1]


# masks


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0b"])
def test_ids_that_cannot_be_file_names(tmp_path, name):
    np.savez(
        tmp_path / "a.npz", images=np.zeros((2, 6, 5), np.uint8), masks=np.ones((2, 6, 5)), ids=np.array([name, "x"])
    )
    assert "which cannot be a file name; give it another id" in faults(tmp_path / "a.npz")[1]
    with pytest.raises(DataError, match="which cannot be a file name; give it another id"):
        find_masks(tmp_path / "a.npz")


def test_two_masks_of_one_id_are_a_fault(tmp_path):
    mask = np.zeros((2, 6, 5), np.uint8)
    np.savez(tmp_path / "rows.npz", masks=mask, ids=np.array(["a", "a"]))
    with pytest.raises(DataError, match=r"rows\.npz\[1\]: has the id 'a', as .*rows\.npz\[0\] has; keep one mask"):
        find_masks(tmp_path / "rows.npz")
    np.savez(tmp_path / "rows.npz", masks=mask, ids=np.array(["a", "x/b"]))
    with pytest.raises(DataError, match=r"has the id 'x/b', which cannot be a file name"):
        find_masks(tmp_path / "rows.npz")
    (tmp_path / "several").mkdir()
    for name in ("one", "two"):
        np.savez(tmp_path / "several" / f"{name}.npz", masks=mask, ids=np.array(["a", name]))
    with pytest.raises(DataError, match=r"two\.npz\[0\]: has the id 'a', as .*one\.npz\[0\] has"):
        find_masks(tmp_path / "several")
    png(tmp_path / "mixed" / "a.png", 1)
    np.savez(tmp_path / "mixed" / "rows.npz", masks=mask, ids=np.array(["a", "b"]))
    with pytest.raises(DataError, match=r"rows\.npz\[0\]: has the id 'a', as .*a\.png has"):
        find_masks(tmp_path / "mixed")


# npz


def arrays(path, count, **extra):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(count).integers(0, 200, (count, 6, 5)).astype(np.uint8)
    np.savez(path, images=pixels, masks=pixels > 100, **extra)
    return path


def test_npz_names_say_the_split(tmp_path):
    arrays(tmp_path / "train.npz", 5)
    arrays(tmp_path / "val.npz", 2, ids=np.array(["v1", "v2"]))
    arrays(tmp_path / "test_public.npz", 3)
    dataset = Dataset.from_folder(tmp_path)
    (given,) = dataset.given_splits
    assert given.train == tuple(f"train_{row:04d}" for row in range(5)) and given.val == ("v1", "v2")
    assert len(given.test) == 3 and len(dataset) == 10 and split(dataset, 0) == given
    assert dataset.case("v2").images[0].row == 1


def test_one_npz_brings_no_split(tmp_path):
    path = arrays(tmp_path / "train.npz", 10)
    for dataset in (Dataset.from_folder(path), Dataset.from_folder(tmp_path)):
        assert dataset.given_splits == () and dataset.layout == "npz"
        assert [len(getattr(split(dataset, 0), name)) for name in ("train", "val", "test")] == [8, 2, 0]


def test_one_npz_has_its_groups_and_split_beside_it(tmp_path):
    path = arrays(tmp_path / "all.npz", 4, ids=np.array(list("abcd")))
    (tmp_path / "groups.json").write_text(json.dumps(dict(zip("abcd", "ppqq", strict=True))))
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a", "b"], "val": ["c", "d"]}))
    dataset = Dataset.from_folder(path)
    assert [case.group for case in dataset.cases] == list("ppqq")
    assert split(dataset, 0) == Split(train=("a", "b"), val=("c", "d"))


def test_npz_faults_come_at_once(tmp_path):
    arrays(tmp_path / "train.npz", 2, ids=np.array(["a", "b"]))
    arrays(tmp_path / "val.npz", 2, ids=np.array(["b", "c"]))
    (tmp_path / "test.npz").write_bytes(b"nothing")
    np.savez(tmp_path / "more.npz", images=np.zeros((1, 6, 5), np.uint8))
    np.savez(tmp_path / "masks.npz", masks=np.zeros((1, 6, 5), np.uint8))
    message = faults(tmp_path)[1]
    assert "test.npz: is cut short or no npz file" in message and "more.npz: holds no `masks`" in message
    assert "has the id 'b', as" in message and "masks.npz: holds no `images`" in message


# splits


def test_a_given_split_wins_and_has_no_folds(tmp_path):
    given = {"train": ["c0", "c1"], "val": ["c2"], "test": ["c3"]}
    dataset = Dataset.from_folder(pairs(tmp_path, NINE, splits=given))
    assert split(dataset, 7) == Split(**given)
    assert any("leaves out 5 labelled cases" in note for note in dataset.notes)
    with pytest.raises(UsageError, match="brings one split, not folds; leave the fold out"):
        split(dataset, 7, fold=0)


def test_given_folds_are_chosen_by_number(tmp_path):
    folds = [{"train": NINE[3:], "val": NINE[:3]}, {"train": NINE[:6], "val": NINE[6:]}]
    dataset = Dataset.from_folder(pairs(tmp_path, NINE, splits=folds))
    assert split(dataset, 0) == split(dataset, 0, fold=0) == Split(**folds[0])
    assert split(dataset, 0, fold=1) == Split(**folds[1])
    assert "splits.json lists 2 folds; without a choice the first is used" in dataset.notes
    with pytest.raises(UsageError, match=r"fold 2: the data set brings the folds 0\.\.1"):
        split(dataset, 0, fold=2)


def test_val_is_taken_from_train_where_none_is_given(tmp_path):
    dataset = Dataset.from_folder(pairs(tmp_path, NINE, splits={"train": NINE[:8], "test": NINE[8:]}))
    made = split(dataset, 0)
    assert len(made.val) == 1 and sorted(made.train + made.val) == NINE[:8] and made.test == ("c8",)
    assert any("names no val" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("splits", "text"),
    [
        ({"val": ["c0"]}, "holds no split with a `train` list"),
        ([], "holds no split"),
        ({"train": "c0"}, "`train` is no list of ids"),
        ({"train": [], "val": ["c0"]}, "`train` is empty"),
        ({"train": ["c0", "c0"], "val": ["c1"]}, "'c0' stands in train and in train"),
        ([{"train": ["c0"], "val": ["c1"]}, {"train": ["c9"]}], "splits.json, fold 1: `train` names 'c9'"),
        ({"train": ["c0", "c2"], "val": ["c3"]}, "cases of the group 'p1' stand in train and in val"),
        ("[1, ", "splits.json: is not valid JSON"),
    ],
)
def test_split_faults(tmp_path, splits, text):
    groups = {case: f"p{number // 2}" for number, case in enumerate(NINE)}
    assert text in faults(pairs(tmp_path, NINE, splits=splits, groups=groups))[1]


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        ({"c0.png": "p", "c1.png": "p"}, "names 2 files in place of case ids, for example 'c0.png'; write ids without"),
        ({"c0": "p", "images/c1.png": "p"}, "names 1 file in place of case ids, for example 'images/c1.png'"),
        ({"x": "p", "y": "p"}, "names no case of the data set: its first entry is 'x', the first case 'c0'"),
    ],
)
def test_groups_that_name_no_cases_are_told(tmp_path, groups, text):
    assert text in faults(pairs(tmp_path, NINE, groups=groups))[1]


def test_groups_are_never_divided(tmp_path):
    ids = [f"c{number:02d}" for number in range(60)]
    groups = {case: f"p{number // 2}" for number, case in enumerate(ids)}
    dataset = Dataset.from_folder(pairs(tmp_path, ids, groups=groups))
    chosen = [split(dataset, 3), *(split(dataset, 3, fold=fold) for fold in range(5))]
    for made in chosen:
        sets = [{groups[case] for case in members} for members in (made.train, made.val, made.test)]
        assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
        assert sorted(made.train + made.val + made.test) == ids
    assert [len(chosen[0].train), len(chosen[0].val), len(chosen[0].test)] == [40, 10, 10]
    assert sorted(case for made in chosen[1:] for case in made.val) == ids  # each in val of exactly one fold


def test_made_splits_depend_on_ids_and_seed_alone(tmp_path):
    one = Dataset.from_folder(pairs(tmp_path / "one", NINE))
    two = Dataset.from_folder(pairs(tmp_path / "two", NINE[::-1]))
    assert split(one, 5) == split(two, 5) and split_hash(split(one, 5)) == split_hash(split(two, 5))
    assert len({split_hash(split(one, seed)) for seed in range(10)}) > 3
    assert (len(split(one, 0).train), len(split(one, 0).val), split(one, 0).test) == (7, 2, ())


def test_too_few_cases_or_groups(tmp_path):
    with pytest.raises(UsageError, match="1 labelled case is too few to train"):
        split(Dataset.from_folder(pairs(tmp_path / "one", ["a"])), 0)
    two = Dataset.from_folder(pairs(tmp_path / "two", ["a", "b"]))
    assert (len(split(two, 0).train), len(split(two, 0).val)) == (1, 1)
    with pytest.raises(UsageError, match="fold 1: 5 folds need 5 groups of cases, there are 2"):
        split(two, 0, fold=1)
    with pytest.raises(UsageError, match=r"fold 5: the folds are 0\.\.4"):
        split(two, 0, fold=5)
    same = Dataset.from_folder(pairs(tmp_path / "same", ["a", "b"], groups={"a": "p", "b": "p"}))
    with pytest.raises(UsageError, match="all cases belong to one group"):
        split(same, 0)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data folder beside the repository")
def test_real_data_sets_open():
    nuclei = Dataset.from_folder(SHARED / "nuclei")
    small = Dataset.from_folder(SHARED / "nuclei96")
    assert split_hash(split(nuclei, 0)) == split_hash(split(small, 1)) and len(nuclei) == 598
    assert Dataset.from_folder(SHARED / "brain_tumour").channel_names == ("FLAIR", "T1c")
    assert len(split(Dataset.from_folder(SHARED / "hippocampus"), 0).val) == 28


# one folder per case


def objects(root, *cases):
    for case in cases:
        Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3)).save(folder(root / case / "images") / "x.png")
        for number in range(2):
            mask = np.zeros((4, 5), np.uint8)
            mask[number, : number + 2] = 255
            Image.fromarray(mask).save(folder(root / case / "masks") / f"{number}.png")
    return root


def folder(path):
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_masks_of_one_object_each_are_united(tmp_path):
    dataset = Dataset.from_folder(objects(tmp_path, "b", "a"))
    assert (dataset.layout, [case.id for case in dataset.cases]) == ("case folders", ["a", "b"])
    labels = dataset.case("a").read_labels().array
    assert labels.dtype == np.uint8 and np.array_equal(labels[0, :2], [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    assert labels.sum() == 5 and dataset.case("a").read_image().channels == 3
    assert set(find_masks(tmp_path).sources) == {"a", "b"}


def test_faults_of_case_folders_come_at_once(tmp_path):
    root = objects(tmp_path, "a", "b", "c", "d")
    shutil.rmtree(root / "a" / "masks")
    png(root / "b" / "images" / "y.png")
    (root / "c" / "images" / "x.png").unlink()
    message = faults(root)[1]
    assert "a: holds no masks/ with a mask in it; add the masks" in message
    assert "b/images: holds 2 images; give every case" in message and "c/images: holds no images" in message
    png(root / "d" / "masks" / "grey.png")
    with pytest.raises(DataError, match=r"grey\.png: is no mask of one object"):
        Dataset.scan(root)[0].case("d").read_labels()
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(root / "d" / "masks" / "grey.png")
    with pytest.raises(DataError, match=r"grey\.png: has the size \(3, 3\), 0\.png has \(4, 5\)"):
        Dataset.scan(root)[0].case("d").read_labels()


def test_case_folders_without_masks_are_for_prediction(tmp_path):
    shutil.rmtree(objects(tmp_path, "a") / "a" / "masks")
    assert [case.id for case in Dataset.from_folder(tmp_path, need_labels=False).cases] == ["a"]
    assert "layout that is not known" in faults(tmp_path)[1]
