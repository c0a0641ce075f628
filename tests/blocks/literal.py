"""Layers written out pixel by pixel, for comparison: slow, in float64, and without a line of ulna's code.

x is (N, C, *S) of any number of spatial axes; p is an output pixel, q an input pixel, k a place in the kernel.
"""

from itertools import product

import torch


def pixels(size):
    return product(*(range(n) for n in size))


def assembled(values, size):
    """{p: (N, C)} -> (N, C, *size)."""
    return torch.stack([values[p] for p in pixels(size)], dim=-1).unflatten(-1, tuple(size))


def at(x, q):
    return x[(slice(None), slice(None), *q)]


def strided(size, stride):
    return [-(-n // s) for n, s in zip(size, stride, strict=True)]


def window(p, size, kernel, stride):
    """The (k, q) of an odd kernel centred on p * stride, with q inside the map."""
    for k in pixels(kernel):
        q = tuple(i * s + j - n // 2 for i, s, j, n in zip(p, stride, k, kernel, strict=True))
        if all(0 <= i < n for i, n in zip(q, size, strict=True)):
            yield k, q


def conv(x, weight, bias=None, stride=None, depthwise=False):
    size, kernel = x.shape[2:], weight.shape[2:]
    stride = stride or (1,) * len(size)
    out = strided(size, stride)
    values = {}
    for p in pixels(out):
        total = 0
        for k, q in window(p, size, kernel, stride):
            w = at(weight, k)  # (O, I) or, depthwise, (C, 1)
            if depthwise:
                total = total + at(x, q) * w[:, 0]
            else:
                total = total + torch.stack([(at(x, q) * row).sum(1) for row in w], dim=1)
        values[p] = total if bias is None else total + bias
    return assembled(values, out)


def batch_norm(x, weight, bias, eps):
    """With the statistics of the batch, as in training."""
    maps = []
    for c in range(x.shape[1]):
        v = x[:, c]
        mean = v.sum() / v.numel()
        variance = ((v - mean) ** 2).sum() / v.numel()
        maps.append((v - mean) / (variance + eps) ** 0.5 * weight[c] + bias[c])
    return torch.stack(maps, dim=1)


def max3(x, stride):
    out = strided(x.shape[2:], stride)
    kernel = (3,) * len(out)
    best = {}
    for p in pixels(out):
        best[p] = torch.stack([at(x, q) for _, q in window(p, x.shape[2:], kernel, stride)]).max(dim=0).values
    return assembled(best, out)


def average3(x, stride=None):
    stride = stride or (1,) * (x.ndim - 2)
    out = strided(x.shape[2:], stride)
    kernel = (3,) * len(out)
    values = {}
    for p in pixels(out):
        inside = [at(x, q) for _, q in window(p, x.shape[2:], kernel, stride)]
        values[p] = sum(inside) / len(inside)
    return assembled(values, out)


def relu(x):
    return torch.where(x > 0, x, torch.zeros_like(x))


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def randomise(block, seed=0):
    """Every parameter random, also those that start at 0 or 1; in float64, in training mode."""
    generator = torch.Generator().manual_seed(seed)
    block.double().train()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return block


def random_map(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


def assert_equal(block, inputs, computed, expected):
    """Values, and gradients of a random weighting of them for every input and every parameter."""
    torch.testing.assert_close(computed, expected, rtol=1e-9, atol=1e-9)
    weights = random_map(*computed.shape, seed=2).detach()
    parameters = dict(block.named_parameters())
    wanted = [*inputs, *parameters.values()]
    ours, literal = (torch.autograd.grad((y * weights).sum(), wanted) for y in (computed, expected))
    names = [f"input {n}" for n in range(len(inputs))] + list(parameters)
    for name, a, b in zip(names, ours, literal, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")
