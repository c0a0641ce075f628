"""Faults of torch's libraries: the reproductions in docs/torch-faults.md show them, or a workaround has become needless."""

import os
import re
import subprocess
import sys

import pytest
import torch

from tests.places import ROOT
from ulna.blocks import nd
from ulna.kernels import faults
from ulna.kernels.convolution import chunked, workarounds
from ulna.kernels.convolution.definition import Convolution
from ulna.kernels.faults import FAULTS, Fault

SECTION = re.compile(r"^## (\w+)\n(.*?)(?=^## |\Z)", re.M | re.S)
DOCUMENTED = dict(SECTION.findall((ROOT / "docs/torch-faults.md").read_text(encoding="utf-8")))
LIMIT_S = 120  # the longest takes some seconds; one that never returns shows its fault
# Written from maps that were wrong on a processor with AMX, and not run on one since: where a fault is known to be and its
# reproduction shows nothing, that says something about the reproduction. Take a name out once it has shown its fault.
UNTRIED = ("gaps", "transposed", "few_rows")
WITHOUT_AVX512 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI")


def cannot_show(fault: Fault) -> str:
    """Why this machine cannot show a fault; nothing if it can."""
    if fault.of_onednn and not torch.backends.mkldnn.is_available():
        return "torch has no oneDNN here"
    abilities = getattr(torch.cpu, "get_capabilities", dict)()
    allowed = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if fault.shows_on == "AVX2" and not abilities.get("avx2"):
        return "shows with AVX2 alone"
    if fault.shows_on == "AVX-512" and not (abilities.get("avx512_f") and allowed not in WITHOUT_AVX512):
        return "shows with AVX-512 alone"
    if fault.shows_on == "AMX" and not (
        abilities.get("amx_bf16") and (not allowed or "AMX" in allowed or allowed == "ALL")
    ):
        return "shows with AMX alone"
    return ""


def shows(script: str) -> str:
    """How a reproduction ended: its error, a signal or its time; nothing if it ended well."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"did not return within {LIMIT_S} s"
    if done.returncode <= 0:
        return f"signal {-done.returncode}" if done.returncode else ""
    assert "AssertionError" in done.stderr, done.stderr  # else the reproduction itself is broken
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("name", FAULTS)
def test_a_workaround_is_still_needed(name):
    fault = FAULTS[name]
    if reason := cannot_show(fault):
        pytest.skip(reason)
    shown = shows(re.search(r"```python\n(.*?)```", DOCUMENTED[name], re.S)[1])
    version = ".".join(torch.__version__.split(".")[:2])
    if name in faults.HERE and not shown:
        if name in UNTRIED and version in fault.seen:
            pytest.skip(f"known in torch {version}, but the reproduction shows nothing here: it wants a better one")
        pytest.fail(f"torch {version} does not show {name!r} any more: add the version to `gone` of kernels/faults.py")
    assert name in faults.HERE or not shown, f"torch {version} shows {name!r} ({shown}): take it out of `gone`"


STRIDED_PIXEL = """
import torch
from ulna.blocks import nd
conv = nd.conv(2, 4, 8, kernel_size=1, stride=2).to(memory_format=torch.channels_last)
x = torch.randn(32, 4, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
y = conv(x)
exact = [t.detach().double().requires_grad_() for t in (x, conv.weight, conv.bias)]
truth = torch.nn.functional.conv2d(*exact, stride=2)
gradients = torch.autograd.grad(y.sum(), [x, conv.weight, conv.bias]), torch.autograd.grad(truth.sum(), exact)
for ours, true in zip((y, *gradients[0]), (truth, *gradients[1]), strict=True):
    assert torch.allclose(ours.double(), true, rtol=1e-4, atol=1e-3)
"""


@pytest.mark.skipif(bool(reason := cannot_show(FAULTS["strided_pixel"])), reason=reason)
def test_a_kernel_of_one_pixel_with_a_stride_trains_on_a_processor_without_avx512():
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STRIDED_PIXEL], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr or done.returncode


def test_every_fault_is_described_with_its_versions():
    assert list(DOCUMENTED) == list(FAULTS)
    for name, fault in FAULTS.items():
        text = DOCUMENTED[name]
        assert re.findall(r"\*\*(.*?)\.?\*\*", text) == ["What happens", "Seen", "What ulna does"]
        seen = re.search(r"\*\*Seen\*\* in torch (.*)", text)[1]
        assert re.findall(r"\d\.\d+", seen) == list(fault.seen) and fault.shows_on in seen


def test_versions_that_nobody_has_tried_keep_their_workarounds():
    fault = Fault("a fault", ("2.13",), "AMX", gone=("2.15",))
    for version, here in {
        "2.9.1": True,
        "2.13.0+cpu": True,
        "2.15.2": False,
        "2.16.0a0+git1": True,
        "2.150": True,
    }.items():
        assert fault.is_here(version, onednn=True) == here
    assert not fault.is_here("2.13.0", onednn=False)
    assert fault._replace(of_onednn=False).is_here("2.13.0", onednn=False)


def test_without_a_fault_its_workaround_is_left_out(monkeypatch):
    def asked(size, kernel, stride, dilation=1):
        dims = len(size)
        x, weight = torch.randn(1, 2, *size).bfloat16(), torch.randn(3, 2, *[kernel] * dims).bfloat16()
        padding = (dilation * (kernel // 2),) * dims
        return Convolution([x], weight, None, (stride,) * dims, padding, (dilation,) * dims, 1)

    dilated, gap, long = asked((9, 9), 3, 1, dilation=2), asked((9, 9), 1, 2), asked((9, 9), 3, 3)
    pixel = asked((12, 12), 1, 2)
    volume, up = torch.randn(1, 2, 4, 60, 50).bfloat16(), torch.randn(2, 2, 2, 2, 2).bfloat16().requires_grad_()
    wide = torch.randn(5, 70, 3, 3, 3)

    def found():
        return {
            "dilated": workarounds.stays_float32(dilated),
            "gaps": workarounds.stays_float32(gap) and workarounds.stays_float32(long),
            "strided_pixel": workarounds.only_what_is_read(pixel).stride == (1, 1),
            "small": any(workarounds.extra_padding(asked((2, 2), 3, 2))),
            "transposed": workarounds.transposed_stays_float32(volume, stride=(3, 3, 3)),
            "few_rows": workarounds.axis_to_turn(volume, up, stride=(2, 2, 2)) == 1
            and chunked.pays(asked((4, 60, 50), 3, 1))
            and workarounds.block(wide) == 32
            and workarounds.fewest_rows() == workarounds.ROWS,
        }

    for name in found():
        monkeypatch.setattr(faults, "HERE", frozenset({name}))
        assert [one for one, on in found().items() if on] == [name]
    monkeypatch.setattr(faults, "HERE", frozenset())
    assert workarounds.block(wide) == 70 and workarounds.fewest_rows() == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert nd.conv(2, 2, 3, dilation=2)(torch.randn(1, 2, 9, 9)).dtype == torch.bfloat16
