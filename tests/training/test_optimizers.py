"""A rate in a tensor gives the steps of a rate in a number, and goes through checkpoints as one."""

import math

import pytest
import torch

from ulna.recipe import Optimizer
from ulna.training.checkpoint import pack_optimizer, unpack_optimizer
from ulna.training.optimizers import lr_of, make_optimizer, set_lr

KINDS = [Optimizer(kind=kind, weight_decay=decay) for kind in ("adam", "adamw", "sgd") for decay in (0.0, 0.01)]


def trained(settings, recorded, steps=6, optimizer=None, weights=None):
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 7)), torch.nn.Parameter(torch.ones(2, 3))]
    made = make_optimizer(settings, weights, recorded=recorded)
    for step in range(steps):
        set_lr(made, 0.1 / (1 + step))
        for weight in weights:
            weight.grad = torch.cos(weight.detach() + step)
        made.step()
    return weights, made


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_a_rate_in_a_tensor_gives_the_same_steps(settings):
    plain, _ = trained(settings, recorded=False)
    recorded, optimizer = trained(settings, recorded=True)
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
    for one, two in zip(plain, recorded, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)  # the rate is float32 there, and SGD another kernel
    assert lr_of(optimizer) == pytest.approx(0.1 / 6)


@pytest.mark.parametrize("settings", [KINDS[0], KINDS[-1]], ids=str)
@pytest.mark.parametrize(("saved", "went_on"), [(False, True), (True, False), (True, True)])
def test_a_checkpoint_of_one_goes_on_as_the_other(settings, saved, went_on):
    _, before = trained(settings, recorded=saved)
    tensors, plain = pack_optimizer(before)
    assert all(isinstance(value, bool | int | float | list | tuple | None) for value in plain["groups"][0].values())
    _, after = trained(settings, recorded=went_on, steps=1)
    flags = {name: after.param_groups[0][name] for name in ("fused", "capturable") if name in after.param_groups[0]}
    unpack_optimizer(after, tensors, plain)
    assert math.isclose(lr_of(after), lr_of(before), rel_tol=1e-6)
    assert isinstance(after.param_groups[0]["lr"], torch.Tensor) == went_on
    assert {name: after.param_groups[0][name] for name in flags} == flags
    for one, two in zip(before.state.values(), after.state.values(), strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_sgd_without_momentum_is_plain():
    """torch refuses Nesterov without momentum, and a recipe asks for both by one number."""
    weights, _ = trained(Optimizer(kind="sgd", momentum=0), recorded=False, steps=1)
    start = torch.linspace(-1, 1, 7)
    torch.testing.assert_close(weights[0].detach(), start - 0.1 * torch.cos(start))
