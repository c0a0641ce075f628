import itertools

import numpy as np

from ulna.data.layout.splitting import united
from ulna.data.quality.fixes import choose_values
from ulna.data.volume import Volume


def test_many_pairs_that_are_all_alike_become_one_group_at_once():
    names = [f"c{number:04d}" for number in range(1500)]
    pairs = itertools.chain(itertools.pairwise(names), zip(names, reversed(names), strict=True))
    assert united(pairs) == (tuple(names),)


def test_groups_that_meet_later_are_one():
    assert united([("a", "b"), ("c", "d"), ("e",), ("d", "b")]) == (("a", "b", "c", "d"), ("e",))


def test_values_that_are_not_finite_do_not_stop_the_choice_of_values():
    broken = Volume(np.array([[[0.0, np.nan], [np.inf, 1.0]]], np.float32), (1.0, 1.0), "px")
    sound = Volume(np.array([[[0, 1], [2, 1]]], np.uint8), (1.0, 1.0), "px")
    assert choose_values([broken, sound], None) == choose_values([sound], None)
