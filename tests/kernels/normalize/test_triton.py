"""Norm and activation in Triton against the definition in float64: in Triton's interpreter, and on a GPU.

The operator around the kernels is tested on any machine: without Triton, torch's operations answer for it.
"""

import logging

import pytest
import torch
from torch.nn import functional as F

from tests.kernels.interpreter import compiled, interpreted, on_a_gpu, run_interpreted, starts_it
from tests.kernels.normalize.test_normalize import channels_last, drawn, relative
from ulna.blocks import nd
from ulna.kernels import normalize
from ulna.kernels.normalize import batch_norm, dispatch, force, instance_norm, path_of, triton

# odd sizes, one channel, several tiles of channels, a batch of one, one position for batch norm
SHAPES = [(2, 3, 5, 7), (1, 1, 9, 9), (3, 32, 6, 5, 4), (2, 150, 3, 5), (1, 40, 1, 70), (5, 8, 1, 1)]
# largest error as a share of the largest value: float32 sums, which cancel where a channel is alone; bf16 has 8 bits, and
# the gradient is rounded twice
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 6e-3, torch.float16: 1e-3}


@starts_it
@pytest.mark.timeout(900)
def test_in_the_interpreter():
    run_interpreted(__file__)


@pytest.fixture
def in_chunks(monkeypatch):
    """Small maps are cut as large ones are."""
    monkeypatch.setattr(triton, "ALONE", 0)
    monkeypatch.setattr(triton, "VALUES", 64)


def compare(kind, shape, dtype, slope, *, device="cpu", mean=20.0, tolerance=None):
    """Values, statistics and all gradients of the kernels against torch's own in float64."""
    x, w, b, dy = (t.to(device) for t in drawn(shape, torch.float32))
    x, dy = channels_last((x - 20 + mean).to(dtype)), channels_last(dy.to(dtype))
    ours = [t.clone().requires_grad_() for t in (x, w, b)]
    exact = [t.double().requires_grad_() for t in (x, w, b)]
    axes = [0, *range(2, x.ndim)] if kind == "batch" else [*range(2, x.ndim)]
    with force("triton"):
        assert path_of(*ours) == "triton"
        if kind == "instance":
            y = instance_norm(*ours, eps=1e-5, slope=slope)
        else:
            y, found, variance = batch_norm(*ours, eps=1e-5, slope=slope)
            assert relative(found, exact[0].mean(axes)) < 1e-6
            assert relative(variance, exact[0].var(axes, correction=0)) < 1e-5
        y.backward(dy)
    away = exact[0] - exact[0].mean(axes, keepdim=True)
    normal = away / (away.square().mean(axes, keepdim=True) + 1e-5).sqrt()
    channels = (1, -1, *(1,) * (x.ndim - 2))
    truth = F.leaky_relu(normal * exact[1].view(channels) + exact[2].view(channels), slope)
    truth.backward(dy.double())
    tolerance = tolerance or TOLERANCE[dtype]
    assert y.dtype == dtype and y.is_contiguous(memory_format=normalize.definition.last(x))
    assert relative(y, truth) < tolerance
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad.dtype == mine.dtype and relative(mine.grad, theirs.grad) < tolerance


@interpreted
@pytest.mark.parametrize("slope", [1.0, 0.0, 0.01])
@pytest.mark.parametrize("kind", ["instance", "batch"])
@pytest.mark.parametrize("shape", SHAPES)
def test_interpreter_equals_the_definition(shape, kind, slope):
    if kind == "batch" or shape[2:] != (1, 1):
        compare(kind, shape, torch.float32, slope)


@interpreted
@pytest.mark.parametrize("kind", ["instance", "batch"])
@pytest.mark.parametrize("shape", [(2, 3, 9, 17), (1, 1, 40, 11), (2, 40, 3, 7, 5)])
def test_interpreter_puts_chunks_together(shape, kind, in_chunks):
    assert triton.Sizes.of(torch.empty(shape), shape[0]).chunks > 1
    compare(kind, shape, torch.float32, 0.01)


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["instance", "batch"])
def test_interpreter_takes_low_precision(kind, dtype):
    compare(kind, (2, 20, 6, 7), dtype, 0.01)


