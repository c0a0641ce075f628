"""Which path serves which convolution; and whatever path is pinned, the answer is that of torch's operation."""

import pytest
import torch
from torch.nn import functional as F

from ulna.blocks import nd
from ulna.kernels import native
from ulna.kernels.convolution import convolve, convolve_transposed, dispatch, force, path_of

LARGE, THIN = (1, 4, 64, 64, 64), (1, 4, 4, 48, 64)
# path, size of a map, size of the weights, precision, settings
WANTED = [
    ("winograd", (1, 8, 24, 24), (8, 8, 3, 3), torch.float32, {}),
    ("winograd", (1, 8, 3, 24, 24), (9, 8, 3, 3, 3), torch.float32, {}),
    ("winograd", (1, 8, 3, 24, 24), (9, 8, 1, 3, 3), torch.float32, {}),
    ("torch", (1, 8, 8, 8), (8, 8, 3, 3), torch.float32, {}),  # few pixels
    ("torch", (1, 8, 24, 24), (8, 8, 3, 3), torch.bfloat16, {}),
    ("torch", (1, 8, 24, 24), (8, 8, 3, 3), torch.float64, {}),
    ("torch", (1, 8, 24, 24), (8, 8, 5, 5), torch.float32, {}),
    ("torch", (1, 8, 24, 24), (8, 8, 3, 3), torch.float32, {"stride": (2, 2)}),
    ("torch", (1, 8, 24, 24), (8, 8, 3, 3), torch.float32, {"padding": (0, 0)}),
    ("torch", (1, 8, 24, 24), (8, 8, 3, 3), torch.float32, {"dilation": (2, 2), "padding": (2, 2)}),
    ("torch", (1, 16, 24, 24), (8, 8, 3, 3), torch.float32, {"groups": 2}),
    ("chunked", LARGE, (4, 4, 3, 3, 3), torch.bfloat16, {}),
    ("chunked", LARGE, (4, 4, 2, 2, 2), torch.float16, {"stride": (2, 2, 2)}),
    ("chunked", THIN, (4, 4, 3, 3, 3), torch.bfloat16, {}),
    ("torch", (1, 4, 40, 20, 20), (4, 4, 3, 3, 3), torch.bfloat16, {}),
    ("depthwise", (1, 8, 4, 6, 6), (8, 1, 3, 3, 3), torch.float32, {"groups": 8}),
    ("depthwise", (1, 8, 9, 9), (8, 1, 5, 5), torch.bfloat16, {"groups": 8, "stride": (2, 2)}),
    ("torch", (1, 8, 4, 6, 6), (8, 1, 3, 3, 3), torch.float16, {"groups": 8}),
    ("torch", (1, 8, 9, 9), (8, 1, 3, 3), torch.bfloat16, {"groups": 8}),
    ("torch", (1, 8, 9, 9), (8, 1, 5, 5), torch.float32, {"groups": 8}),
]


def drawn(size, weight, dtype):
    generator = torch.Generator().manual_seed(sum(size))
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in (size, weight, weight[:1])]


@pytest.fixture(autouse=True)
def switched_on(monkeypatch):
    monkeypatch.setenv("ULNA_NATIVE", "1")  # what is not compiled needs the switch alone


@pytest.mark.parametrize(("path", "size", "weight", "dtype", "settings"), WANTED)
def test_every_convolution_has_its_path(path, size, weight, dtype, settings):
    if path == "winograd" and not native.available():
        path = "torch"
    x, w, b = drawn(size, weight, dtype)
    assert path_of(x, w, b, **settings) == path
    assert path_of([x[:, :1], x[:, 1:]], w, b, **settings) == path
    if path in ("chunked", "depthwise"):  # for their gradients
        assert path_of(x, w.detach(), b, **settings) == "torch"
        with torch.no_grad():
            assert path_of(x, w, b, **settings) == "torch"
    if dtype == torch.bfloat16:  # as autocast has it
        with torch.autocast("cpu", torch.bfloat16):
            assert path_of(x.float(), w.float(), b.float(), **settings) == path


@pytest.mark.parametrize("path", [*dispatch.PATHS, "torch", "auto"])
@pytest.mark.parametrize(
    ("size", "weight", "dtype", "groups"),
    [
        ((1, 8, 9, 10), (8, 8, 3, 3), torch.float32, 1),
        ((1, 9, 5, 6, 7), (8, 9, 3, 3, 3), torch.bfloat16, 1),
        ((2, 8, 9, 7), (8, 1, 3, 3), torch.float32, 8),
        ((2, 8, 9, 7), (8, 1, 3, 3), torch.bfloat16, 8),
    ],
)
def test_a_pinned_path_answers_as_torch_does(path, size, weight, dtype, groups):
    ours = drawn(size, weight, dtype)
    exact = [t.detach().double().requires_grad_() for t in ours]
    with force(path):
        y = convolve(*ours, groups=groups)
    truth = (F.conv2d if len(size) == 4 else F.conv3d)(*exact, padding=1, groups=groups)
    dy = torch.randn(truth.shape).to(dtype)
    room = 1e-5 if dtype == torch.float32 else 0.03
    pairs = zip(
        (y, *torch.autograd.grad(y, ours, dy)), (truth, *torch.autograd.grad(truth, exact, dy.double())), strict=True
    )
    for mine, true in pairs:
        assert mine.dtype == dtype and (mine - true).abs().max() <= room * true.abs().max()


def test_a_path_is_pinned_where_it_can_be_and_within_the_with_alone():
    x, w, b = drawn((1, 8, 8, 8), (8, 8, 3, 3), torch.float32)
    assert path_of(x, w, b) == "torch"
    with force("chunked"):
        assert path_of(x, w, b) == "torch"  # not of float32
        assert path_of(x.bfloat16(), w.bfloat16(), b.bfloat16()) == "chunked"
    with force("depthwise"), force("winograd"):
        assert path_of(x, w, b) == ("winograd" if native.available() else "torch")
    assert path_of(x, w, b) == "torch"
    with pytest.raises(ValueError, match="no path named 'fastest'; choose auto, chunked"), force("fastest"):
        pass


def test_tensors_of_several_precisions_are_torch_s():
    x, w, b = drawn((1, 8, 24, 24), (8, 8, 3, 3), torch.float32)
    for others in ((x.double(), w, b), (x, w.double(), b), (x, w, b.bfloat16())):
        assert path_of(*others) == "torch"
        with pytest.raises(RuntimeError):
            convolve(*others)
    mixed = [x[:, :3].bfloat16(), x[:, 3:]]
    # which path takes the joined map is this machine's matter, so sums may go in another order
    torch.testing.assert_close(convolve(mixed, w, b), convolve(torch.cat(mixed, 1), w, b), rtol=1e-5, atol=1e-4)


def test_a_block_s_layers_go_through_the_dispatch(monkeypatch):
    asked = []
    monkeypatch.setattr(nd, "convolve", lambda *a, **k: asked.append("conv") or convolve(*a, **k))
    monkeypatch.setattr(nd, "convolve_transposed", lambda *a, **k: asked.append("up") or convolve_transposed(*a, **k))
    x = torch.randn(1, 4, 6, 6)
    nd.transposed_conv(2, 4, 4, stride=2)(nd.conv(2, 4, 4)(x))
    assert asked == ["conv", "up"]
