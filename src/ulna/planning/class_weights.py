"""Weights of the classes that a recipe leaves to the data, in numbers."""

from __future__ import annotations

from ulna.errors import UsageError
from ulna.losses.weights import AUTO, MOST, inverse_frequencies
from ulna.recipe import Plan, Recipe

REASON = "class_weights"  # of a plan


def with_weights(recipe: Recipe, plan: Plan) -> tuple[Recipe, Plan]:
    """A recipe whose `loss.options.weights` are numbers, and the plan with how they came to be, where it is their plan.

    Raises:
        UsageError: if they are left to a plan that knows nothing of the classes, as those of an earlier ulna.
    """
    wanted = recipe.loss.options.get("weights")
    counts, multilabel = plan.fingerprint.voxels, plan.labels.multilabel
    known = len(counts) == len(plan.labels.foreground) + 1 and sum(counts) > 0
    if wanted == AUTO and not known:
        raise UsageError(
            "loss.options.weights=auto: this plan does not hold how many voxels each class has; make it anew with "
            "`ulna plan`, or give one number a class"
        )
    plan = plan.replaced(reasons={name: why for name, why in plan.reasons.items() if name != REASON})
    if wanted is None or not known:
        return recipe, plan
    found = inverse_frequencies(counts, multilabel=multilabel)
    if wanted == AUTO:
        recipe = recipe.replaced(loss=recipe.loss.replaced(options={**recipe.loss.options, "weights": list(found)}))
    elif wanted != list(found):
        return recipe, plan
    names = ("background", *plan.labels.foreground)[multilabel:]
    whole = sum(counts)
    told = ", ".join(
        f"{weight:g} for {name} ({count / whole:.2g} of the voxels)"
        for name, weight, count in zip(names, found, counts[multilabel:], strict=True)
    )
    why = f"{told}: by the training labels, the rarer the more, at most {MOST:g}"
    return recipe, plan.replaced(reasons=plan.reasons | {REASON: why})


def with_asked_weights(planned: Recipe, asked: Recipe) -> Recipe:
    """A planned recipe for several trainings: weights that were left to the data are counted by each of them itself."""
    return planned.replaced(loss=asked.loss) if asked.loss.options.get("weights") == AUTO else planned