@interpreted
@pytest.mark.parametrize("cut", [False, True])
def test_interpreter_keeps_the_deviations_of_maps_with_a_large_mean(cut, request):
    """float32 knows values around 10,000 to 0.001, and so the mean; a sum of squares would know the variance to some 10."""
    if cut:
        request.getfixturevalue("in_chunks")
    compare("instance", (2, 5, 24, 30), torch.float32, 1.0, mean=1e4, tolerance=1e-3)
    x = channels_last(torch.full((1, 8, 12, 12), 1e4))
    with force("triton"):
        assert torch.equal(instance_norm(x, torch.ones(8), torch.arange(8.0), eps=1e-5)[0, :, 0, 0], torch.arange(8.0))
        x[:, :, 0] = 0  # as at the border of an image
        _, mean, variance = batch_norm(x, torch.ones(8), torch.zeros(8), eps=1e-5)
    torch.testing.assert_close(mean, x.double().mean((0, 2, 3)).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance, x.double().var((0, 2, 3), correction=0).float(), rtol=1e-5, atol=0)


@interpreted
def test_interpreter_keeps_missing_values_in_their_channel():
    x, w, b, _ = drawn((2, 8, 6, 6), torch.bfloat16)
    x[0, 3, 2, 2] = torch.nan
    with force("triton"):
        y = instance_norm(x, w, b, eps=1e-5)
    assert y[0, 3].isnan().all() and not y[0, :3].isnan().any() and not y[1].isnan().any()


@interpreted
def test_interpreter_takes_gradients_laid_out_in_any_way_and_weights_in_steps():
    x, w, b, dy = drawn((2, 6, 5, 4), torch.float32)
    found = []
    for gradient, weight in ((dy, w), (dy.contiguous(), torch.stack([w, b], 1)[:, 0])):
        ours = [x.clone().requires_grad_(), weight.detach().requires_grad_(), b.clone().requires_grad_()]
        with force("triton"):
            instance_norm(*ours, eps=1e-5, slope=0.0).backward(gradient)
        found.append([t.grad for t in ours])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@interpreted
@pytest.mark.parametrize("channels", [3, 32])
def test_interpreter_launches_as_often_as_said(channels, monkeypatch, request):
    """One launch each way where an image is small, else three and two beside one sum; images take one sum more."""
    launched = []
    launch = triton._launch
    monkeypatch.setattr(
        triton, "_launch", lambda name, *rest, **more: launched.append(name) or launch(name, *rest, **more)
    )

    def names():
        launched.clear()
        compare("instance", (2, channels, 9, 17), torch.float32, 1.0)
        return list(launched)

    assert names() == ["forward", "gradient"]
    request.getfixturevalue("in_chunks")
    assert names() == ["moments", "whole_moments", "apply", "sums", "gradient"]


@interpreted
def test_interpreter_is_taken_only_when_it_is_asked_for():
    x, w, b, _ = drawn((1, 4, 5, 5), torch.float32)
    assert path_of(x, w, b) != "triton"
    with force("triton"):
        assert path_of(x.double(), w, b) == path_of(x.contiguous(), w, b) == path_of(x, w[:3], b) == "torch"
        assert path_of(x, w.bfloat16(), b.bfloat16()) == "torch"
        assert path_of(*(t.bfloat16() for t in (x, w, b))) == "triton"


POINTERS = dict.fromkeys(("x", "y", "dy", "dx"), "*bf16") | dict.fromkeys(
    ("weight", "bias", "statistics", "parts", "totals"), "*fp32"
)
NUMBERS = dict.fromkeys(("rows", "length", "chunks", "images", "channels"), "i32") | {
    "eps": "fp32",
    "slope": "fp32",
}


