"""Shares of a split, folds of any number, nnU-Net's split file, and files beside the data that are not used."""

import numpy as np
import pytest

from tests.data.layout.test_dataset import NINE, faults, pairs
from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset, Division, split
from ulna.data.layout.splitting import choose_split
from ulna.data.quality.fixed_splits import fixed_folds
from ulna.errors import UsageError
from ulna.planning.plan import check_split_is_made, division, unused_shares
from ulna.recipe import Training, read_shares


def cases(groups):
    """Groups of so many cases each; None: a case without a group."""
    sizes = [1 if size is None else size for size in groups]
    names = [None if size is None else f"p{number}" for number, size in enumerate(groups)]
    pairs_of = [
        (group, f"c{number}_{n}")
        for number, (group, size) in enumerate(zip(names, sizes, strict=True))
        for n in range(size)
    ]
    return [Case(name, (), None, group=group) for group, name in pairs_of]


def divided(some, seed=0, **wanted):
    return choose_split(some, (), seed, Division(**wanted))


def slow_reference(some, seed, shares):
    """Groups in a shuffled order go to test until it holds its share, then to val, then all others to train."""
    groups = {}
    for case in sorted(some, key=lambda case: case.id):
        groups.setdefault(("case", case.id) if case.group is None else ("group", case.group), []).append(case.id)
    names = sorted(groups)
    order = [groups[names[place]] for place in np.random.default_rng(seed).permutation(len(names))]
    parts = {"test": [], "val": [], "train": []}
    wanted = {"test": shares[2] * len(some), "val": shares[1] * len(some)}
    for number, members in enumerate(order):
        left = len(order) - number
        for part, after in (("test", 2), ("val", 1)):
            held = len(parts[part])
            later = [other for other in ("val", "train") if part == "test" or other == "train"]
            closed = any(parts[other] for other in later)
            if wanted[part] and not closed and left > after and (not held or held + len(members) / 2 <= wanted[part]):
                parts[part] += members
                break
        else:
            parts["train"] += members
    return {part: tuple(sorted(ids)) for part, ids in parts.items()}


@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.1), (0.8, 0.2, 0.0), (0.5, 0.25, 0.25), (0.02, 0.49, 0.49)])
@pytest.mark.parametrize(
    "groups", [[None] * 3, [None] * 30, [3, 1, 4, 1, 5, 9, 2, 6], [1, 50, 1], [None] * 10 + [5] * 4]
)
def test_shares_are_those_of_a_literal_reference(groups, shares):
    some = cases(groups)
    for seed in range(4):
        made = divided(some, seed, shares=shares)
        assert made.model_dump() == slow_reference(some, seed, shares)
        assert made == divided(list(reversed(some)), seed, shares=shares), "the order of the cases does not matter"
        assert made.train and made.val and bool(made.test) == bool(shares[2])


def test_shares_of_single_cases_are_exact():
    made = divided(cases([None] * 598), shares=read_shares("80/10/10"))
    assert [len(made.train), len(made.val), len(made.test)] == [478, 60, 60]
    assert divided(cases([None] * 598), 1, shares=read_shares("80/10/10")) != made


@pytest.mark.parametrize(
    ("text", "shares"), [("80/10/10", (0.8, 0.1, 0.1)), ("0.8/0.1/0.1", (0.8, 0.1, 0.1)), ("75/25", (0.75, 0.25, 0.0))]
)
def test_shares_are_of_100_or_of_1(text, shares):
    assert read_shares(text) == pytest.approx(shares)
    assert Training(split=text).shares == pytest.approx(shares)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("80/10/20", "adds up to 110, not to 100 or 1"),
        ("80/10", "adds up to 90, not to 100 or 1"),
        ("100", "has 1 part;"),
        ("40/20/20/20", "has 4 parts;"),
        ("80/0/20", "every share must be above 0"),
        ("120/-20", "every share must be above 0"),
        ("inf/1", "every share must be above 0"),
        ("nan/1", "every share must be above 0"),
        ("80:20", "is no list of shares"),
        ("", "is no list of shares"),
    ],
)
def test_what_are_no_shares_is_said_with_an_example(text, said):
    with pytest.raises(ValueError, match="write them as 80/10/10") as caught:
        read_shares(text)
    assert said in str(caught.value)


