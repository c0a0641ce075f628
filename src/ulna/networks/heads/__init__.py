"""What is read off the maps, by name.

head(spatial_dims, widths, maps, **options)         widths: {node: channels of its map}, as `reads` chose the nodes
head({node: (N, C, *S)}, size, points) -> Outputs   size: that of the image which the maps were made from
"""

from ulna.networks.heads.dense import Dense, mean_logits
from ulna.networks.heads.head import Head, Outputs, Reader, probabilities
from ulna.networks.heads.points import Points
from ulna.networks.heads.scores import Scores

HEADS: dict[str, type[Head]] = {"dense": Dense, "scores": Scores, "points": Points}

__all__ = ["HEADS", "Dense", "Head", "Outputs", "Points", "Reader", "Scores", "mean_logits", "probabilities"]
