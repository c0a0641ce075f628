"""Losses written out voxel by voxel, for comparison: slow, in float64, and without a line of ulna's code.

z is (N, K, *S); the target is (N, *S) with the numbers of classes, or (N, K, *S) with 0 and 1 where classes overlap.
"""

import math
from itertools import product

import numpy as np


def voxels(size):
    return list(product(*(range(n) for n in size)))


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def probability(z, n, v, multilabel):
    """Of every map, at one voxel of one image; one map and overlapping ones have sigmoids."""
    logits = [z[(n, k, *v)] for k in range(z.shape[1])]
    if multilabel or len(logits) == 1:
        return [sigmoid(one) for one in logits]
    whole = sum(math.exp(one) for one in logits)
    return [math.exp(one) / whole for one in logits]


def reference(target, n, v, maps, multilabel):
    """0 and 1 for every map, at one voxel of one image."""
    if multilabel:
        return [int(target[(n, k, *v)]) for k in range(maps)]
    return [int(target[(n, *v)])] if maps == 1 else [int(target[(n, *v)] == k) for k in range(maps)]


def columns(z, target, multilabel):
    """(n, k) -> [(p, g) of every voxel]."""
    found = {}
    for n in range(z.shape[0]):
        for v in voxels(z.shape[2:]):
            p, g = probability(z, n, v, multilabel), reference(target, n, v, z.shape[1], multilabel)
            for k in range(z.shape[1]):
                found.setdefault((n, k), []).append((p[k], g[k]))
    return found


def scored(z, multilabel):
    """The maps that count: without the background of a softmax."""
    return range(1 if z.shape[1] > 1 and not multilabel else 0, z.shape[1])


def pooled(found, images, k):
    return [pair for n in range(images) for pair in found[n, k]]


def groups(z, target, multilabel, reduction):
    """[(p, g) of every voxel] of each ratio whose mean is the loss."""
    found = columns(z, target, multilabel)
    if reduction == "batch":
        return [pooled(found, z.shape[0], k) for k in scored(z, multilabel)]
    return [found[n, k] for n in range(z.shape[0]) for k in scored(z, multilabel)]


def dice(z, target, multilabel, reduction="image", s=1.0):
    parts = groups(z, target, multilabel, reduction)
    values = [1 - (2 * sum(p * g for p, g in part) + s) / (sum(p + g for p, g in part) + s) for part in parts]
    return sum(values) / len(values)


def tversky(z, target, multilabel, reduction="image", alpha=0.7, beta=0.3, s=1.0):
    values = []
    for part in groups(z, target, multilabel, reduction):
        hit = sum(p * g for p, g in part)
        missed, wrong = sum((1 - p) * g for p, g in part), sum(p * (1 - g) for p, g in part)
        values.append(1 - (hit + s) / (hit + alpha * missed + beta * wrong + s))
    return sum(values) / len(values)


def generalised_dice(z, target, multilabel, reduction="image", s=1.0):
    found, maps = columns(z, target, multilabel), z.shape[1]
    images = [[n] for n in range(z.shape[0])] if reduction == "image" else [list(range(z.shape[0]))]
    values = []
    for some in images:
        together = [[pair for n in some for pair in found[n, k]] for k in range(maps)]
        if multilabel or maps == 1:  # each map is a structure and its background
            families = [[[(1 - p, 1 - g) for p, g in part], part] for part in together]
        else:
            families = [together]
        for family in families:
            weights = [1 / max(1, sum(g for _, g in part)) ** 2 for part in family]
            weights = [w / sum(weights) for w in weights]
            hit = sum(w * sum(p * g for p, g in part) for w, part in zip(weights, family, strict=True))
            whole = sum(w * sum(p + g for p, g in part) for w, part in zip(weights, family, strict=True))
            values.append(1 - (2 * hit + s) / (whole + s))
    return sum(values) / len(values)


def entropies(z, target, multilabel):
    """[(probability of what the voxel is, its class, its map)] of every voxel, and of every map of sigmoids."""
    found = []
    for n in range(z.shape[0]):
        for v in voxels(z.shape[2:]):
            p, g = probability(z, n, v, multilabel), reference(target, n, v, z.shape[1], multilabel)
            if multilabel or z.shape[1] == 1:
                found += [(p[k] if g[k] else 1 - p[k], g[k], k) for k in range(z.shape[1])]
            else:
                found.append((p[g.index(1)], g.index(1), 0))
    return found


