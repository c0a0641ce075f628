"""The processes that compute one training together, and what they tell each other: all of torch.distributed.

Each has a rank, from 0, and a share of every batch. Sums and gathered tensors are the same in all of them. They meet by a
file, and on one machine alone: nothing listens beyond its loopback interface.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist

from ulna.errors import UsageError, counted

MOST_DEVICES = 256
BUCKET = 1 << 24  # values that are summed at once
MEETING = timedelta(minutes=5)  # from the first that is there to the last
# That a process has ended is seen by itself; one that lives may take as long for its part as it needs.
PATIENCE = timedelta(days=30)
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class Lost(RuntimeError):
    """Another process of the training cannot be reached any more."""


class Ranks:
    """The processes of a training; this one is alone."""

    rank, count = 0, 1

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this is the one that decides and writes."""
        return self.rank == 0

    def bounds(self, batch: int) -> list[int]:
        """Where the shares of a batch begin and end, one behind the other.

        Example:
            >>> Ranks().bounds(3)
            [0, 3]
        """
        return [rank * batch // self.count for rank in range(self.count + 1)]

    def rows(self, batch: int) -> slice:
        """The samples of a batch that are this one's."""
        first, last = self.bounds(batch)[self.rank : self.rank + 2]
        return slice(first, last)

    def share(self, batch: int) -> float:
        """Of the samples of a batch."""
        rows = self.rows(batch)
        return (rows.stop - rows.start) / batch

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Make each tensor the sum of those of all; of one type, and on the device of the ranks."""
        if self.alone:
            return
        sizes = [tensor.numel() for tensor in tensors]
        for begin, end in _buckets(sizes):
            some = tensors[begin:end]
            flat = torch.cat([tensor.reshape(-1) for tensor in some])
            self._add(flat)
            for tensor, total in zip(some, flat.split(sizes[begin:end]), strict=True):  # type: ignore[no-untyped-call]
                tensor.copy_(total.view(tensor.shape))

    def every(self, own: Tensor) -> Tensor:
        """The tensors of all, which have one shape, by rank: (*S) -> (ranks, *S)."""
        return own[None] if self.alone else torch.stack(self._every(own.contiguous()))

    def whole(self, own: Tensor, batch: int) -> Tensor:
        """What all have for their samples: (rows, *S) -> (batch, *S). Gradients reach the own part alone."""
        if self.alone:
            return own
        bounds = self.bounds(batch)
        most = max(last - first for first, last in pairwise(bounds))
        given = own.detach()
        if len(own) < most:
            given = torch.cat([given, given.new_zeros(most - len(own), *own.shape[1:])])
        # as bytes, which every backend knows
        sent = self._every(given.contiguous().view(-1).view(torch.uint8))
        parts = [
            part.view(own.dtype).view(most, *own.shape[1:])[: last - first]
            for part, (first, last) in zip(sent, pairwise(bounds), strict=True)
        ]
        parts[self.rank] = own
        return torch.cat(parts)

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Make each tensor that of the first rank."""
        for tensor in () if self.alone else tensors:
            given = tensor.contiguous()
            self._send(given)
            if given is not tensor:
                tensor.copy_(given)

    def _add(self, flat: Tensor) -> None:
        """The sum over one is its own."""

    def _every(self, own: Tensor) -> list[Tensor]:
        return [own]

    def _send(self, tensor: Tensor) -> None:
        """There is nobody else."""


ALONE = Ranks()


class Joined(Ranks):
    """One of several, joined by torch.distributed.

    Every method raises `Lost` where another one has gone.
    """

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count

    def __deepcopy__(self, memo: object) -> Joined:
        return self

    def _add(self, flat: Tensor) -> None:
        with _reached():
            dist.all_reduce(flat)

    def _every(self, own: Tensor) -> list[Tensor]:
        found = [torch.empty_like(own) for _ in range(self.count)]
        with _reached():
            dist.all_gather(found, own)
        return found

    def _send(self, tensor: Tensor) -> None:
        with _reached():
            dist.broadcast(tensor, 0)


@contextmanager
def joined(place: Path, rank: int, count: int, device: torch.device) -> Iterator[Ranks]:
    """Be one of several processes within.

    Args:
        place: of a file by which they meet, in a folder of their own.
        rank: of this one, from 0.
        count: how many there are; waits until all are here.
        device: that each computes on.
    """
    from torch.distributed import distributed_c10d  # not in every build of torch

    with _by_loopback(), _reached():
        store = dist.FileStore(str(place), count)  # type: ignore[attr-defined]
        dist.init_process_group(_backend(device), store=store, rank=rank, world_size=count, timeout=MEETING)
        distributed_c10d._set_pg_timeout(PATIENCE)
    try:
        with _by_loopback():  # NCCL opens its connections at the first sum
            yield Joined(rank, count)
    finally:
        abandon()


def abandon() -> None:
    """Leave the others, so that what waits for one that has gone ends."""
    from torch.distributed import distributed_c10d

    if not dist.is_initialized():
        return
    if dist.get_backend() == "nccl":
        distributed_c10d._abort_process_group()  # the other way of ending waits for those that have gone
    else:
        dist.destroy_process_group()


def check_number(devices: int) -> None:
    """Refuse a number of devices that cannot be anywhere.

    Raises:
        UsageError: with what is meant.
    """
    if not 1 <= devices <= MOST_DEVICES:
        raise UsageError(f"--devices {devices}: a number of devices that train together, from 1 to {MOST_DEVICES}")


def check_devices(devices: int, device: torch.device) -> None:
    """Refuse a number of devices that cannot be had here.

    Raises:
        UsageError: with what is missing.
    """
    check_number(devices)
    if devices == 1:
        return
    alone = "train on one: leave --devices out"
    if device.type == "cuda" and devices > torch.cuda.device_count():
        there = counted(torch.cuda.device_count(), "GPU")
        raise UsageError(f"--devices {devices}: this machine has {there}, and each process takes one; ask for fewer")
    name = _backend(device)
    if not dist.is_available() or not getattr(dist, f"is_{name}_available")():
        raise UsageError(f"--devices {devices}: this build of torch has no {name}, by which devices add up; {alone}")
    if dist.is_initialized():
        raise UsageError(f"--devices {devices}: this program uses torch.distributed already; {alone}")


def check_batch(devices: int, batch: int) -> None:
    """Refuse more devices than a batch has samples.

    Raises:
        UsageError: with both numbers.
    """
    if devices > batch:
        raise UsageError(
            f"--devices {devices}: a batch has {counted(batch, 'sample')}, and every device takes one or more of each; ask "
            f"for {batch} at most, or set planning.batch={devices} or more, which is another training"
        )


def _backend(device: torch.device) -> str:
    return "nccl" if device.type == "cuda" else "gloo"


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:  # the latter: the others were left meanwhile
        raise Lost(str(error)) from error


@contextmanager
def _by_loopback() -> Iterator[None]:
    """Connections within are those of this machine alone, whatever the environment says."""
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")] if os.name == "posix" else []
    before = {variable: os.environ.get(variable) for variable in INTERFACES}
    os.environ.update({variable: names[0] for variable in INTERFACES if names})
    try:
        yield
    finally:
        for variable, value in before.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value


def _buckets(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """From where to where tensors of these sizes go together, in their order."""
    begin = held = 0
    for number, size in enumerate(sizes):
        if number > begin and held + size > BUCKET:
            yield begin, number
            begin, held = number, 0
        held += size
    if begin < len(sizes):
        yield begin, len(sizes)
