"""Random changes of image and labels together: drawn a sample from its own stream, made for a whole batch on any device."""

from ulna.data.pipeline.augment.augment import Augment
from ulna.data.pipeline.augment.draws import Draw
from ulna.data.pipeline.augment.spatial import Piece

__all__ = ["Augment", "Draw", "Piece"]