def test_too_few_groups_for_the_parts_are_refused():
    with pytest.raises(UsageError, match="a split in 3 parts needs 3 groups of cases, there are 2"):
        divided(cases([2, 5]), shares=(0.8, 0.1, 0.1))
    assert divided(cases([2, 5]), shares=(0.8, 0.2, 0.0)).val


# numbers of groups, and cases that are named -------------------------------------------------------------------------


def test_numbers_of_groups_are_met_to_the_group():
    some = cases([20, 1, 1, 9, 3, 1, 1, 2])
    made = divided(some, 1, shares=read_shares("5/1/2 groups"))
    group = {case.id: case.group for case in some}
    assert [len({group[case] for case in part}) for part in (made.train, made.val, made.test)] == [5, 1, 2]
    assert sorted((*made.train, *made.val, *made.test)) == sorted(group)
    assert made == divided(some[::-1], 1, shares=read_shares("5/1/2 groups"))
    assert made != divided(some, 2, shares=read_shares("5/1/2 groups"))
    united = divided(some[:-1][20:], 1, shares=read_shares("5/1/2 groups"))  # fewer, as where copies unite some
    assert united.train and united.val and united.test


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("5/1/1 groups", "adds up to 7, and there are 9 groups of cases"),
        ("8/2 groups", "adds up to 10, and there are 9"),
    ],
)
def test_numbers_of_groups_must_add_up(text, said, tmp_path):
    dataset = Dataset.from_folder(pairs(tmp_path, NINE))
    with pytest.raises(UsageError, match=said):
        dataset.check_divisible(Division(shares=read_shares(text)))
    dataset.check_divisible(Division(shares=read_shares("6/2/1 groups")))
    dataset.check_divisible(Division(shares=read_shares(text), fold=0))  # not used then


@pytest.mark.parametrize("text", ["2.5/1.5 groups", "3 groups", "groups", "0/3 groups", "80/10/10 patients"])
def test_what_is_no_number_of_groups_is_refused(text):
    with pytest.raises(ValueError, match=r"whole, such as|write them as 80/10/10"):
        read_shares(text)


def test_named_cases_are_kept_for_the_end(tmp_path):
    dataset = Dataset.from_folder(pairs(tmp_path, NINE, groups={"c1": "p", "c7": "p"}))
    made = split(dataset, 3, wanted=Division(test=("c[01]", "c8")))
    assert made.test == ("c0", "c1", "c7", "c8")  # the group of c1 stays whole
    assert len(made.val) == 1 and len(made.train) == 4
    half = split(dataset, 3, wanted=Division(test=("c0",), shares=read_shares("50/50")))
    assert half.test == ("c0",) and len(half.val) in (3, 4, 5)
    dataset.check_divisible(Division(test=("c0",), shares=read_shares("6/1 groups")))
    with pytest.raises(UsageError, match="adds up to 8, and there are 7 groups of cases beside those that are kept"):
        dataset.check_divisible(Division(test=("c0",), shares=read_shares("6/2 groups")))


@pytest.mark.parametrize(
    ("test", "said"),
    [
        (("x*",), r"""training\.test=\["x\*"\] names no case, the first one is 'c0'"""),
        (("c*",), "leaves 0 groups of cases"),
    ],
)
def test_named_cases_that_are_not_there_or_are_all_are_refused(test, said, tmp_path):
    dataset = Dataset.from_folder(pairs(tmp_path, NINE))
    with pytest.raises(UsageError, match=said):
        dataset.check_divisible(Division(test=test))


def test_named_cases_give_way_to_a_given_split_and_go_with_no_third_share(tmp_path):
    given = {"train": NINE[:5], "val": NINE[5:7], "test": NINE[7:]}
    dataset = Dataset.from_folder(pairs(tmp_path, NINE, splits=given))
    training = Training(split="80/20", test=("c0",))
    assert split(dataset, 0, wanted=division(training)).model_dump(mode="json") == given
    (note,) = unused_shares(dataset, training)
    assert note == 'training.split=80/20 and training.test=["c0"] are not used: the data set brings its own split'
    with pytest.raises(ValueError, match="split 80/10/10 keeps a share too; write two shares"):
        Training(split="80/10/10", test=("c0",))


