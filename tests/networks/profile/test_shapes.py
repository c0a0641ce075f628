"""Counts that pass over norms and activations are those that go through them, and the network is left as it was."""

from contextlib import nullcontext

import pytest
import torch

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
