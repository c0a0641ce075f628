"""What is made ahead keeps its order, and no more is under way than may be."""

import threading

import pytest

from ulna.system.ahead import ahead


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_ahead_keeps_the_order_and_makes_no_more_than_it_may(threads):
    begun, used = [], []
    for made in ahead(lambda n: begun.append(n) or n * n, range(10), threads):
        assert len(begun) <= len(used) + threads + 1
        used.append(made)
    assert used == [n * n for n in range(10)]


def test_what_needs_more_room_than_there_is_goes_alone():
    lock, under_way, most = threading.Lock(), [], {}

    def make(item):
        with lock:
            under_way.append(item)
            for one in under_way:
                most[one] = max(most.get(one, 0), sum(under_way))
        threading.Event().wait(0.01)
        with lock:
            under_way.remove(item)
        return item

    items = [1, 2, 3, 9, 2, 2, 1, 12, 4]
    assert list(ahead(make, items, 4, need=float, room=6)) == items
    assert (most[9], most[12]) == (9, 12) and max(most[n] for n in (1, 2, 3, 4)) <= 6