@starts_it
@pytest.mark.parametrize(
    ("name", "more"),
    [
        *((name, {}) for name in ("moments", "apply", "forward", "sums")),
        ("whole_moments", {"BC": 16, "BK": 64}),
        *(("gradient", {"WHOLE": whole}) for whole in (False, True)),
    ],
)
def test_kernels_compile_for_a_gpu(name, more, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes = more if name == "whole_moments" else {"BC": 64, "BR": triton.VALUES // 64, **more}
    assert compiled(getattr(triton._kernels(), name), POINTERS, NUMBERS, sizes)["cubin"]


# The operator, with torch's operations in place of its kernels


@pytest.fixture
def operator(monkeypatch):
    """CPU maps go to the operator, which finds no Triton."""
    monkeypatch.setattr(dispatch, "path_of", lambda *_: "triton")
    monkeypatch.setattr(triton, "available", lambda _: False)


@pytest.mark.parametrize("slope", [1.0, 0.0, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["instance", "batch"])
def test_operator_without_kernels_equals_the_definition(kind, dtype, slope, operator, monkeypatch):
    monkeypatch.setattr("tests.kernels.normalize.test_triton.path_of", dispatch.path_of)
    compare(kind, (2, 7, 3, 4, 5), dtype, slope)


@pytest.mark.parametrize("images", [2, 1])
def test_operator_is_one_that_torch_knows(images, monkeypatch):
    monkeypatch.setattr(triton, "available", lambda _: False)
    x, w, b, _ = drawn((2, 5, 4, 6), torch.float32)
    inputs = tuple(t.requires_grad_() for t in (x, w, b))
    torch.library.opcheck(triton._norm, (*inputs, 1e-5, 0.01, images))


def test_second_derivatives_and_torch_func_go_to_torch(operator, monkeypatch):
    x, w, b, _ = (t.double() for t in drawn((2, 3, 3, 4), torch.float32))
    x, w, b = ((x - 20) / 3).requires_grad_(), w.requires_grad_(), b.requires_grad_()

    def by_operator(*inputs):
        return triton.normalize(*inputs, eps=1e-3, slope=0.3, images=2)[0]

    definition = triton.definition
    monkeypatch.setattr(triton, "_forward_by_torch", float64_forward)
    assert torch.autograd.gradgradcheck(by_operator, (x, w, b))
    with force("triton"):
        monkeypatch.undo()
        assert path_of(x, w, b) == "torch"  # float64
        seen = []

        def loss(x, w, b):
            seen.append(path_of(x, w, b))
            return definition(x, w, b, eps=1e-3, slope=0.3, images=2).sum()

        torch.func.grad(loss)(*(t.detach().float() for t in (x, w, b)))
        assert seen == ["torch"]


def float64_forward(x, w, b, eps, slope, images):
    """Statistics are float32, and no difference quotient of them is of use: only their shape matters here."""
    y = triton.definition(x, w, b, eps=eps, slope=slope, images=images)
    return y.contiguous(memory_format=torch.channels_last), torch.zeros(3, images, x.shape[1])


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_compiled_as_one_graph(norm, monkeypatch):
    """As on a GPU: while a graph is made, the operator is put into it by what it is given alone."""
    monkeypatch.setattr(dispatch, "path_of", lambda x, w, b: "triton" if triton.suits(x, w, b) else "torch")
    monkeypatch.setattr(triton, "available", lambda _: False)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    layer = nd.norm(norm, 2, 6)
    x, _, _, dy = drawn((2, 6, 5, 7), torch.float32)
    mine, theirs = (x.clone().requires_grad_() for _ in range(2))
    torch.compile(layer, fullgraph=True, backend=backend)(mine, 0.01).backward(dy)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    layer = nd.norm(norm, 2, 6)
    with force("torch"):
        layer(theirs, 0.01).backward(dy)
    assert [node.target for node in graphs[0].graph.nodes if "norm" in str(node.target)] == [
        torch.ops.ulna.norm.default
    ]
    assert relative(mine.grad, theirs.grad.double()) < 1e-5
    for name, buffer in layer.named_buffers():
        torch.testing.assert_close(before[name], buffer)


def test_a_kernel_that_fails_is_said_once_and_does_without(monkeypatch, caplog):
    def fails(*_):
        calls.append(1)
        raise RuntimeError("no compiler for the launcher\nmore")

    calls = []
    monkeypatch.setattr(triton, "_broken", [])
    monkeypatch.setattr(triton, "_forward", fails)
    monkeypatch.setattr(triton.gpu, "runs_on", lambda _: True)
    monkeypatch.setattr(triton.gpu, "INTERPRETED", False)
    with caplog.at_level(logging.WARNING):
        compare("instance", (2, 3, 4, 5), torch.float32, 0.01)
        with force("triton"):
            assert path_of(*drawn((2, 3, 4, 5), torch.float32)[:3]) == "torch"
    assert len(calls) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "the Triton kernel of norms failed, torch's own operations take over (no compiler for the launcher)"
    ]


# Torch's own calls where there is no Triton


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 19, 6, 5, 4), (2, 1, 9, 9), (4, 32, 5, 7)])
def test_the_whole_batch_at_once_is_image_by_image(shape, dtype):
    x, w, b, dy = drawn(shape, dtype)
    ours, theirs = ([t.clone().requires_grad_() for t in (x, w, b)] for _ in range(2))
    y, z = dispatch.whole_batch(*ours, 1e-5), dispatch.image_by_image(*theirs, 1e-5)
    assert y.stride() == x.stride()
    y.backward(dy)
    z.backward(dy)
    assert relative(y, z.double()) < TOLERANCE[dtype]
    for mine, other in zip(ours, theirs, strict=True):
        assert relative(mine.grad, other.grad.double()) < TOLERANCE[dtype]


