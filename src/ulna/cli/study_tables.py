"""What verbs print that compare several networks: `compare`, `bench` and `prune`."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console

from ulna.cli.printing import SYNTHETIC, make_table, mean_and_interval, print_plain, quoted, safe
from ulna.errors import counted


def print_study(console: Console, study: Any) -> None:
    """Of `compare`: a row a network, and what may be concluded."""
    from ulna.study.publishing import subtitle  # torch, which takes over a second to import

    outcome = study.outcome
    table = make_table(
        "model", "parameters", "GMACs", "Dice \\[95 %]", "n", "sd seeds", "ms", title=safe(subtitle(outcome))
    )
    table.columns[0].overflow = "fold"
    for model in outcome.models:
        cost, dice = outcome.costs.models[model], outcome.described[model]["dice"]
        spread = "-" if dice.sd_seeds is None else f"{dice.sd_seeds:.3f}"
        measure = {"mean": dice.mean, "low": dice.low, "high": dice.high}
        millions = "-" if cost.parameters is None else f"{cost.parameters / 1e6:.2f} M"
        n = f"{dice.units} + {dice.undefined}" if dice.undefined else f"{dice.units}"
        ms = "-" if math.isnan(cost.wall_ms[0]) else f"{cost.wall_ms[0]:.1f}"
        work = f"{cost.gmacs:.3g}" if math.isfinite(cost.gmacs) else "-"
        cells = [work, mean_and_interval(measure), n, spread, ms]
        table.add_row(safe(model), millions, *cells)
    for name in outcome.absent:
        table.add_row(safe(name), "not there", *["-"] * 5)
    console.print(table)
    if any(of_model["dice"].undefined for of_model in outcome.described.values()):
        text = f"n: {outcome.unit}s that count, + those in which neither reference nor prediction holds a class"
        print_plain(console, text, style="dim")
    if outcome.warning:
        print_plain(console, outcome.warning, style="yellow")
    for sentence in outcome.sentences:
        print_plain(console, sentence)
    if outcome.ranking is not None:
        print_plain(console, outcome.ranking_sentence)
    for note in outcome.footnotes:
        print_plain(console, f"note: {note}", style="dim")
    print_plain(console, f"report: {study.folder / 'report.html'}")


def print_bench(console: Console, made: Any) -> None:
    """Of `bench`: a row a value."""
    table = make_table("", "Dice \\[95 %]", "epochs", "s/epoch", "MB", "ms", "asked")  # 79 characters with their cells
    table.columns[0].no_wrap = True
    before = None
    for row in made.facts["rows"]:
        if row["field"] != before:
            before = row["field"]
            table.add_section()
        dice = dict(zip(("mean", "low", "high"), row["dice"], strict=True))
        if "epochs" in row:
            training = [f"{row['epochs']:.0f}", f"{row['epoch_s']:.1f}", f"{row['training_mb']:.0f}"]
        else:
            training = ["", "", "-" if row["prediction_mb"] is None else f"{row['prediction_mb']:.0f}"]
        asked = f"{row['asked']:.1%}" if "asked" in row else ""
        name = f"{row['field'].rpartition('.')[2]} = {row['value']:g}"
        table.add_row(
            name,
            mean_and_interval(dice),
            *training,
            f"{row['prediction_ms']:.1f}",
            asked,
            style="bold" if row["base"] else None,
        )
    console.print(table)
    said = (
        "bold: the unvaried network; one field is varied at a time; MB of a training, of a prediction for a mesh; ms of a "
        "prediction; asked: share of the voxels"
    )
    print_plain(console, said, style="dim")
    if any(row.get("both_empty") for row in made.facts["rows"]):
        counts = ", ".join(dict.fromkeys(f"{row['n']} + {row['both_empty']}" for row in made.facts["rows"]))
        print_plain(
            console, f"cases that count, + those in which neither reference nor prediction holds a class: {counts}"
        )
    if made.facts["warning"]:
        print_plain(console, made.facts["warning"], style="yellow")
    for note in made.facts["footnotes"]:
        print_plain(console, f"note: {note}", style="dim")
    if made.facts["conditions"]["synthetic"]:
        print_plain(console, SYNTHETIC, style="yellow")
    print_plain(console, f"curves: {made.facts['figure']}")


def print_levels(console: Console, made: Any) -> None:
    """Of `prune`: a row a level."""
    measured = made.rows[0]["p50_ms"] is not None
    columns = ["level", "ends at", "parameters", "GMACs"]
    columns += ["Dice", "IoU", "ms", "MiB"] if measured else []
    table = make_table(*columns)
    table.columns[0].no_wrap = True
    for row in made.rows:
        cells = [row["level"], row["head"] or "all heads", f"{row['parameters']:,}", f"{row['gmacs']:.3g}"]
        if measured:
            cells.append(mean_and_interval({"mean": row["dice"], "low": row["dice_low"], "high": row["dice_high"]}))
            cells += [f"{row['iou']:.3f}", f"{row['p50_ms']:.1f}", f"{row['memory_mb']:.0f}"]
        table.add_row(*cells, style="bold" if row["level"] == made.chosen else None)
    console.print(table)
    if measured:
        said = (
            f"mean over {made.rows[0]['n']} of {counted(made.rows[0]['cases'], 'validation case')}, those that "
            "hold a structure or "
            "are said to [95 % bootstrap interval]; ms: median wall time an "
            "image; MiB: estimate of what a prediction adds to the program"
        )
        console.print(said, style="dim", markup=False, highlight=False)
    if made.chosen is None:
        print_plain(console, f"tables and figure: {made.folder}")
        print_plain(console, "next: the same command with --level, --head or --latency, and another --out", style="dim")
    else:
        print_plain(console, f"run folder of {made.chosen}: {made.folder}")
        print_plain(console, f"next: ulna predict {quoted(made.folder)} IMAGES --out masks", style="dim")
