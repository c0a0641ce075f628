"""How good the network of an epoch is on a whole validation image."""

from __future__ import annotations

from torch import Tensor

from ulna.data.pipeline.preprocess import Prepared
from ulna.evaluation.known import known_alone
from ulna.evaluation.metrics import average, score_labels
from ulna.inference.forward import Forward
from ulna.inference.sliding import InAFile
from ulna.inference.volume import predict_slabs
from ulna.recipe import Recipe
from ulna.system.mapped import let_go


def score_case(
    forward: Forward, recipe: Recipe, prepared: Prepared, reference: Tensor, *, in_a_file: bool = False
) -> dict[str, float]:
    """Dice, IoU and what else needs no surface, as the mean over the structures that count; NaN where none does.

    Predicted as `ulna predict` does, without the mirrored copies of test-time augmentation.

    Args:
        forward: the network of the training, in evaluation mode, and its plan.
        recipe: resolved.
        prepared: the image.
        reference: on the image's own grid, (*S) or (K, *S).
        in_a_file: the image and the reference are mapped, and take no more memory than what is looked at.
    """
    plan = forward.plan
    slabs = predict_slabs(
        forward.network,
        plan,
        prepared,
        settings=recipe.inference.replaced(tta=False),
        device=forward.device,
        precision=forward.precision,
        forward=forward,
        given=InAFile(prepared.image, forward.device) if in_a_file else None,
    )
    mask = slabs.label_map(plan.labels, recipe.inference.threshold)
    scores = score_labels(
        *known_alone(mask, reference.numpy(), plan.labels),
        classes=len(plan.labels.foreground),
        spacing=(1.0,) * plan.image_dims,
        tolerance=1.0,
        multilabel=plan.labels.multilabel,
        empty_score=recipe.evaluation.empty_score,
        surface=False,
    )
    if in_a_file:
        let_go(reference)
    return average(scores, "per_image")
