"""FCN's head against its definition."""

import pytest
import torch
from torch.nn import functional as F

from ulna.errors import UsageError
from ulna.networks.build import build
from ulna.networks.heads import Scores


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_scores_are_upsampled_and_summed_from_the_deepest(spatial_dims):
    head = Scores(spatial_dims, {"a": 3, "b": 4, "c": 5}, 2).double()
    size = (12, 8, 16)[:spatial_dims]
    maps = {
        name: torch.randn(1, width, *(n // stride for n in size), dtype=torch.float64)
        for name, width, stride in (("a", 3, 1), ("b", 4, 2), ("c", 5, 4))
    }
    z = {n: torch.einsum("oc,nc...->no...", head.convs[n].weight.flatten(1), m) for n, m in maps.items()}
    z = {n: s + head.convs[n].bias.view(1, -1, *(1,) * spatial_dims) for n, s in z.items()}

    def up(x):  # linear by 2 along one axis after the other: a quarter of the neighbour, three quarters of the pixel
        for axis in range(2, x.ndim):
            n = x.shape[axis]
            before = x.index_select(axis, torch.tensor([0, *range(n - 1)]))
            after = x.index_select(axis, torch.tensor([*range(1, n), n - 1]))
            x = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1).flatten(axis, axis + 1)
        return x

    expected = z["a"] + up(z["b"] + up(z["c"]))
    outputs = head(maps, size)
    torch.testing.assert_close(outputs.logits, expected)
    assert list(outputs.heads) == ["scores"]
    torch.testing.assert_close(outputs.heads["scores"], expected)


def test_the_three_deepest_maps_are_read_and_the_answer_has_the_size_of_the_image():
    net = build("fcn", channels=(2, 3, 4, 5, 6)).eval()
    assert list(net.head.convs) == ["x2_0", "x3_0", "x4_0"]
    image = torch.randn(1, 1, 32, 48)
    maps = net.features(image)
    coarse = net.head(maps, (8, 12)).logits
    torch.testing.assert_close(net(image), F.interpolate(coarse, (32, 48), mode="bilinear"))


@pytest.mark.parametrize("name", ["unet", "unetpp", "omega_net"])
def test_scores_read_the_pyramid_of_any_topology_and_nothing_is_built_in_vain(name):
    net = build(name, head="scores", channels=(2, 3, 4, 5))
    net(torch.randn(1, 1, 16, 16)).sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


def test_a_network_with_one_head_cannot_be_pruned():
    with pytest.raises(UsageError, match="nothing to prune"):
        build("fcn", channels=(2, 3)).prune("scores")
