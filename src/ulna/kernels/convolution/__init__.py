"""Convolutions: `convolve` and `convolve_transposed` give what torch's operations give, by the path that is fastest here."""

from ulna.kernels.convolution.definition import joined
from ulna.kernels.convolution.dispatch import convolve, convolve_transposed, force, path_of, preferred_layout

__all__ = ["convolve", "convolve_transposed", "force", "joined", "path_of", "preferred_layout"]
