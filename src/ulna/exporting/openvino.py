"""A graph as OpenVINO holds it, and OpenVINO's answers in the place of onnxruntime's; its telemetry is kept from loading."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch

from ulna.errors import UsageError, printable

XML, BIN = "network.xml", "network.bin"


def need_openvino() -> Any:
    """OpenVINO, with its telemetry switched off: it knows no setting for that, and does without where the package is missing.

    Raises:
        UsageError: if it is not installed, with the command that installs it.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return import_module("openvino")
    except ImportError:
        raise UsageError(
            "--format openvino needs openvino, which is not installed; pip install 'ulna[openvino]', or export --format onnx"
        ) from None


def converted(model: bytes) -> dict[str, bytes]:
    """An ONNX graph as the two files of OpenVINO, by their names.

    Raises:
        UsageError: if OpenVINO cannot read the graph.
    """
    openvino = need_openvino()
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "network.onnx", Path(folder) / XML
        source.write_bytes(model)
        try:
            openvino.save_model(openvino.convert_model(str(source)), str(target), compress_to_fp16=False)
        except Exception as error:  # OpenVINO raises many types
            raise _fails(openvino, error) from None
        return {name: (Path(folder) / name).read_bytes() for name in (XML, BIN)}


class Session:
    """The two files, compiled for this CPU; used as a session of onnxruntime is.

    Args:
        files: of `converted`.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        openvino = need_openvino()
        core = openvino.Core()
        # in float32: by itself it computes in bf16 where the processor can, and in float16 on a GPU
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        try:
            self._compiled = core.compile_model(core.read_model(files[XML], files[BIN]), "CPU", settings)
        except Exception as error:  # OpenVINO raises many types
            raise _fails(openvino, error) from None

    def get_inputs(self) -> list[SimpleNamespace]:
        """The image alone."""
        return [SimpleNamespace(name="image")]

    def run(self, _: None, inputs: Mapping[str, Any]) -> list[Any]:
        """The logits of a window."""
        return [self._compiled(inputs["image"])[0]]


def write_openvino(path: Path, files: Mapping[str, bytes], about: Mapping[str, bytes]) -> None:
    """Write the files of OpenVINO and what is said about them into one zip."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**files, **about}.items():
            archive.writestr(name, data)


def _fails(openvino: Any, error: Exception) -> UsageError:
    why = printable(str(error).strip().splitlines()[-1][:200]) if str(error).strip() else type(error).__name__
    return UsageError(
        f"--format openvino: openvino {openvino.__version__} cannot compute this network ({why}); take --format onnx or ulna"
    )
