"""Triton's interpreter for tests: chosen when Triton is imported, so what runs in it has a process of its own.

It knows no bf16 products (`multiplies_bf16` teaches them) and runs one program after the other.
"""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from ulna.kernels import gpu

INSTALLED = importlib.util.find_spec("triton") is not None
interpreted = pytest.mark.skipif(
    not (INSTALLED and gpu.INTERPRETED), reason="runs in the process of test_in_the_interpreter"
)
starts_it = pytest.mark.skipif(
    not INSTALLED or gpu.INTERPRETED, reason="Triton is not installed, or this is the interpreter's process"
)
on_a_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or not INSTALLED or gpu.INTERPRETED, reason="no GPU with Triton here"
)


def run_interpreted(file):
    """All tests of a file whose names have "interpreter" in them, but the one that starts them; none may be skipped."""
    chosen = ["-k", "interpreter and not in_the", "-o", "timeout=0"]  # the test that starts them has a limit for all
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *chosen, file]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def multiplies_bf16(monkeypatch):
    """Let the interpreter multiply bf16 numbers, whose bits it would multiply, and round to them as a GPU does.

    It cuts off what bf16 does not hold in place of rounding to the nearest.
    """
    from triton.runtime import interpreter

    def dot(builder, a, b, *rest):
        return multiply(builder, *(widened(t) for t in (a, b)), *rest)

    def widened(t):
        if t.dtype != interpreter.tl.bfloat16:
            return t
        return interpreter.TensorHandle((t.data.astype(np.uint32) << 16).view(np.float32), interpreter.tl.float32)

    def cast(builder, given, dtype):
        if (given.dtype.scalar, dtype.scalar) != (interpreter.tl.float32, interpreter.tl.bfloat16):
            return convert(builder, given, dtype)
        rounded = torch.from_numpy(given.data).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(rounded, interpreter.tl.bfloat16)

    builder = interpreter.InterpreterBuilder
    multiply, convert = builder.create_dot, builder.cast_impl
    monkeypatch.setattr(builder, "create_dot", dot)
    monkeypatch.setattr(builder, "cast_impl", cast)


def _repair():
    """Triton 3.6 asks numpy for the number in an array of length 1, which numpy refuses from 2.4 on."""
    from triton.runtime import interpreter

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    patch = interpreter._patch_lang_tensor
    interpreter._patch_lang_tensor = patched


if INSTALLED and gpu.INTERPRETED:
    _repair()


def compiled(function, pointers, numbers, constants, *, capability=90):
    """The machine code of a kernel for a GPU that need not be there: what the interpreter takes, the compiler may not.

    Args:
        function: the kernel.
        pointers: names of the arguments that are tensors -> their types, as "*bf16".
        numbers: the same of those that are numbers.
        constants: what is known when it is compiled.
        capability: of the GPU, as in sm_90.
    """
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    place = function.arg_names.index
    source = ASTSource(
        function,
        {name: "constexpr" if name in constants else {**pointers, **numbers}[name] for name in function.arg_names},
        {(place(name),): value for name, value in constants.items()},
        {(place(name),): [["tt.divisibility", 16]] for name in pointers if name in function.arg_names},
    )
    options = {"num_warps": 4, "enable_fp_fusion": True}
    return compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm
