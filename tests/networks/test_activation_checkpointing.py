"""Maps computed a second time in the backward pass: the same training, with less held in between."""

import copy
from contextlib import nullcontext

import pytest
import torch

from ulna import build
from ulna.kernels import normalize
from ulna.networks.profile.memory import peak_bytes

NARROW = {"channels": (8, 12, 16)}
DROPOUT = {"conv": {"kind": "double_conv", "options": {"dropout": 0.3}}}


@pytest.mark.parametrize("native", ["1", "0"])
@pytest.mark.parametrize(
    ("name", "changes"),
    [("unet", {}), ("unetpp", DROPOUT), ("nnunet", {}), ("sdu_net", {}), ("omega_net", {}), ("attention_unet", {})],
)
def test_loss_gradients_and_running_statistics_are_the_same(name, changes, native):
    torch.manual_seed(0)
    plain = build(name, spatial_dims=2, in_channels=1, **NARROW, **changes).train()
    again = copy.deepcopy(plain)
    again.activation_checkpointing = True
    image = torch.randn(2, 1, 32, 32).contiguous(memory_format=torch.channels_last)
    for network in (plain, again):
        torch.manual_seed(1)  # of dropout
        with nullcontext() if native == "1" else normalize.force("torch"):
            sum(logits.square().mean() for logits in network.outputs(image).heads.values()).backward()
    for (key, ours), (_, theirs) in zip(again.state_dict().items(), plain.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), key
    for (key, ours), (_, theirs) in zip(again.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7, msg=key)


def test_less_is_held_and_prediction_is_left_as_it_is():
    network = build("unet", spatial_dims=3, channels=(8, 16, 24), strides=(2, 2))
    step = peak_bytes(network, (32, 32, 32), training=True)
    network.activation_checkpointing = True
    assert peak_bytes(network, (32, 32, 32), training=True) < 0.7 * step
    image = torch.randn(1, 1, 16, 16, 16)
    network.eval()
    assert network(image).grad_fn is not None  # nothing is recomputed outside training
