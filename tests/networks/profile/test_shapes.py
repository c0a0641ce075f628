"""Counts that pass over some layers are those that go through them, and the network is left as it was."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from ulna.errors import UsageError
from ulna.networks.build import build
from ulna.networks.profile import cost, ptflops
from ulna.networks.profile.shapes import shapes_alone


@pytest.mark.parametrize("name", ["carvalho/sdu_net_nuclei", "roy/mednext_s", "laird/nas_reduction_unet"])
def test_counts_are_the_same(name, monkeypatch):
    def counts():
        (model,) = cost.models(name)
        size = (32,) * (len(model.entry.input) - 1)
        return cost.count_gmacs(model.network(), size), ptflops.count_ptflops_gmacs(model.network(), size)

    short = counts()
    for room in (cost, ptflops):
        monkeypatch.setattr(room, "shapes_alone", lambda network: nullcontext())
    assert short == counts() and min(short) > 0


def test_a_network_with_weights_is_computed_as_it_is():
    network = build("unet", parameters=20_000).eval()
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        before = network.outputs(image).logits
        with shapes_alone(network):
            assert torch.equal(network.outputs(image).logits, before)
    assert not any("forward" in vars(module) for module in network.modules())


def test_what_batch_norm_cannot_train_on_is_refused_where_it_is_counted():
    (model,) = cost.models("carvalho/unet_polyps")
    with pytest.raises(UsageError, match="batch norm cannot train on one value per channel"):
        cost.count_gmacs(model.network(), (16, 16))  # the deepest map is 1 x 1


@pytest.mark.parametrize("size", [(5, 7), (3, 4, 6)])
@pytest.mark.parametrize("factor", [2, (2, 3), 1.5])
def test_an_upsampled_map_has_the_size_that_torch_gives_it(size, factor):
    factor = (*factor, 1)[: len(size)] if isinstance(factor, tuple) else factor
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Upsample(scale_factor=factor)).to("meta")
    layer, x = network[1], torch.zeros(2, 3, *size, device="meta")
    expected = layer(x).shape
    with shapes_alone(network):
        assert "forward" in vars(layer)
        assert layer(x).shape == expected


def test_one_pass_counts_what_two_count():
    (model,) = cost.models("carvalho/sdu_net_nuclei")
    size = model.entry.input[1:]
    assert model.gmacs() == cost.count_gmacs(model.network(), size)
    assert model.ptflops_gmacs() == ptflops.count_ptflops_gmacs(model.network(), size)
