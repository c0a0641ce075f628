"""Which precision is chosen."""

import pytest
import torch

from ulna.system.device import choose_precision

NAMES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("", "bf16"),
        ("AVX512_CORE_BF16", "bf16"),
        ("avx512_core_amx", "bf16"),
        ("AVX512_CORE", "fp32"),
        ("avx2", "fp32"),
    ],
)
def test_bf16_is_taken_where_the_library_may_use_the_instructions(limit, expected, name, monkeypatch):
    """A limit on oneDNN's instructions makes bf16 an emulation, whatever the processor could do."""
    for other in NAMES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, limit)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert choose_precision("auto", torch.device("cpu")) == expected
    assert choose_precision("bf16", torch.device("cpu")) == "bf16", "as a person wants it"


def test_a_processor_without_bf16_computes_in_float32(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert choose_precision("auto", torch.device("cpu")) == "fp32"
