"""ulna-runtime: segments images with a file of `ulna export`; numpy and onnxruntime, no torch.

Example:
    from ulna_runtime import load

    load("liver.ulna")("scan.nii.gz").save("mask.nii.gz")
"""

from ulna_runtime.errors import UsageError
from ulna_runtime.segmenter import Result, Segmenter, load
from ulna_runtime.volume import Volume

__version__ = "0.1.0"
__all__ = ["Result", "Segmenter", "UsageError", "Volume", "__version__", "load"]
