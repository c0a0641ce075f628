"""Every network of the catalogue compiles with its loss as one graph, without a break, and means the same."""

import pytest
import torch

from ulna.losses import LOSSES, make_loss
from ulna.networks.build import build
from ulna.networks.catalog import NAMED
from ulna.networks.heads import Outputs
from ulna.networks.heads.points import Points

# seconds of tracing
SLOW = {
    *("nas_unet", "nas_reduction_unet", "sdnu_net", "omega_net", "wide_unet", "efficient_unet"),
    *("nnunet_resenc", "mednext"),
}
QUICK = [name for name in NAMED if "/" not in name and name not in SLOW]
FEW = {"levels": 3, "base_channels": 4, "channels": None}


def gradients(network, loss):
    return dict(zip(dict(network.named_parameters()), torch.autograd.grad(loss, [*network.parameters()]), strict=True))


def compiled_equals_plain(name, spatial_dims, **changes):
    torch.manual_seed(0)
    torch._dynamo.reset()
    network = build(name, classes=2, spatial_dims=spatial_dims, **{**FEW, **changes}).train()
    for part in network.modules():  # each way of drawing has its own random numbers
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    if isinstance(network.head, Points):
        network.head.decoder.dropout = 0.0
    loss_of = make_loss("dice_ce", heads="equal", multilabel=False)
    size = (2, *(16,) * spatial_dims)
    images, labels = torch.randn(2, 1, *size[1:]), (torch.rand(size) < 0.4).long()
    points = torch.randint(16, (2, 20, spatial_dims)) if network.head.sparse else None

    def step(images, labels, points):
        loss, _ = loss_of(network.outputs(images, points), labels)
        return loss

    compiled = torch.compile(step, fullgraph=True, dynamic=False, backend="eager")
    expected, made = step(images, labels, points), compiled(images, labels, points)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    one, two = gradients(network, expected), gradients(network, made)
    for weight in one:  # float32, other orders of sums
        torch.testing.assert_close(two[weight], one[weight], rtol=1e-3, atol=1e-4, msg=weight)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.share(3)
def test_a_network_and_its_loss_are_one_graph(name):
    compiled_equals_plain(name, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMED if name not in QUICK])
def test_any_network_and_its_loss_are_one_graph(name):
    compiled_equals_plain(name, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nnunet", "unetpp", "implicit_unet", "sdu_net", "attention_unet"])
def test_a_network_of_volumes_and_its_loss_are_one_graph(name):
    compiled_equals_plain(name, 3, levels=2)


@pytest.mark.parametrize(
    ("kind", "heads", "ignored"),
    [
        ("focal_tversky", "halving", None),
        ("dice_ce", "halving", 3),
        *((kind, "equal", ignored) for kind in LOSSES if kind != "dice_ce" for ignored in (None, 3)),
    ],
)
@pytest.mark.share(4)
def test_other_losses_are_one_graph(kind, heads, ignored):
    torch._dynamo.reset()
    logits = {"x0": torch.randn(2, 3, 8, 8), "x1": torch.randn(2, 3, 4, 4)}
    loss_of = make_loss(kind, heads=heads, multilabel=False, ignored=ignored)
    labels = torch.randint(3 if ignored is None else 4, (2, 8, 8))

    def loss(heads, labels):
        return loss_of(Outputs(heads["x0"], heads), labels)[0]

    torch.testing.assert_close(
        torch.compile(loss, fullgraph=True, backend="eager")(logits, labels), loss(logits, labels)
    )
