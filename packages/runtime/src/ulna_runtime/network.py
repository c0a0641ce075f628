"""The graphs of one network in onnxruntime: windows to logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna_runtime.errors import UsageError
from ulna_runtime.pipeline import Member
from ulna_runtime.points import by_stages, encode, vectors

Maps = NDArray[np.float32]


class Network:
    """Windows of an image to logits.

    Args:
        member: what the file says of the network.
        graphs: name -> bytes of an ONNX model.
        name: of the file, for messages.
        threads: that compute; None for all cores.
    """

    def __init__(self, member: Member, graphs: Mapping[str, bytes], name: object, threads: int | None = None) -> None:
        self.member, self.name = member, name
        missing = [file for file in member.graphs.files if file not in graphs]
        if missing:
            raise UsageError(f"{name}: has no {missing[0][:80]}, which its pipeline.json names; export the run again")
        self._sessions = [_session(graphs[file], f"{name}: {file}", threads) for file in member.graphs.files]
        channels = self._sessions[0].get_inputs()[0].shape[1]
        if channels != member.plan.inputs:
            raise UsageError(
                f"{name}: its graph reads {channels} channels, its pipeline.json says {member.plan.inputs}; "
                "export the run again"
            )

    def compute_with(self, sessions: Sequence[Any]) -> None:
        """Let others answer in the place of onnxruntime: each is used as one of its sessions is."""
        self._sessions = list(sessions)

    @property
    def by_patches(self) -> bool:
        """Whether it takes windows of one size alone: it never sees an image in one piece, nor a smaller one."""
        return self.member.graphs.kind == "points" or self.member.graphs.fixed is not None

    def dense_logits(self, window: Maps) -> Maps:
        """As `logits`, but every voxel is asked of a head that reads points."""
        return self.logits(window, mesh_step=1)

    def logits(self, window: Maps, mesh_step: int | None = None) -> Maps:
        """(C, *S) -> (K, *S).

        Args:
            window: of an image.
            mesh_step: of a head that reads points; None: as its settings say.

        Raises:
            UsageError: if what comes out is not finite: a label map would turn NaN into background.
        """
        size, divisor = window.shape[1:], self.member.graphs.divisor
        padded = np.pad(window, [(0, 0), *((0, -n % d) for n, d in zip(size, divisor, strict=True))], mode="edge")
        maps = self._run(0, padded[None])
        if self.member.graphs.kind == "points":
            logits = self._decoded(maps, padded.shape[1:], size, mesh_step)
        else:
            logits = maps[0][0][(..., *(slice(n) for n in size))]
        if logits.shape != (self.member.plan.labels.outputs, *size):
            raise UsageError(f"{self.name}: its graph gives maps of shape {logits.shape}; export the run again")
        bad = logits.size - int(np.count_nonzero(np.isfinite(logits)))
        if bad:
            raise UsageError(
                f"{self.name}: {bad:,} of {logits.size:,} values that it computed are NaN or infinite; the file is damaged, "
                "or the image has values far from those of the training images: check the image, or export the run again"
            )
        return np.asarray(logits, np.float32)

    def _decoded(self, maps: list[Maps], padded: tuple[int, ...], size: tuple[int, ...], mesh_step: int | None) -> Maps:
        graphs, plan, settings = self.member.graphs, self.member.plan, self.member.settings
        if mesh_step is not None:
            settings = replace(settings, mesh_step=mesh_step)

        def read(points: NDArray[np.int64]) -> Maps:
            entered = [vectors(one[0], points, padded, graphs.gather) for one in maps]
            entered.append(encode(points, padded, graphs.frequencies))
            return self._run(1, np.concatenate(entered, 1))[0].T

        return by_stages(read, size, settings, plan.labels.multilabel)

    def _run(self, number: int, values: Maps) -> list[Any]:
        session = self._sessions[number]
        try:
            return session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(values, np.float32)})
        except Exception as error:  # onnxruntime raises many types
            raise UsageError(
                f"{self.name}: its network cannot compute a window of {' x '.join(map(str, values.shape))} "
                f"({str(error).splitlines()[0][:200]}); export the run again"
            ) from None


def _session(data: bytes, name: str, threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_mem_pattern = False  # windows of several sizes, of which each would keep memory of its own
    options.enable_cpu_mem_arena = False
    # threads that wait rather than spin: others share the processors, and work for which windows wait is long
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many types
        raise UsageError(
            f"{name}: is no graph that onnxruntime {onnxruntime.__version__} runs ({str(error).splitlines()[0][:200]}); "
            "export the run again, or install a newer onnxruntime"
        ) from None
