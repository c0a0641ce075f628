"""The verb `info`: the model card of a run or of an exported file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulna.errors import UsageError
from ulna.exporting.card import card_of, page
from ulna.inference.fold_runs import each_run
from ulna.inference.zoo import located
from ulna.recipe import Plan, Recipe, from_yaml
from ulna.system.extras import need
from ulna.system.files import write_text


@dataclass(frozen=True)
class Info:
    """A model card.

    Args:
        name: of the run or the file.
        card: what is known of the model, as plain values.
    """

    name: str
    card: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dict(self.card)


def info(run: Path | str, /, *, out: Path | str | None = None) -> Info:
    """Print the model card of a run or of an exported file: what it was trained on, its scores, limits and licence.

    Args:
        run: a run folder, the folds of a cross-validation, a file of `ulna export`, or zoo:NAME.
        out: also write the card as a page, in Markdown.

    Raises:
        UsageError: if it is neither, or is damaged.

    Example:
        ulna info liver.ulna
    """
    run = located(run)
    if run.is_file():
        card = read_card(run)
    else:
        runs = each_run([run])
        first = runs[0]
        if not (first / "plan.yaml").exists():
            raise UsageError(f"{run}: is neither a run folder nor a file of `ulna export`; name one of them")
        card = card_of(runs, from_yaml(Plan, first / "plan.yaml"), from_yaml(Recipe, first / "recipe.yaml"), None)
    if out is not None:
        if Path(out).exists():
            raise UsageError(f"{out}: exists; choose another --out")
        write_text(Path(out), page(card, f"Model card: {run.name}"))
    return Info(run.name, card)


def read_card(path: Path) -> dict[str, Any]:
    """The card of an exported file, whose digests are checked.

    Raises:
        UsageError: if the file is damaged.
    """
    bundle = need("ulna_runtime.bundle")
    try:
        card: dict[str, Any] = bundle.read_bundle(path, graphs=False).card
    except need("ulna_runtime.errors").UsageError as error:
        raise UsageError(str(error)) from None
    return card
