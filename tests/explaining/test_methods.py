"""Maps that explain an answer, against their definitions written out, and against networks that know nothing."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn import functional as F

from tests.plans import make
from ulna.blocks.attention_gate import Gate
from ulna.blocks.self_attention import ChannelAttention, SpatialAttention
from ulna.data.pipeline.preprocess import Prepared, pad_to_patch
from ulna.errors import UsageError
from ulna.explaining.methods import (
    Piece,
    attention_maps,
    best_window,
    deepest_node,
    grad_cam,
    on_image_grid,
    on_plan_grid,
    saliency,
    score,
    uncertainty,
    window_size,
)
from ulna.inference.sliding import gaussian, window_starts
from ulna.networks.build import build
from ulna.recipe import Normalization, Whitening

SIZES = {2: (11, 14), 3: (6, 7, 9)}


def network_of(name="unet", *, spatial_dims=2, seed=0, in_channels=2, classes=1, **changes):
    options = {"channels": (4, 8), **changes}
    generator = torch.Generator().manual_seed(seed)
    return build(
        name, in_channels=in_channels, classes=classes, spatial_dims=spatial_dims, generator=generator, **options
    ).eval()


def image_of(spatial_dims=2, channels=2, seed=0):
    return torch.randn(channels, *SIZES[spatial_dims], generator=torch.Generator().manual_seed(seed))


def region_of(spatial_dims=2):
    region = torch.zeros(SIZES[spatial_dims], dtype=torch.bool)
    region[(slice(2, 5),) * spatial_dims] = True
    return region


def plan_of(spatial_dims=2, channels=2, **changes):
    return make(
        spatial_dims=spatial_dims,
        in_channels=channels,
        channel_names=tuple("abcd"[:channels]),
        normalization=(Normalization(kind="none"),) * channels,
        **changes,
    )


def whole(network, image, region, *, plan=None, target=0):
    plan = plan or plan_of(image.ndim - 1, len(image))
    return saliency(network, image, plan, target=target, region=region, size=region.shape, overlap=0.5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_saliency_is_the_derivative_of_the_summed_logit_by_finite_differences(spatial_dims):
    network = network_of(spatial_dims=spatial_dims, classes=3).double()
    image, region = image_of(spatial_dims).double(), region_of(spatial_dims)
    maps = whole(network, image, region, target=2)
    rng, step = np.random.default_rng(0), 1e-6
    for _ in range(12):
        at = tuple(int(rng.integers(n)) for n in image.shape)
        moved = [image.clone(), image.clone()]
        moved[0][at] -= step
        moved[1][at] += step
        with torch.no_grad():
            low, high = (float(network(one[None])[0, 2][region].sum()) for one in moved)
        assert float(maps[at]) == pytest.approx(abs(high - low) / (2 * step), rel=1e-5, abs=1e-6)
    assert float(maps.max()) > 0.01


def test_a_channel_that_the_network_does_not_read_has_no_saliency():
    network = network_of()
    maps = whole(network, image_of(), region_of())
    assert (maps.flatten(1).amax(1) > 0).all()
    with torch.no_grad():
        network.stages["x0_0"].conv.get_parameter(first_weight(network))[:, 1] = 0
    maps = whole(network, image_of(), region_of())
    assert maps[0].max() > 0
    assert torch.equal(maps[1], torch.zeros_like(maps[1]))


def first_weight(network):
    """The name of the weights that read the image."""
    return next(name for name, p in network.stages["x0_0"].conv.named_parameters() if p.ndim == 4 and p.shape[1] == 2)


def test_saliency_of_whitened_channels_is_that_of_the_channels_before():
    network, region = network_of(), region_of()
    matrix, mean = ((2.0, -1.0), (0.5, 3.0)), (0.3, -0.2)
    plan = plan_of(whitening=Whitening(mean=mean, matrix=matrix))
    before = image_of().requires_grad_()
    white = torch.einsum("kc,cyx->kyx", torch.tensor(matrix), before - torch.tensor(mean)[:, None, None])
    (expected,) = torch.autograd.grad(network(white[None])[0, 0][region].sum(), before)
    torch.testing.assert_close(whole(network, white.detach(), region, plan=plan), expected.abs(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_by_windows_it_is_the_derivative_of_the_logits_that_windows_give_together(spatial_dims):
    network, image, region = network_of(spatial_dims=spatial_dims), image_of(spatial_dims), region_of(spatial_dims)
    size = (4,) * spatial_dims
    maps = saliency(network, image, plan_of(spatial_dims), target=0, region=region, size=size, overlap=0.5)
    image.requires_grad_()
    weights, total, sums = gaussian(size), torch.zeros(region.shape), torch.zeros(region.shape)
    for corner in itertools.product(*(window_starts(n, 4, 0.5) for n in region.shape)):
        window = tuple(slice(start, start + 4) for start in corner)
        total[window] += network(image[(slice(None), *window)][None])[0, 0] * weights
        sums[window] += weights
    (expected,) = torch.autograd.grad((total / sums)[region].sum(), image)
    torch.testing.assert_close(maps, expected.abs(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(maps, whole(network, image.detach(), region), rtol=0.1)


def test_a_head_that_reads_points_is_asked_where_the_region_is():
    network, image, region = network_of("implicit_unet", seed=3), image_of(), region_of()
    assert network.head.sparse
    x = image[None].clone().requires_grad_()
    (expected,) = torch.autograd.grad(network(x)[0, 0][region].sum(), x)
    torch.testing.assert_close(whole(network, image, region), expected[0].abs(), rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        assert float(score(network, image[None], 0, region.float())) == pytest.approx(
            float(network(image[None])[0, 0][region].sum()), rel=1e-4
        )


def disc(rng):
    """A bright disc on noise, with its label map: (1, 24, 24), (24, 24)."""
    rows, columns = np.mgrid[:24, :24]
    y, x = rng.integers(8, 16, 2)
    inside = (rows - y) ** 2 + (columns - x) ** 2 < 25
    image = 2.0 * inside + rng.normal(0, 0.5, inside.shape)
    return torch.tensor(image, dtype=torch.float32)[None], torch.from_numpy(inside)


@pytest.fixture(scope="module")
def trained():
    """A network that finds discs."""
    rng, network = np.random.default_rng(0), network_of(in_channels=1, channels=(8, 16)).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        images, masks = (torch.stack(part) for part in zip(*[disc(rng) for _ in range(4)], strict=True))
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(network(images)[:, 0], masks.float()).backward()
        optimizer.step()
    return network.eval()


def test_maps_of_a_trained_network_are_not_those_of_one_with_random_weights(trained):
    """Sanity check (adebayo2018): a map that stays when the weights are drawn anew shows the image, not the network.

    Ranks are compared within the region: further out every map falls with the distance, whatever the weights.
    """
    rng, plan = np.random.default_rng(7), plan_of(2, 1)
    random = [network_of(in_channels=1, channels=(8, 16), seed=seed) for seed in (11, 12, 13)]
    nudged = copy.deepcopy(trained)
    with torch.no_grad():
        for parameter in nudged.parameters():
            parameter *= 1 + 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    of_random, of_nudged = [], []
    for _ in range(4):
        image, inside = disc(rng)
        with torch.no_grad():
            predicted = trained(image[None])[0, 0] > 0
        assert (predicted & inside).sum() > 0.8 * inside.sum()

        def correlation(network, image=image, region=predicted):
            maps = [whole(net, image, region, plan=plan)[0][region] for net in (trained, network)]
            return spearmanr(*maps).statistic

        assert correlation(copy.deepcopy(trained)) == pytest.approx(1.0)
        of_nudged.append(correlation(nudged))
        of_random += [correlation(network) for network in random]
    assert abs(np.mean(of_random)) < 0.25
    assert min(of_nudged) > 0.8


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_grad_cam_is_the_weighted_sum_of_the_deepest_maps(spatial_dims):
    network, image, region = (
        network_of(spatial_dims=spatial_dims, seed=1),
        image_of(spatial_dims),
        region_of(spatial_dims),
    )
    node = deepest_node(network)
    assert node == "x1_0"
    kept = {}
    handle = network.stages[node].register_forward_hook(lambda module, inputs, output: kept.update(map=output))
    logits = network(image[None])
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[0, 0][region].sum(), kept["map"])
    weights = gradient.mean(dim=tuple(range(2, gradient.ndim)), keepdim=True)
    coarse = (weights * kept["map"]).sum(1, keepdim=True).relu().detach()
    mode = {2: "bilinear", 3: "trilinear"}[spatial_dims]
    padded = [n + n % 2 for n in region.shape]
    expected = F.interpolate(coarse, size=padded, mode=mode)[0, 0][tuple(slice(n) for n in region.shape)]
    maps = grad_cam(network, image, target=0, region=region)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6)
    assert maps.shape == region.shape
    assert maps.max() > 0
    with pytest.raises(UsageError, match="x0_0"):
        grad_cam(network, image, target=0, region=region, node="x9_9")


FAMILY = ["unet", "unetpp", "omega_net", "nas_unet", "implicit_unet", "fcn", "sdu_net"]


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("name", FAMILY)
def test_grad_cam_is_that_of_captum(name, spatial_dims):
    captum = pytest.importorskip("captum.attr", reason="captum is not installed")
    network = network_of(name, spatial_dims=spatial_dims, channels=(6, 8, 12), classes=3, seed=1)
    image, region = image_of(spatial_dims), region_of(spatial_dims)
    for node in (deepest_node(network), network.wiring.nodes[0].name):
        maps = grad_cam(network, image, target=2, region=region, node=node)
        method = captum.LayerGradCam(lambda x: score(network, x, 2, region.float())[None], network.stages[node])
        expected = method.attribute(image[None].clone(), relu_attributions=True).detach()
        expected = on_plan_grid(expected[0], image.shape[1:], network)[0]
        # the same operations in float32; relative to the largest value, for sums may cancel
        torch.testing.assert_close(maps / expected.max(), expected / expected.max(), rtol=1e-5, atol=1e-6)
        assert maps.shape == SIZES[spatial_dims] and maps.min() >= 0 and expected.max() > 0


@pytest.mark.parametrize("name", ["unet", "implicit_unet"])
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_grad_cam_needs_no_gradients_outside_and_none_of_the_parameters(name, off):
    network, image, region = network_of(name), image_of(), region_of()
    expected = grad_cam(network, image, target=0, region=region)
    frozen = network_of(name).requires_grad_(False)
    with off():
        for net in (network, frozen):
            assert torch.equal(grad_cam(net, image, target=0, region=region), expected)
        assert torch.equal(grad_cam(frozen, image.clone(), target=0, region=region.clone()), expected)
    assert torch.equal(grad_cam(frozen, image.requires_grad_(), target=0, region=region), expected)
    assert expected.max() > 0 and not expected.requires_grad


def test_grad_cam_leaves_no_trace():
    network, image = network_of(), image_of()
    asked = [p.requires_grad for p in network.parameters()]

    def clean():
        hooks = [h for module in network.modules() for h in (module._forward_hooks, module._forward_pre_hooks)]
        hooks += [h for module in network.modules() for h in (module._backward_hooks, module._backward_pre_hooks)]
        return not any(hooks) and all(p.grad is None for p in network.parameters()) and image.grad is None

    grad_cam(network, image, target=0, region=region_of())
    assert clean() and not image.requires_grad and [p.requires_grad for p in network.parameters()] == asked
    with pytest.raises(UsageError, match="C = 2"):  # before the node
        grad_cam(network, image_of(channels=3), target=0, region=region_of())
    assert clean()
    with pytest.raises(IndexError):  # after it: no such map
        grad_cam(network, image, target=7, region=region_of())
    assert clean()


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("name", ["attention_unet", "omega_net", "unetpp"])
def test_attention_maps_are_the_coefficients_that_the_forward_pass_used(name, spatial_dims, monkeypatch):
    changes = {"skip": "attention_gate"} if name == "unetpp" else {}
    network, image = network_of(name, spatial_dims=spatial_dims, channels=(4, 6, 8), **changes), image_of(spatial_dims)
    maps = attention_maps(network, image)
    used = []
    for kind in (Gate, SpatialAttention, ChannelAttention):
        original = kind.attention

        def spy(block, *inputs, original=original):
            result = original(block, *inputs)
            used.append((result[0] if isinstance(result, tuple) else result)[0])
            return result

        monkeypatch.setattr(kind, "attention", spy)
    with torch.no_grad():
        network(image[None])
    padded = [-(-n // 4) * 4 for n in image.shape[1:]]
    expected = {"attention_unet": 2, "omega_net": 4, "unetpp": 1 + 1 + 2}[name]
    assert len(maps) == len(used) == expected
    for one, coefficients in zip(maps, used, strict=True):
        size = [n // 2 ** int(network.wiring.node(one.node).level) for n in padded]
        if one.kind == "gate":
            assert torch.equal(one.weights, coefficients)
            assert list(one.weights.shape) == [1, *size]
        elif one.kind == "position":
            assert torch.equal(one.weights.flatten(1), coefficients.mT)
            assert list(one.weights.shape) == [10, *size]
            torch.testing.assert_close(one.weights.sum(0), torch.ones(size))
        else:
            assert torch.equal(one.weights, coefficients)
            torch.testing.assert_close(one.weights.sum(1), torch.ones(len(one.weights)))
        assert one.weights.min() >= 0
        assert one.weights.max() <= 1
        assert one.skip in network.wiring.node(one.node).skips
    with torch.no_grad():  # a gate that is shut is shown shut
        for gate in (module for module in network.modules() if isinstance(module, Gate)):
            gate.psi.weight.zero_()
            gate.psi.bias.fill_(-200.0)
    assert all(one.weights.max() == 0 for one in attention_maps(network, image) if one.kind == "gate")


def test_listening_to_attention_leaves_the_network_as_it_was():
    network, image = network_of("attention_unet"), image_of()
    with torch.no_grad():
        before = network(image[None])
        attention_maps(network, image)
        assert torch.equal(network(image[None]), before)
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert attention_maps(network_of("unet"), image) == []


def test_equal_members_have_no_spread_and_others_have_that_of_numpy():
    maps = torch.rand(3, 4, 5)
    assert torch.equal(uncertainty([maps, maps, maps], exclusive=True).spread, torch.zeros_like(maps))
    members = [torch.rand(3, 4, 5) for _ in range(5)]
    found = uncertainty(iter(members), exclusive=True)
    assert found.members == 5
    np.testing.assert_allclose(found.spread, np.std([m.numpy() for m in members], axis=0), atol=1e-6)
    torch.testing.assert_close(found.mean, torch.stack(members).mean(0))
    assert uncertainty([maps], exclusive=True).spread is None
    with pytest.raises(ValueError, match="no member"):
        uncertainty([], exclusive=True)


def test_entropy_by_hand():
    sure, torn = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.5, 0.25, 0.25])
    found = uncertainty([torch.stack([sure, torn], dim=1)[..., None]], exclusive=True)
    assert found.entropy.shape == (1, 2, 1)
    assert found.entropy.flatten().tolist() == pytest.approx([0.0, 1.5 * math.log(2)])
    assert found.most == pytest.approx(math.log(3))
    binary = uncertainty([torch.tensor([[0.5, 1.0]]), torch.tensor([[0.0, 0.0]])], exclusive=True)
    expected = [-0.25 * math.log(0.25) - 0.75 * math.log(0.75), math.log(2)]  # of the mean, not the mean of entropies
    assert binary.entropy[0].tolist() == pytest.approx(expected)
    assert binary.most == pytest.approx(math.log(2))
    overlapping = uncertainty([torch.tensor([[0.5], [1.0]])], exclusive=False)
    assert overlapping.entropy.flatten().tolist() == pytest.approx([math.log(2), 0.0])


def test_an_image_is_explained_whole_where_prediction_takes_it_whole_and_gradients_fit():
    network = network_of()
    plan = plan_of(patch=(8, 8), whole_image_limit=200)
    assert window_size(network, plan, (10, 20), room=1e9) == (10, 20)
    assert window_size(network, plan, (10, 20), room=10) == (8, 8)
    assert window_size(network, plan, (10, 21), room=1e9) == (8, 8)
    assert window_size(network, plan, (6, 100), room=1e9) == (6, 8)
    assert window_size(network_of("implicit_unet"), plan, (10, 20), room=1e9) == (8, 8)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_repeated_voxels_count_with_all_their_copies(spatial_dims):
    """The derivative by the image that is framed, taken through the repetition itself."""
    network = network_of("implicit_unet", spatial_dims=spatial_dims, in_channels=1, channels=(4, 6))
    size, patch = (7, 8, 5)[:spatial_dims], (12, 8, 6)[:spatial_dims]
    prepared = Prepared(torch.randn(1, *size, generator=torch.Generator().manual_seed(0)), size)
    frame = pad_to_patch(prepared, patch)
    region = torch.zeros(patch, dtype=torch.bool)
    region[frame.inside] = True
    maps = saliency(
        network,
        frame.image,
        plan_of(spatial_dims, 1, patch=patch),
        target=0,
        region=region,
        size=patch,
        overlap=0.5,
        margins=frame.margins,
    )
    x = prepared.image.clone().requires_grad_()
    framed_again = pad_to_patch(Prepared(x, size), patch).image
    torch.autograd.backward((network(framed_again[None])[0, 0] * region).sum())
    torch.testing.assert_close(maps[frame.inside], x.grad.abs(), rtol=1e-4, atol=1e-6)
    maps[frame.inside] = 0
    assert maps.abs().max() == 0


def test_the_telling_piece_has_the_most_of_the_region():
    region = torch.zeros(20, 12, dtype=torch.bool)
    region[0, 0] = True
    region[13:19, 5:11] = True
    piece = best_window(region, (8, 8), 0.5)
    assert piece == Piece((12, 4), (8, 8))
    assert int(region[piece.window].sum()) == 36
    assert best_window(region, (20, 12), 0.5) == Piece((0, 0), (20, 12))


def test_maps_of_a_node_come_back_without_the_padding():
    ramp = torch.arange(7.0)[None, :, None].expand(1, 7, 7)  # of an image of 13, padded to 14, at stride 2
    fine = on_plan_grid(ramp, (13, 14), network_of())
    assert fine.shape == (1, 13, 14)
    expected = (torch.arange(13) + 0.5) / 2 - 0.5
    torch.testing.assert_close(fine[0, 1:, 3], expected[1:])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_maps_come_back_on_the_grid_of_the_image_and_pieces_in_their_place(spatial_dims):
    grid, size = (8,) * spatial_dims, (16,) * spatial_dims
    prepared = Prepared(torch.zeros(1, *grid), size)
    assert on_image_grid(torch.full((2, *grid), 3.0), prepared).unique().tolist() == [3.0]
    piece = Piece((4,) * spatial_dims, (4,) * spatial_dims)
    maps = on_image_grid(torch.ones(1, 4, *(4,) * (spatial_dims - 1)), prepared, piece)[0]
    assert maps.shape == size
    assert maps[(slice(9, None),) * spatial_dims].unique().tolist() == [1.0]
    assert maps[:7].abs().max() == 0
    same = Prepared(torch.zeros(1, *grid), grid)
    values = torch.rand(1, *grid)
    assert torch.equal(on_image_grid(values, same), values)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_margins_around_an_image_smaller_than_a_patch_do_not_come_back(spatial_dims):
    image = torch.rand(1, *(7, 8, 5)[:spatial_dims])
    frame = pad_to_patch(Prepared(image, tuple(image.shape[1:])), (10, 8, 6)[:spatial_dims])
    assert frame.image.shape == (1, *(10, 8, 6)[:spatial_dims])
    assert torch.equal(frame.image[0, 0], frame.image[0, 1])  # the outermost voxels again
    assert torch.equal(on_image_grid(frame.image, frame), image)