def focal(z, target, multilabel, gamma=2.0, weights=None):
    above = below = 0.0
    for q, its_class, its_map in entropies(z, target, multilabel):
        weight = 1.0 if weights is None else weights[its_map if multilabel else its_class]
        above += weight * (1 - q) ** gamma * -math.log(q)
        below += weight
    return above / below


def topk(z, target, multilabel, share=0.1, weights=None):
    found = []
    for q, its_class, its_map in entropies(z, target, multilabel):
        weight = 1.0 if weights is None else weights[its_map if multilabel else its_class]
        found.append((weight * -math.log(q), weight))
    hardest = sorted(found, reverse=True)[: max(1, round(share * len(found)))]
    return sum(value for value, _ in hardest) / sum(weight for _, weight in hardest)


def phi(region, v, size):
    """The distance of a voxel to the border of a region (a set of voxels), below 0 within."""
    others = [u for u in voxels(size) if (u in region) != (v in region)]
    if not others:
        return 0.0
    nearest = min(math.dist(u, v) for u in others)
    return 0.5 - nearest if v in region else nearest - 0.5


def boundary(z, target, multilabel):
    """The mean of phi p alone."""
    size, values = z.shape[2:], []
    for n in range(z.shape[0]):
        for k in scored(z, multilabel):
            region = {v for v in voxels(size) if reference(target, n, v, z.shape[1], multilabel)[k]}
            values += [phi(region, v, size) * probability(z, n, v, multilabel)[k] for v in voxels(size)]
    return sum(values) / len(values)


def neighbours(v, size, all_of_them):
    for step in product((-1, 0, 1), repeat=len(size)):
        u = tuple(i + j for i, j in zip(v, step, strict=True))
        inside = all(0 <= i < n for i, n in zip(u, size, strict=True))
        if inside and (all_of_them or sum(map(abs, step)) <= 1):
            yield u


def eroded(x):
    return {v: min(x[u] for u in neighbours(v, size_of(x), False)) for v in x}


def dilated(x):
    return {v: max(x[u] for u in neighbours(v, size_of(x), True)) for v in x}


def size_of(x):
    return tuple(1 + max(v[axis] for v in x) for axis in range(len(next(iter(x)))))


def skeleton(x, iterations):
    """shit2021, Alg. 1."""
    opened = dilated(eroded(x))
    thin = {v: max(0, x[v] - opened[v]) for v in x}
    for _ in range(iterations):
        x = eroded(x)
        opened = dilated(eroded(x))
        thin = {v: thin[v] + (1 - thin[v]) * max(0, x[v] - opened[v]) for v in x}
    return thin


def cldice(z, target, multilabel, reduction="image", iterations=3, s=1.0):
    """1 - clDice alone."""
    sums = {}
    for n in range(z.shape[0]):
        for k in scored(z, multilabel):
            p = {v: probability(z, n, v, multilabel)[k] for v in voxels(z.shape[2:])}
            g = {v: reference(target, n, v, z.shape[1], multilabel)[k] for v in p}
            thin_p, thin_g = skeleton(p, iterations), skeleton(g, iterations)
            in_g, in_p = sum(thin_p[v] * g[v] for v in p), sum(thin_g[v] * p[v] for v in p)
            four = [in_g, sum(thin_p.values()), in_p, sum(thin_g.values())]
            at = (n, k) if reduction == "image" else k
            sums[at] = [a + b for a, b in zip(sums.get(at, [0] * 4), four, strict=True)]
    values = []
    for a, b, c, d in sums.values():
        precision, sensitivity = (a + s) / (b + s), (c + s) / (d + s)
        values.append(1 - 2 * precision * sensitivity / (precision + sensitivity))
    return sum(values) / len(values)


def sample(kind, seed=0, size=(4, 5)):
    """Logits and a target: "binary", "classes" or "multilabel"."""
    rng = np.random.default_rng(seed)
    maps, images = {"binary": 1, "classes": 3, "multilabel": 2}[kind], 2
    z = rng.normal(0, 2, (images, maps, *size))
    if kind == "multilabel":
        return z, rng.integers(0, 2, z.shape)
    return z, rng.integers(0, max(2, maps), (images, *size))
