"""Output folders: what others made is never replaced, whatever the path says."""

import pytest

from ulna import demonstration
from ulna.benchmarking import implicit
from ulna.errors import UsageError
from ulna.study import prune as pruning
from ulna.study import same_study
from ulna.system.outputs import (
    check_folder,
    check_free,
    check_names,
    file_digest,
    ignores_case,
    is_plain,
    make_folder,
)
from ulna.training import run_folder


def data_set(root):
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
        (root / name / "a.png").write_bytes(b"theirs")
    return root


def out_paths(tmp):
    """Paths that lead to the root of a data set, or to one of its folders."""
    data = tmp / "data"
    (tmp / "link").symlink_to(data / "labels")
    (tmp / "root link").symlink_to(data)
    return {
        "labels": data / "labels",
        "images": data / "images",
        "root": data,
        "dots": data / "images" / ".." / "labels",
        "link": tmp / "link",
        "link and dots": tmp / "root link" / "images" / ".." / "labels",
        "labels of an unlabelled set": tmp / "unlabelled" / "labels",
        "letters": tmp / "unlabelled" / "Labels",
    }


@pytest.mark.parametrize(
    "kind", ["labels", "images", "root", "dots", "link", "link and dots", "labels of an unlabelled set", "letters"]
)
def test_a_data_set_is_no_output_folder(tmp_path, kind):
    data_set(tmp_path / "data")
    (tmp_path / "unlabelled" / "images").mkdir(parents=True)
    with pytest.raises(UsageError, match="choose another --out"):
        check_folder(out_paths(tmp_path)[kind])


@pytest.mark.parametrize("masks", [True, False])
def test_the_folders_of_a_case_are_no_output_folders(tmp_path, masks):
    """Masks of objects are united: one more file there changes the reference of the case."""
    case = tmp_path / "data" / "c1"
    (case / "images").mkdir(parents=True)
    (case / "images" / "c1.png").touch()
    if masks:
        (case / "masks").mkdir()
        (case / "masks" / "object.png").touch()
        (tmp_path / "link").symlink_to(case / "masks")
        for out in (tmp_path / "data", tmp_path / "link", case / "Images"):
            with pytest.raises(UsageError, match="choose another --out"):
                check_folder(out)
    with pytest.raises(UsageError, match="would pass for, references"):
        check_folder(case / "masks", [case / "images" / "c1.png"])
    with pytest.raises(UsageError, match="is the root"):
        check_folder(case)
    check_folder(tmp_path / "masks")


def test_masks_beside_several_images_are_written_where_nothing_of_others_lies(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / f"{name}.png").touch()
    check_folder(tmp_path / "masks")
    (tmp_path / "masks").mkdir()
    check_folder(tmp_path / "masks")
    (tmp_path / "masks" / ".lock").touch()  # of a process that was killed at once
    check_folder(tmp_path / "masks")
    (tmp_path / "masks" / "a.png").touch()
    with pytest.raises(UsageError, match="would pass for, references"):
        check_folder(tmp_path / "masks")
    (tmp_path / "masks" / "predict.json").touch()
    check_folder(tmp_path / "masks")


def test_what_a_killed_process_left_does_not_make_a_folder_somebody_elses(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".tmp-1-predict.json").touch()
    implicit._check_folder(tmp_path, None)
    same_study.stored_study(tmp_path)
    run_folder.refuse_taken(tmp_path)
    demonstration._clear(tmp_path)


def test_a_new_folder_of_prune_may_hold_what_a_killed_process_left(tmp_path):
    (tmp_path / ".tmp-prune-1").mkdir()
    with pruning._new_folder(tmp_path) as folder:
        (folder / "prune.csv").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["prune.csv"]


def test_a_folder_is_free_while_it_holds_nothing_but_ones_own(tmp_path):
    check_free(tmp_path / "new")
    check_free(tmp_path)
    for name in ("study.json", "notes.txt", "a.png", "b.png", "c.png"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"is not empty \(a\.png, b\.png, c\.png and 2 more\); choose another --out"):
        check_free(tmp_path)
    with pytest.raises(UsageError, match=r"holds something else \(notes\.txt\); go away"):
        check_free(tmp_path, {"study.json", "a.png", "b.png", "c.png"}, what="holds something else", remedy="go away")
    (tmp_path / "file").touch()
    (tmp_path / "nothing").symlink_to(tmp_path / "gone")
    for name, words in {"file": "is a file", "nothing": "is a link to nothing"}.items():
        with pytest.raises(UsageError, match=words):
            check_free(tmp_path / name)
    with pytest.raises(UsageError, match="cannot be written"):
        make_folder(tmp_path / "file" / "below")


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "iterdir", refused)
    with pytest.raises(UsageError, match="cannot be read"):
        check_free(tmp_path)


@pytest.mark.parametrize(("there", "out"), [("Original", "Ground Truth"), ("ground_truth", "original")])
def test_folders_of_other_names_are_known_beside_each_other(tmp_path, there, out):
    check_folder(tmp_path / out)
    (tmp_path / there).mkdir()
    with pytest.raises(UsageError, match="choose another --out"):
        check_folder(tmp_path / out)
    (tmp_path / out).mkdir()
    with pytest.raises(UsageError, match="is the root"):
        check_folder(tmp_path)


def test_a_run_a_file_and_a_link_to_nothing_are_no_output_folders(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").touch()
    (tmp_path / "file").touch()
    (tmp_path / "nothing").symlink_to(tmp_path / "gone")
    for name, words in {"run": "is a run folder", "file": "is a file", "nothing": "is a link to nothing"}.items():
        with pytest.raises(UsageError, match=words):
            check_folder(tmp_path / name)


def test_a_folder_that_holds_an_input_is_refused_also_behind_links(tmp_path):
    theirs, images = tmp_path / "theirs", tmp_path / "new"
    theirs.mkdir()
    images.mkdir()
    (theirs / "a.png").touch()
    (images / "a.png").symlink_to(theirs / "a.png")
    for out in (theirs, images):
        with pytest.raises(UsageError, match="holds the images or the references"):
            check_folder(out, [images, images / "a.png"])
    check_folder(tmp_path, [images, images / "a.png"])  # beside them is as good a place as any
    check_folder(images / "masks", [images, images / "a.png"])
    check_folder(tmp_path / "new masks")


def test_files_of_others_are_named_and_links_are_never_ones_own(tmp_path):
    for name in ("mine", "theirs"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("mine")
    own = dict.fromkeys(["mine", "theirs", "link", "new"], lambda path: path.read_text() == "mine")
    with pytest.raises(UsageError, match="theirs, link are not written by ulna"):
        check_names(tmp_path, own)
    assert is_plain(tmp_path / "mine")
    assert not is_plain(tmp_path / "link")
    assert not is_plain(tmp_path)


def test_a_digest_is_that_of_the_bytes_in_their_order(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    a, b = tmp_path / "a", tmp_path / "b"
    assert file_digest(a) == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    assert len({file_digest(a), file_digest(a, b), file_digest(b, a)}) == 3


def test_whether_a_folder_tells_letters_apart_is_tried_and_leaves_nothing(tmp_path):
    (tmp_path / "x").touch()
    assert ignores_case(tmp_path) == (tmp_path / "X").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
