"""Several ranks of a training as threads of one process: each with its own loop, joined by barriers in place of sockets."""

from __future__ import annotations

import copy
import queue
import threading
from contextlib import contextmanager

import torch

from ulna.system.ranks import Ranks
from ulna.training.crew import Crew
from ulna.training.following import obey


class Meeting:
    """Where threads bring a tensor each, and all see what all have brought."""

    def __init__(self, count):
        self.count, self.brought = count, [None] * count
        self.barrier = threading.Barrier(count, timeout=60)

    def of(self, rank, tensor):
        self.brought[rank] = tensor.detach().clone()
        self.barrier.wait()
        found = list(self.brought)
        self.barrier.wait()
        return found


class Thread(Ranks):
    """One rank of a meeting."""

    def __init__(self, rank, meeting):
        self.rank, self.count, self.meeting = rank, meeting.count, meeting

    def _add(self, flat):
        flat.copy_(torch.stack(self.meeting.of(self.rank, flat)).sum(0))

    def _every(self, own):
        return self.meeting.of(self.rank, own)

    def _send(self, tensor):
        tensor.copy_(self.meeting.of(self.rank, tensor)[0])


def in_ranks(count, work):
    """`work(ranks)` in every rank at once; what each gives."""
    meeting = Meeting(count)
    made, failed = [None] * count, []

    def one(rank):
        try:
            made[rank] = work(Thread(rank, meeting))
        except BaseException as error:
            failed.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return made


class Threads(Crew):
    """A crew whose other processes are threads."""

    def __init__(self, count):
        self.meeting = Meeting(count)
        self.ranks = Thread(0, self.meeting)
        self.orders = [queue.SimpleQueue() for _ in range(count - 1)]
        self.answered = [queue.SimpleQueue() for _ in range(count - 1)]

    def tell(self, order, **values):
        for orders in self.orders:
            orders.put({"order": order, **copy.deepcopy(values)})

    def answers(self, check=lambda: None):
        return [answered.get(timeout=60) for answered in self.answered]

    @contextmanager
    def following(self, loop_of):
        """Threads that follow within, each with the loop that `loop_of(crew)` makes."""
        threads, failed = [], []

        def follow(rank):
            crew = Crew()
            crew.ranks = Thread(rank, self.meeting)
            try:
                obey(loop_of(crew), iter(self.orders[rank - 1].get, None), self.answered[rank - 1].put)
            except BaseException as error:
                failed.append(error)
                self.meeting.barrier.abort()

        for rank in range(1, self.ranks.count):
            threads.append(threading.Thread(target=follow, args=(rank,), daemon=True))
            threads[-1].start()
        try:
            yield
            self.tell("end")
        except BaseException as error:
            raise (failed or [error])[0] from None
        finally:
            self.meeting.barrier.abort()
        for thread in threads:
            thread.join(60)
        assert not failed, failed
