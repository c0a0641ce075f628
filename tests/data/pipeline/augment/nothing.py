"""Settings that change nothing, to switch single changes on."""

from ulna.recipe import Augmentation

NOTHING = dict.fromkeys(("flip", "quarter_turn", "affine", "intensity", "gamma", "noise", "blur"), 0.0)


def only(**changes):
    """These changes alone."""
    return Augmentation(**{**NOTHING, **changes})
