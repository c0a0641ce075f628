"""The network alone, for other programs: an ONNX file, or one of OpenVINO."""

from __future__ import annotations

import sys
import tempfile
import zipfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ulna.errors import UsageError
from ulna.system.extras import need


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


def write_onnx(path: Path, members: Mapping[str, bytes], format: str) -> None:
    """Write the graph of an export alone, with its pipeline and card as metadata; OpenVINO's two files in a zip.

    Args:
        path: the file.
        members: of the exported file.
        format: onnx or openvino.

    Raises:
        UsageError: if the export has several graphs.
    """
    graphs = [name for name in members if name.endswith(".onnx")]
    if len(graphs) != 1:
        raise UsageError(f"--format {format} holds one graph, and this export has {len(graphs)}; take --format ulna")
    onnx = need("onnx")
    model = onnx.load_from_string(members[graphs[0]])
    onnx.helper.set_model_props(model, {name: members[name].decode() for name in ("pipeline.json", "card.json")})
    if format == "onnx":
        path.write_bytes(model.SerializeToString())
        return
    openvino = need_openvino()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "network.onnx", Path(folder) / "network.xml"
        onnx.save(model, source)
        openvino.save_model(openvino.convert_model(str(source)), str(target), compress_to_fp16=False)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in (target, target.with_suffix(".bin")):
                archive.write(file, file.name)
            for name in ("pipeline.json", "card.json"):
                archive.writestr(name, members[name])
