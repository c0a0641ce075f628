"""Random numbers by key: their literal definition in numpy, and what they are distributed like."""

import math

import numpy as np
import torch

from ulna.data.pipeline.augment.noise import normals

CPU = torch.device("cpu")


def split_mix(state):
    """The next number of SplitMix64, as its authors print it, in whole numbers without a limit."""
    z = state % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def test_the_bits_are_those_of_the_published_generator():
    assert split_mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # its first number from seed 0, known from other code


def test_every_number_is_as_defined():
    keys, count = [0, 1, -1, 2**63 - 1, -(2**63), 123456789012345678], 9
    found = normals(keys, count, CPU)
    for row, key in zip(found, keys, strict=True):
        bits = [split_mix(key + (i + 1) * 0x9E3779B97F4A7C15) for i in range(5)]
        radius = [math.sqrt(-2 * math.log(((b >> 40) + 1) / 2**24)) for b in bits]
        angle = [2 * math.pi * (b % 2**24) / 2**24 for b in bits]
        made = [r * math.cos(a) for r, a in zip(radius, angle, strict=True)]
        made += [r * math.sin(a) for r, a in zip(radius, angle, strict=True)]
        np.testing.assert_allclose(row, made[:count], rtol=1e-5, atol=5e-6)  # float32: an angle of 6 has steps of 5e-7


def test_a_key_yields_the_same_numbers_beside_any_other():
    both = normals([5, -7], 1001, CPU)
    assert torch.equal(both[0], normals([5], 1001, CPU)[0])
    assert torch.equal(both[1], normals([-7], 1001, CPU)[0])


def test_they_are_normal_and_independent():
    count = 200_000
    one, other = normals([1, 2], count, CPU).double()
    error = 5 / math.sqrt(count)  # five standard errors
    for row in (one, other):
        assert abs(row.mean()) < error
        assert abs(row.std() - 1) < error
        assert abs((row**3).mean()) < error * math.sqrt(15)
        assert abs((row**4).mean() - 3) < error * math.sqrt(96)
        assert abs((row > 1.959964).double().mean() - 0.025) < error * 0.16
        half = count // 2
        for a, b in ((row[:-1], row[1:]), (row[:half], row[half:]), (row[:half] ** 2, row[half:] ** 2)):
            assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 5 / math.sqrt(half)
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < error
    assert len(one.unique()) > 0.95 * count
