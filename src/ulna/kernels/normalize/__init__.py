"""Normalisation and the activation after it; see `dispatch.py` for which path serves which map."""

from ulna.kernels.normalize.definition import activated
from ulna.kernels.normalize.dispatch import batch_norm, force, instance_norm, path_of, suits

__all__ = ["activated", "batch_norm", "force", "instance_norm", "path_of", "suits"]