@pytest.mark.parametrize("folds", [2, 3, 7])
def test_folds_of_any_number_hold_every_case_once(folds):
    some = cases([3, 1, 4, 1, None, None, 2, 6])
    made = [divided(some, 5, fold=number, folds=folds) for number in range(folds)]
    assert sorted(case for one in made for case in one.val) == sorted(case.id for case in some)
    groups = {case.id: case.group for case in some}
    for one in made:
        assert sorted((*one.train, *one.val)) == sorted(groups)
        assert not {groups[case] for case in one.train} & {groups[case] for case in one.val} - {None}
    with pytest.raises(UsageError, match="9 folds need 9 groups of cases, there are 8"):
        divided(some, fold=0, folds=9)
    with pytest.raises(UsageError, match=rf"fold {folds}: the folds are 0\.\.{folds - 1}"):
        divided(some, fold=folds, folds=folds)


def test_a_given_split_wins_over_shares_of_a_recipe_and_refuses_those_of_a_command(tmp_path):
    given = {"train": NINE[:5], "val": NINE[5:7], "test": NINE[7:]}
    dataset = Dataset.from_folder(pairs(tmp_path, NINE, splits=given))
    assert split(dataset, 0, wanted=Division(shares=(0.5, 0.25, 0.25))).model_dump(mode="json") == given
    training = Training(split="50/25/25")
    (note,) = unused_shares(dataset, training)
    assert note == "training.split=50/25/25 is not used: the data set brings its own split"
    with pytest.raises(UsageError, match="--split 50/25/25: the data set brings its own split; leave --split out"):
        check_split_is_made(dataset, "50/25/25")


FOLDS = [{"train": NINE[3:], "val": NINE[:3]}, {"train": NINE[:6], "val": NINE[6:]}]


def test_the_split_file_of_nnu_net_is_read(tmp_path):
    dataset = Dataset.from_folder(pairs(tmp_path, NINE, splits_final=FOLDS))
    assert [split(dataset, 0, fold=number).val for number in (0, 1)] == [tuple(NINE[:3]), tuple(NINE[6:])]
    assert "splits_final.json lists 2 folds; without a choice the first is used" in dataset.notes
    assert not any("not read" in note for note in dataset.notes)


def test_faults_of_the_split_file_of_nnu_net_name_it(tmp_path):
    wrong = [{"train": ["c0"], "val": ["c1"]}, {"train": ["c9"]}]
    assert "splits_final.json, fold 1: `train` names 'c9'" in faults(pairs(tmp_path, NINE, splits_final=wrong))[1]


def test_of_two_split_files_one_is_used_and_the_other_said(tmp_path):
    dataset = Dataset.from_folder(
        pairs(tmp_path, NINE, splits={"train": NINE[:5], "val": NINE[5:]}, splits_final=FOLDS)
    )
    assert len(dataset.given_splits) == 1
    assert "splits_final.json is not read: splits.json says the split" in dataset.notes


def test_a_repaired_copy_keeps_the_folds_of_nnu_net(tmp_path):
    wrong = [{**FOLDS[0], "train": [*NINE[3:], "gone"]}, FOLDS[1]]
    dataset, problems = Dataset.scan(pairs(tmp_path, NINE, splits_final=wrong))
    assert len(problems) == 1
    folds, changes = fixed_folds(dataset, {name: name for name in NINE})
    assert [fold["val"] for fold in folds] == [NINE[:3], NINE[6:]]
    assert changes == ["'gone' was taken out of train: it is not in this copy"]


def test_files_beside_the_data_that_are_not_used_are_said(tmp_path):
    root = pairs(tmp_path, NINE, split={"train": NINE}, Groups={}, classes={"1": "a"})
    for name in ("README.md", "LICENSE", "SYNTHETIC", ".hidden", "patients.csv", "plans.json"):
        (root / name).write_text("")
    notes = [note for note in Dataset.from_folder(root).notes if "read" in note]
    assert notes == [
        "Groups.json is not read; did you mean groups.json?",
        "split.json is not read; did you mean splits.json?",
        "not read, beside the data: patients.csv, plans.json",
    ]
