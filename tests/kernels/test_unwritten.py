"""What a kernel in C++ reads it has written, or was given: arrays, buffers and tensors are full of NaN when they are made."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils import deterministic

from ulna.kernels import native
from ulna.kernels.convolution import convolve, path_of
from ulna.kernels.normalize import instance_norm
from ulna.kernels.sweep.dispatch import Direction, Gates, force, sweep

needs_native = pytest.mark.skipif(not native.available(), reason="no native kernels here")
# a declaration of automatic arrays without values: type, then names with their sizes
ARRAYS = re.compile(r"^ +(?:const )?[\w:]+(?:<\w+>)?\*? ((?:\*?\w+(?:\[[^\];=]+\])+(?:, )?)+);", re.M)
ALLOCATION = """#include <cstdlib>
#include <cstring>
static inline int full_of_nan(void** p, size_t alignment, size_t bytes) {
    const int failed = posix_memalign(p, alignment, bytes);
    if (!failed) std::memset(*p, 0xff, bytes);
    return failed;
}
"""
KERNELS = ("sweep", "sweep_matrices", "convolution", "normalize")


def full_of_nan(source: str) -> str:
    """The same program, in whose new memory every number is NaN: all bits are 1."""

    def filled(found: re.Match[str]) -> str:
        names = re.findall(r"(\w+)(?=(?:\[[^\]]+\])+(?:, |$))", found[1])
        return found[0] + "".join(f" std::memset((void*){name}, 0xff, sizeof {name});" for name in names)

    return ALLOCATION + ARRAYS.sub(filled, source).replace("posix_memalign(", "full_of_nan(")


def built(name: str, folder: Path, change: tuple[str, str] = ("", "")) -> ctypes.CDLL:
    source = native.source(name).read_text(encoding="utf-8")
    assert change[0] in source
    given, made = folder / f"{name}.cpp", folder / f"{name}.so"
    given.write_text(full_of_nan(source.replace(*change) if change[0] else source), encoding="utf-8")
    compiler = next(filter(None, map(shutil.which, native.COMPILERS)))
    for step in (
        ["-w", *native.FLAGS, "-c", given, "-o", folder / "made.o"],
        ["-shared", folder / "made.o", "-o", made],
    ):
        subprocess.run([compiler, *map(str, step)], check=True, capture_output=True, timeout=300)
    return ctypes.CDLL(str(made))


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    return {name: built(name, tmp_path_factory.mktemp(name)) for name in KERNELS}


@pytest.fixture
def spoilt(libraries: dict[str, ctypes.CDLL], monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ctypes.CDLL]]:
    """The kernels are the spoilt ones, and torch's new tensors are full of NaN too."""
    loaded = dict(libraries)
    monkeypatch.setattr(native, "library", lambda name, **_: loaded[name])
    monkeypatch.setattr(deterministic, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield loaded
    torch.use_deterministic_algorithms(before)


def swept(channels: int, dims: int, dtype: torch.dtype, bf16: bool) -> list[torch.Tensor]:
    """A map after a sweep and all gradients; few positions, an odd number of them."""
    generator = torch.Generator().manual_seed(channels)
    C, reads = channels, 3 if dims == 2 else 9
    sizes = ((1, C, *(4, 5, 3)[:dims]), (3 * C, reads * C), (3 * C, C), (3 * C,), (3 * C,))
    x, *gates = (torch.randn(s, dtype=dtype, generator=generator).mul(0.1).requires_grad_() for s in sizes)
    with force("native"), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = sweep(x, Gates(*gates), Direction(0))
    return [y, *torch.autograd.grad(y.square().sum(), [x, *gates])]


# whole vectors of every processor, and what is left over beside them
CHANNELS = (*range(1, 20), 31, 32, 33, 49)


@needs_native
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("dtype", "bf16"), [(torch.float32, True), (torch.float32, False), (torch.float64, False)])
@pytest.mark.share(2)
def test_a_sweep_reads_only_what_was_written(spoilt, dtype, bf16, dims) -> None:
    for channels in CHANNELS:
        assert all(t.isfinite().all() for t in swept(channels, dims, dtype, bf16)), channels


@needs_native
def test_an_array_that_is_read_before_it_is_written_would_show(spoilt, tmp_path) -> None:
    """As one was: half of the last pair of an odd number of weights."""
    if not hasattr(spoilt["sweep"], "sweep_forward_bf16"):
        pytest.skip("no instructions for pairs here")
    spoilt["sweep"] = built("sweep", tmp_path, ("O line[SOME] = {};", "O line[SOME];"))
    spoilt["sweep_matrices"] = None  # it has no such pairs
    for channels in (1, 5, 17):
        assert swept(channels, 2, torch.float32, bf16=True)[0].isnan().any()


@needs_native
@pytest.mark.parametrize(("channels", "outputs"), [(8, 8), (9, 13), (17, 33), (70, 15)])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_convolution_reads_only_what_was_written(spoilt, channels, outputs, dims) -> None:
    size = (2, channels, *((24, 27) if dims == 2 else (3, 13, 15)))
    x, w, b = (torch.randn(s).requires_grad_() for s in (size, (outputs, channels, *(3,) * dims), (outputs,)))
    for maps in ([x], [x[:, :3], x[:, 3:]]):
        assert path_of(maps, w, b) == "winograd"
        both = convolve(maps, w, b), (F.conv2d if dims == 2 else F.conv3d)(x, w, b, padding=1)
        pairs = [[y, *torch.autograd.grad(y.square().sum(), [x, w, b])] for y in both]
        for ours, theirs in zip(*pairs, strict=True):  # values that are not finite would be torch's own
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


@needs_native
@pytest.mark.parametrize("channels", [1, 3, 8, 17, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_reads_only_what_was_written(spoilt, channels, dtype) -> None:
    x = torch.randn(2, channels, 5, 7).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    w, b = torch.randn(channels, requires_grad=True), torch.randn(channels, requires_grad=True)
    y = instance_norm(x, w, b, eps=1e-3, slope=0.1)
    assert all(t.isfinite().all() for t in (y, *torch.autograd.grad(y.float().square().sum(), [x, w, b])))