def test_the_whole_batch_can_be_derived_twice():
    x, w, b, _ = (t.double().requires_grad_() for t in drawn((2, 2, 3, 3), torch.float32))
    whole = lambda *inputs: dispatch.whole_batch(*inputs, 1e-3)  # noqa: E731
    assert torch.autograd.gradgradcheck(whole, (x, w, b))


# On a GPU

GPU_SHAPES = [(8, 3, 37, 41), (2, 32, 64, 64, 64), (32, 150, 12, 12), (1, 320, 9, 7, 5), (4, 64, 256, 256)]


@on_a_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["instance", "batch"])
@pytest.mark.parametrize("shape", GPU_SHAPES)
def test_gpu_equals_the_definition(shape, kind, dtype):
    # float32 sums of up to 262,144 terms an image, in another order; an activation may turn where the map is 0
    compare(kind, shape, dtype, 1.0, device="cuda", tolerance=1e-5 if dtype == torch.float32 else None)


@on_a_gpu
@pytest.mark.gpu
def test_gpu_repeats_bit_for_bit():
    x, w, b, dy = (t.cuda() for t in drawn((2, 32, 64, 64, 64), torch.bfloat16))
    found = []
    for _ in range(5):
        ours = [t.clone().requires_grad_() for t in (x, w, b)]
        y = instance_norm(*ours, eps=1e-5, slope=0.01)
        y.backward(dy)
        found.append([y, *(t.grad for t in ours)])
    assert all(torch.equal(a, b) for again in found[1:] for a, b in zip(found[0], again, strict=True))


@on_a_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_gpu_norms_within_a_cuda_graph(norm):
    layer = nd.norm(norm, 3, 16).cuda()
    x, dy = (channels_last(torch.randn(2, 16, 24, 24, 24, device="cuda").bfloat16()) for _ in range(2))
    x.requires_grad_()

    def step():
        return torch.autograd.grad(layer(x, 0.01), x, dy)[0]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()  # compiled before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        dx = step()
    for _ in range(2):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(dx, step())


@on_a_gpu
@pytest.mark.gpu
def test_gpu_takes_triton_by_itself():
    x, w, b, _ = (t.cuda() for t in drawn((2, 8, 5, 5), torch.bfloat16))
    assert path_of(x, w, b) == "triton"
