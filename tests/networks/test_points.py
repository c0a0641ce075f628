"""Implicit U-Net: counts to the integer, the encoding by hand, the decoder written out, points against dense answers."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.networks.test_build import count
from ulna.blocks import nd
from ulna.errors import UsageError
from ulna.networks import heads
from ulna.networks.build import build
from ulna.networks.heads.decoder import PointDecoder, WeightNormLinear, encode
from ulna.networks.profile.cost import count_gmacs, models
from ulna.networks.profile.memory import _Peak
from ulna.planning.choosing import recommended

NARROW = {"kind": "points", "options": {"width": 16, "depth": 3}}
SIZE = {2: (12, 20), 3: (8, 12, 4)}


def narrow(name="implicit_unet", dims=2, **changes):
    options = {"channels": (3, 4, 6), "head": NARROW, **changes}
    return build(name, spatial_dims=dims, generator=torch.Generator().manual_seed(0), **options).eval()


def random_points(size, number=30):
    return torch.stack([torch.randint(0, n, (1, number)) for n in size], dim=-1)


def test_rows_have_the_counted_parameters():
    """docs/papers/implicit_unet.md, section 4, for one input channel."""
    counted = {1: 19_849_633, 2: 19_850_146, 3: 19_850_659}
    assert {k: count("marimont/implicit_unet", spatial_dims=3, classes=k) for k in counted} == counted
    counted = {1: 31_193_984, 2: 31_194_784, 3: 31_195_584}
    assert {k: count("marimont/unet", spatial_dims=3, classes=k) for k in counted} == counted
    seven = {"kind": "points", "options": {"depth": 7}}
    assert count("marimont/implicit_unet", spatial_dims=3, classes=2, head=seven) == 19_586_978
    assert count("marimont/implicit_unet", spatial_dims=3, classes=2, channels=(32, 64, 128, 256)) == 10_061_730


def test_the_recommended_build_is_an_encoder_of_nnunet_a_narrower_decoder_and_fewer_points_in_small_patches():
    assert {dims: count("implicit_unet", spatial_dims=dims) for dims in (2, 3)} == {2: 5_442_913, 3: 9_176_865}
    ours, theirs = (
        build(name, spatial_dims=3, channels=(4, 6, 8, 9, 10)).stages for name in ("implicit_unet", "nnunet")
    )
    shapes = [
        {name: p.shape for name, p in stages.named_parameters() if name.split(".")[0] in ours}
        for stages in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]
    decoder = build("implicit_unet", spatial_dims=3).head.decoder
    assert (len(decoder.hidden), decoder.hidden[1].v.shape) == (8, (256, 256))
    assert recommended("implicit_unet").points.fraction == 1 / 32
    (model,) = models("implicit_unet")
    assert model.points((48, 48, 48)) == 48**3 // 32


def test_rows_do_the_counted_work():
    """At 160 x 160 x 96: 182.5 for the encoder, 68.3 for 30,000 points, 559.3 for U-Net.

    Source: docs/papers/implicit_unet.md, section 4.
    """
    (implicit,), (unet,) = models("marimont/implicit_unet"), models("marimont/unet")
    assert implicit.gmacs() == pytest.approx(182.5 + 68.3, abs=0.05)
    assert unet.gmacs() == pytest.approx(559.3, abs=0.05)
    assert count_gmacs(implicit.network(), (160, 160, 96), points=1) == pytest.approx(182.5, abs=0.05)


def test_dense_work_is_that_of_the_encoder_and_a_decoder_at_every_voxel():
    with torch.device("meta"):
        net = build("implicit_unet", channels=(2, 3), head=NARROW)
    at_none, everywhere = (count_gmacs(net, (8, 8), points=p) for p in (0, None))
    entered = 2 + 3 + 40
    assert (everywhere - at_none) * 1e9 == pytest.approx(64 * (entered * 16 + 16 * 16 + 16 * 16 + 16))


@pytest.mark.parametrize(
    ("point", "q"), [((0, 0, 0), (-1, -1, -1)), ((4, 2, 0), (1, 0, -1)), ((3, 4, 0), (0.5, 1, -1))]
)
def test_the_encoding_is_its_formula(point, q):
    """q = 2p / (S - 1) - 1, an axis of one voxel at -1; then sines and cosines of 2^l pi q."""
    made = encode(torch.tensor([[point]]), (5, 5, 1), 3)[0, 0].double()
    by_hand = []
    for frequency in range(3):
        by_hand += [math.sin(2**frequency * math.pi * v) for v in q] + [math.cos(2**frequency * math.pi * v) for v in q]
    assert made.tolist() == pytest.approx(by_hand, abs=1e-5)


def test_the_encoding_has_60_values_in_3d_and_keeps_its_precision_in_large_patches():
    size = (160, 160, 96)
    points = random_points(size, 200)
    made = encode(points, size, 10)
    assert made.shape == (1, 200, 60)
    q = 2 * points.double() / (torch.tensor(size, dtype=torch.float64) - 1) - 1
    exact = torch.cat([f(2**n * math.pi * q) for n in range(10) for f in (torch.sin, torch.cos)], dim=-1)
    torch.testing.assert_close(made.double(), exact, atol=5e-4, rtol=0)  # float32, angles up to 512 pi


@pytest.mark.parametrize("skip_layer", [0, 2])
def test_the_decoder_is_weight_norm_and_relu_layer_by_layer(skip_layer):
    torch.manual_seed(0)
    decoder = PointDecoder(5, 2, width=4, depth=3, dropout=0.2, skip_layer=skip_layer).double().eval()
    for layer in decoder.hidden:
        torch.nn.init.normal_(layer.v), torch.nn.init.normal_(layer.g), torch.nn.init.normal_(layer.bias)
    x = torch.randn(1, 3, 5, dtype=torch.float64)
    y = decoder(x, decoder.weights())
    for point in range(3):
        entered = h = x[0, point].tolist()
        for number, layer in enumerate(decoder.hidden, start=1):
            h = h + entered if number == skip_layer else h
            h = [
                max(0.0, sum(g * v / math.sqrt(sum(u * u for u in row)) * e for v, e in zip(row, h, strict=True)) + b)
                for row, g, b in zip(layer.v.tolist(), layer.g.tolist(), layer.bias.tolist(), strict=True)
            ]
        out = [sum(w * e for w, e in zip(row, h, strict=True)) for row in decoder.final.weight.tolist()]
        expected = [o + b for o, b in zip(out, decoder.final.bias.tolist(), strict=True)]
        assert y[0, point].tolist() == pytest.approx(expected)


def test_weight_norm_starts_as_plain_he_weights_and_its_gradient_is_that_of_finite_differences():
    layer = WeightNormLinear(64, 128)
    layer.initialise(torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer.weight(), layer.v)
    assert layer.v.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    small = WeightNormLinear(3, 2).double()
    small.initialise()
    x = torch.randn(4, 3, dtype=torch.float64)

    def run(v, g):
        return torch.func.functional_call(
            small, {"v": v, "g": g}, (x, torch.nn.functional.normalize(v, dim=1) * g[:, None])
        )

    assert torch.autograd.gradcheck(run, (small.v, small.g))


@pytest.mark.parametrize("gather", ["nearest", "linear"])
@pytest.mark.parametrize("dims", [2, 3])
def test_points_have_the_logits_of_the_dense_answer(dims, gather, monkeypatch):
    net = narrow(
        dims=dims, classes=3, head={"kind": "points", "options": {**NARROW["options"], "gather": gather}}
    ).double()
    image = torch.randn(1, 1, *SIZE[dims], dtype=torch.float64)
    points = random_points(SIZE[dims])
    outputs, dense = net.outputs(image, points), net(image)
    at = dense[(0, slice(None), *points[0].unbind(-1))][None]
    torch.testing.assert_close(outputs.logits, at)
    assert outputs.points is points
    assert outputs.heads["points"] is outputs.logits
    monkeypatch.setattr(heads.points, "CHUNK", 7)  # the last chunk is a partial one
    torch.testing.assert_close(net(image), dense)


@pytest.mark.parametrize(("dims", "coarse"), [(2, 1), (3, 2)])
def test_prediction_multiplies_coarse_maps_once_and_answers_as_training_does(dims, coarse):
    """Half the levels are read point by point; those of stride 8 in 2D, and of 4 and 8 in 3D, are folded in."""
    size = (16, 24, 8)[:dims]
    net = narrow(dims=dims, classes=3, channels=(3, 4, 5, 6)).double()
    maps = net.features(torch.randn(2, 1, *size, dtype=torch.float64))
    points = random_points(size).repeat(2, 1, 1)
    asked = net.head(maps, size, points).logits
    with torch.no_grad():
        folded = net.head._fold(maps, size, net.head.decoder.weights()[0])
        assert len(folded.fine) == 4 - coarse
        assert folded.product.shape[2:] == maps[net.head.nodes[4 - coarse]].shape[2:]
        read = net.head.reader(maps, size)
        torch.testing.assert_close(read(points).logits, asked, rtol=1e-12, atol=1e-12)
        dense = read(None).logits
    at = torch.stack([one[(slice(None), *p.unbind(-1))] for one, p in zip(dense, points, strict=True)])
    # float64; a library may add up the products of one point in another order than those of many
    torch.testing.assert_close(read(points).logits, at, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("skip_layer", [0, 2])
@pytest.mark.parametrize("dims", [2, 3])
def test_maps_with_channels_last_are_read_by_the_decoder_itself(dims, skip_layer):
    head = {"kind": "points", "options": {**NARROW["options"], "skip_layer": skip_layer}}
    net, size = narrow(dims=dims, classes=3, head=head).double(), SIZE[dims]
    maps = {n: m.detach() for n, m in net.features(torch.randn(2, 1, *size, dtype=torch.float64)).items()}
    points, made = random_points(size, 60).repeat(2, 1, 1), []
    for layout in (torch.contiguous_format, nd.layout(dims, True)):
        laid = {n: m.clone(memory_format=layout).requires_grad_() for n, m in maps.items()}
        assert bool(net.head._unread(points, laid, size)) == (layout != torch.contiguous_format)
        logits = net.head(laid, size, points).logits
        seed = torch.arange(logits.numel(), dtype=torch.float64).view_as(logits)
        every = [*laid.values(), *net.head.parameters()]
        made.append([logits, *torch.autograd.grad(logits, every, seed)])
    for ours, plain in zip(*made, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("gather", ["nearest", "linear"])
def test_memory_of_a_prediction_does_not_grow_with_the_number_of_points(gather, bf16, monkeypatch):
    monkeypatch.setattr(heads.points, "CHUNK", 256)
    net = narrow(dims=3, classes=3, head={"kind": "points", "options": {**NARROW["options"], "gather": gather}})
    most = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        maps = net.features(torch.randn(1, 1, 8, 12, 4))
        for number in (512, 20_000):
            points = random_points((8, 12, 4), number)
            read = net.head.reader(maps, (8, 12, 4))
            read(points)  # what is kept for good is made now
            with _Peak() as peak:
                logits = read(points).logits
            assert logits.shape == (1, 3, number)
            most.append(peak.most)
    answers = 2 * 3 * 20_000 * (2 if bf16 else 4)  # those of every portion, which are joined in the end
    assert most[1] <= most[0] + answers
    assert most[0] > 256 * 16 * 2


def test_in_low_precision_the_folded_answer_is_as_near_as_the_plain_one():
    net = narrow(dims=3, classes=3, channels=(8, 8, 16, 16))
    image = torch.randn(1, 1, 16, 24, 8)
    with torch.no_grad():
        exact = net.double()(image.double())
        net.float()
        with torch.autocast("cpu", torch.bfloat16):
            maps = net.features(image)
            folded = net.head(maps, image.shape[2:]).logits
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
            plain = net.head({n: m.detach() for n, m in maps.items()}, image.shape[2:]).logits.detach()
    errors = [(logits.double() - exact).norm() / exact.norm() for logits in (folded, plain)]
    assert errors[0] < 1.5 * errors[1]


def test_sizes_that_strides_do_not_divide_are_not_folded():
    net = narrow(channels=(3, 4, 5, 6))
    maps = net.features(torch.randn(1, 1, 16, 24))
    with torch.no_grad():
        assert net.head._fold(maps, (16, 24), net.head.decoder.weights()[0]) is not None
        assert net.head._fold(maps, (15, 24), net.head.decoder.weights()[0]) is None


@pytest.mark.parametrize("options", [{"gather": "linear"}, {"skip_layer": 2}])
def test_where_the_first_layer_cannot_be_folded_it_is_not(options):
    net = narrow(channels=(3, 4, 5, 6), head={"kind": "points", "options": {**NARROW["options"], **options}}).double()
    image = torch.randn(1, 1, 16, 24, dtype=torch.float64)
    with torch.no_grad():
        assert net.head._fold(net.features(image), (16, 24), net.head.decoder.weights()[0]) is None
        alone = net(image)
    torch.testing.assert_close(alone, net(image))


def test_the_head_reads_every_level_where_the_point_lies():
    """marimont2022, Sec. 2: the vectors at (x // 2^b, y // 2^b) of every map, then the place, then the decoder."""
    net = narrow().double()
    image = torch.randn(1, 1, 12, 20, dtype=torch.float64)
    maps = net.features(image)
    x, y = 9, 14
    parts = [maps[f"x{b}_0"][0, :, x // 2**b, y // 2**b] for b in range(3)]
    place = encode(torch.tensor([[[x, y]]]), (12, 20), 10, dtype=torch.float64)[0, 0]
    decoder = net.head.decoder
    expected = decoder(torch.cat([*parts, place])[None, None], decoder.weights())[0, 0]
    torch.testing.assert_close(net(image)[0, :, x, y], expected)


@pytest.mark.parametrize("name", ["unet", "unetpp", "omega_net", "implicit_unet"])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_head_reads_the_pyramid_of_any_topology_and_every_parameter_learns(name, dims):
    net = narrow(name, dims).train()
    image = torch.randn(2, 1, *SIZE[dims])
    points = random_points(SIZE[dims]).repeat(2, 1, 1)
    net.outputs(image, points).logits.square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []
    assert net.head.nodes == net.wiring.pyramid


@pytest.mark.parametrize("name", ["unetpp", "omega_net", "nnunet", "fcn"])
def test_dense_heads_can_be_read_at_points_too(name):
    net = build(name, channels=(3, 4, 6), classes=2).eval()
    image = torch.randn(1, 1, 13, 10)
    points = random_points((13, 10))
    at, dense = net.outputs(image, points), net.outputs(image)
    assert at.heads.keys() == dense.heads.keys()
    rows, columns = points[0].unbind(-1)
    for head, logits in dense.heads.items():
        stride = -(-13 // logits.shape[2])
        expected = logits[0][:, rows // stride, columns // stride]
        torch.testing.assert_close(at.heads[head][0], expected)
    torch.testing.assert_close(at.logits[0], dense.logits[0][:, rows, columns])


def test_gradients_at_points_are_those_of_the_dense_answer_at_them():
    net = narrow(classes=2).double()
    image = torch.randn(1, 1, 12, 20, dtype=torch.float64)
    points = random_points((12, 20), 50)  # some twice
    seed = torch.randn(1, 2, 50, dtype=torch.float64)
    at = torch.autograd.grad((net.outputs(image, points).logits * seed).sum(), list(net.parameters()))
    dense = net(image)[(slice(None), slice(None), *points[0].unbind(-1))]
    for a, b in zip(at, torch.autograd.grad((dense * seed).sum(), list(net.parameters())), strict=True):
        torch.testing.assert_close(a, b)


def test_dropout_acts_in_training_only():
    net = narrow(head={"kind": "points", "options": {**NARROW["options"], "dropout": 0.5}})
    image = torch.randn(1, 1, 12, 20)
    assert torch.equal(net(image), net(image))
    net.train()
    assert not torch.equal(net(image), net(image))


def test_all_features_of_the_papers_network_are_800_and_the_place_60():
    (row,) = models("marimont/implicit_unet")
    assert row.network().head.decoder.hidden[0].v.shape == (512, 800 + 60)


def test_the_row_trains_as_the_paper_says():
    recipe = recommended("marimont/implicit_unet")
    assert (recipe.optimizer.kind, recipe.optimizer.lr, recipe.loss.kind) == ("adamw", 1e-4, "dice_ce")
    assert recipe.optimizer.weight_decay == 0.01  # torch's: without one, AdamW is Adam
    assert (recipe.points.count, recipe.points.alpha, recipe.points.sigma) == (30_000, 0.5, 5.0)
    assert recipe.inference.overlap == 0.3


def test_linear_gathering_is_smooth_where_nearest_jumps():
    """The paper blames its patchy artefacts on the step from one deep vector to the next."""

    def step(gather):
        net = narrow(head={"kind": "points", "options": {**NARROW["options"], "gather": gather, "frequencies": 0}})
        maps = {name: torch.zeros_like(m) for name, m in net.features(torch.zeros(1, 1, 8, 8)).items()}
        maps["x2_0"][..., 1:] = 1.0
        logits = net.head(maps, (8, 8)).logits[0, 0, 0]
        return logits.diff().abs().max() / (logits.max() - logits.min())

    assert step("nearest") == 1.0
    assert step("linear") < 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gather": "nearst"}, "did you mean 'nearest'"),
        ({"widht": 3}, "did you mean 'width'"),
        ({"width": 0}, "one unit or more"),
        ({"depth": 0}, "one hidden layer"),
        ({"skip_layer": 9}, "layers 2 to 8"),
        ({"frequencies": -1}, "0 or more"),
        ({"dropout": 2.0}, "dropout is 2"),
        ({"dropout": 1.0}, "from 0 to below 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        build("implicit_unet", channels=(2, 3), head={"kind": "points", "options": options})


@pytest.mark.parametrize("shape", [(1, 5, 3), (2, 5, 2), (5, 2)])
def test_points_that_do_not_fit_the_image_are_refused(shape):
    with pytest.raises(UsageError, match=r"takes \(N, P, D\) = \(1, P, 2\)"):
        narrow().outputs(torch.zeros(1, 1, 8, 8), torch.zeros(shape, dtype=torch.long))


def test_a_network_read_at_points_overfits_two_images():
    torch.manual_seed(0)
    net = build(
        "implicit_unet", channels=(8, 16, 32), head={"kind": "points", "options": {"width": 32, "depth": 3}}
    ).train()
    image = torch.randn(2, 1, 24, 24)
    target = (F.avg_pool2d(image, 5, 1, 2) > 0).float()
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(80):
        points = random_points((24, 24), 200).expand(2, -1, -1)
        truth = target[:, 0][:, points[0, :, 0], points[0, :, 1]][:, None]
        loss = F.binary_cross_entropy_with_logits(net.outputs(image, points).logits, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    agreement = ((net.eval()(image) > 0) == (target > 0)).float().mean()
    assert agreement > 0.97
