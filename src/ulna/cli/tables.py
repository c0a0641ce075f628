"""What the verbs print: tables for the terminal, one function a verb."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ulna.errors import printable
from ulna.system.progress import make_console

MEASURES = {
    "dice": "Dice",
    "iou": "IoU",
    "ppv": "PPV",
    "sensitivity": "sensitivity",
    "hd95": "HD95",
    "assd": "ASSD",
    "nsd": "NSD",
}
# a class of faults fills at most so many lines; --json has all of them
MOST_LINES = 12


def show(verb: str, result: Any) -> None:
    """Print what a verb returned."""
    SHOW[verb](make_console(), result)


def _name(text: object) -> str:
    """A name that somebody else gave, for a cell or a heading: neither markup nor signs that move the cursor."""
    return escape(printable(text))


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number > 0)
    return table


def _models(console: Console, models: list[Any]) -> None:
    if len(models) == 1:
        model = models[0]
        console.print(f"[bold]{model.name}[/]  {model.note}\n{model.paper}", highlight=False)
        table = _table("slot", "block")
        table.columns[1].justify = "left"
        table.columns[1].no_wrap = False
        for slot, block in model.slots.items():
            table.add_row(slot, block)
        entry = model.entry
        figures = f"image {_shape(entry.input)}, {entry.maps} {'map' if entry.maps == 1 else 'maps'} out"
        table.add_row("parameters", f"{model.parameters():,}{_printed(entry.published, ' M')} ({figures})")
        table.add_row("GMACs", f"{model.gmacs():.4f}")
        table.add_row("by ptflops' rules", f"{model.ptflops_gmacs():.4f}{_printed(entry.published_gmacs)}")
        if entry.mismatch:
            table.add_row("mismatch", entry.mismatch)
        console.print(table)
        if "sdn" in model.slots["conv"]:
            _say_sweeps(console)
        return
    table = _table("model", "image", "parameters", "paper", "GMACs", "ptflops", "paper")
    table.columns[0].no_wrap = True
    for model in models:
        entry = model.entry
        table.add_row(
            model.name,
            _shape(entry.input),
            f"{model.parameters():,}",
            entry.published,
            f"{model.gmacs():.2f}",
            f"{model.ptflops_gmacs():.2f}",
            entry.published_gmacs,
        )
    console.print(table)
    for model in models:
        if model.entry.mismatch:
            console.print(f"{model.name}: {model.entry.mismatch}", highlight=False, soft_wrap=True)
    console.print(
        "parameters and GMACs for the image shown; ptflops: GMACs by the rules of that counter; paper: as printed, "
        "parameters in millions. ulna models NAME shows source and slots.",
        style="dim",
    )
    _say_sweeps(console)


def _say_sweeps(console: Console) -> None:
    import torch

    from ulna.kernels.sweep.dispatch import describe

    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        console.print(f"sweeps (sdn blocks) on this machine's {device.upper()}: {describe(device)}", style="dim")


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _printed(figure: str, unit: str = "") -> str:
    return f", published {figure}{unit}" if figure else ""


def _check(console: Console, report: Any) -> None:
    if report.repair:
        changes = report.repair.changes
        for change in changes[:MOST_LINES]:
            console.print(f"changed  {change}", markup=False, highlight=False, soft_wrap=True)
        if len(changes) > MOST_LINES:
            console.print(f"         and {len(changes) - MOST_LINES} more (changes.json lists all)")
        _problems(console, report.repair.left_out, "left out")
        _plain(console, f"repaired copy: {report.repair.folder}")
    _problems(console, report.problems, "problem")
    for note in report.notes:
        console.print(f"note     {note}", style="dim", markup=False, highlight=False, soft_wrap=True)
    cases = len(report.scans)
    if report.problems:
        count = "1 problem" if len(report.problems) == 1 else f"{len(report.problems)} problems"
        console.print(f"[bold red]{count}[/] in {cases} cases", highlight=False)
    else:
        names = ", ".join(map(_name, report.labels.names))
        console.print(f"[bold green]no problems[/] in {cases} cases: {names}", highlight=False)
        console.print(f"next: ulna train {_quoted(report.root)}", style="dim", markup=False, highlight=False)


def _problems(console: Console, found: Any, mark: str) -> None:
    """Problems by their remedy, each kind at most twelve lines."""
    kinds: dict[str, list[Any]] = {}
    for problem in found:
        kinds.setdefault(problem.remedy, []).append(problem)
    for remedy, problems in kinds.items():
        for problem in problems[:MOST_LINES]:
            console.print(f"[red]{mark:8}[/] ", end="")
            _plain(console, f"{problem.file}: {problem.what}")
        if len(problems) > MOST_LINES:
            console.print(f"         and {len(problems) - MOST_LINES} more like these (--json lists all)")
        _plain(console, f"         -> {remedy}", style="dim")


def _plain(console: Console, text: str, style: str | None = None) -> None:
    """Text as it is: a path in it is no markup, and is not broken."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _plan(console: Console, estimate: Any) -> None:
    planned, plan = estimate.planned, estimate.plan
    table = _table("", "choice and reason")
    table.columns[1].justify = "left"
    table.columns[1].no_wrap = False
    table.add_row("images", f"{plan.spatial_dims}D, {plan.in_channels} channels, {plan.fingerprint.cases} cases")
    table.add_row("classes", ", ".join(map(_name, plan.labels.names)))
    for field, reason in plan.reasons.items():
        table.add_row(_name(field), _name(reason))
    read = "a patch" if planned.points is None else f"a patch, read at {planned.points:,} points"
    work = f"{planned.parameters:,} parameters, {planned.gmacs:.3g} GMACs {read}"
    table.add_row("network", f"{_name(planned.recipe.model)}: {work}")
    table.add_row("time", _name(_duration(estimate)))
    console.print(table)
    if estimate.file is not None:
        _plain(console, f"plan: {estimate.file}")
        next_step = f"next: ulna train {_quoted(estimate.data)} --plan {_quoted(estimate.file)}"
        _plain(console, next_step, style="dim")


def _duration(estimate: Any) -> str:
    timing = estimate.timing
    if timing is None:
        return f"not estimated: {estimate.untimed}"
    long = f"{timing.hours:.1f} h" if timing.hours >= 1 else f"{60 * timing.hours:.1f} min"
    epochs = f"{timing.epochs} epochs"
    if timing.epochs * timing.epoch_s > 3600 * timing.hours:
        epochs = f"{3600 * timing.hours / timing.epoch_s:.0f} of {epochs}, as training.max_hours allows,"
    threads = "" if timing.threads is None else f", {timing.threads} thread{'s' * (timing.threads > 1)}"
    return (
        f"about {long} for {epochs} of {timing.steps} steps, {timing.step_s:.3g} s each, and {timing.validation_s:.3g} s of "
        f"validation: an estimate from steps on made data, on {timing.device}{threads}; a training that gets no better ends "
        "sooner"
    )


def _train(console: Console, run: Any) -> None:
    summary = run.summary
    part = summary["evaluated_on"]
    _evaluation_table(
        console, summary[part], title=f"{_name(summary['model'])} on {summary[part]['cases']} {part} cases"
    )
    console.print(
        f"best epoch {summary['best_epoch']} of {summary['epochs']}, validation Dice {summary['val_dice']:.4f}; "
        f"{summary['wall_seconds'] / 60:.1f} min, peak memory {summary['peak_memory_mb'] / 1024:.1f} GB",
        highlight=False,
    )
    console.print(f"run folder: {run.folder}", markup=False, highlight=False)
    console.print(
        f"next: ulna predict {_quoted(run.folder)} IMAGES --out masks", style="dim", markup=False, highlight=False
    )


def _predict(console: Console, predictions: Any) -> None:
    made = [row["seconds"] for row in predictions.cases if row["case"] not in set(predictions.skipped)]
    there = f"; {len(predictions.skipped)} stood there already" if predictions.skipped else ""
    text = f"{len(made)} masks written to {predictions.folder} ({sum(made):.1f} s){there}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    next_step = f"next: ulna evaluate {_quoted(predictions.folder)} LABELS"
    console.print(next_step, style="dim", markup=False, highlight=False)


def _evaluate(console: Console, evaluation: Any) -> None:
    _evaluation_table(console, evaluation.summary, title=f"{evaluation.summary['cases']} cases")
    missing = evaluation.summary["missing"]
    if missing:
        text = f"{len(missing)} references have no prediction and count as missed: {', '.join(missing[:5])}"
        console.print(text, style="yellow", markup=False, highlight=False)


def _evaluation_table(console: Console, summary: Any, title: str) -> None:
    """Measures as rows with intervals for a few classes; classes as rows with means alone for many."""
    classes = summary["classes"] if len(summary["classes"]) == 1 else {**summary["classes"], "mean": summary["mean"]}
    counts = {
        name: (str(of_class.get("n", "-")), str(of_class.get("both_empty", "-"))) for name, of_class in classes.items()
    }
    if len(classes) <= 4:
        table = _table("", *map(_name, classes), title=title)
        for measure, name in MEASURES.items():
            table.add_row(name, *(_value(of_class[measure]) for of_class in classes.values()))
        table.add_row("n", *(n for n, _ in counts.values()))
        table.add_row("both empty", *(empty for _, empty in counts.values()))
    else:
        table = _table("", *MEASURES.values(), "n", "both empty", title=title)
        for name, of_class in classes.items():
            table.add_row(
                _name(name), *(_value(of_class[measure], interval=False) for measure in MEASURES), *counts[name]
            )
    console.print(table)
    rule = "a case counts (n) where reference or prediction holds the class"
    if "empty_score" in summary:
        rule = f"Dice and IoU of a class that neither holds count {summary['empty_score']:g}, as the recipe says"
    console.print(
        f"mean over cases [95 % bootstrap interval]; HD95 and ASSD in {summary['unit']}, NSD within "
        f"{summary['tolerance']:g} {summary['tolerance_unit']}; {rule}; a missed structure counts as the worst value",
        style="dim",
        markup=False,
        highlight=False,
    )
    if summary.get("interval_note"):
        _plain(console, summary["interval_note"], style="yellow")


def _value(measure: dict[str, float | None], *, interval: bool = True) -> str:
    mean, low, high = measure["mean"], measure["low"], measure["high"]
    if mean is None:
        return "-"
    digits = 3 if mean < 1.5 else 2
    shown = f"{mean:.{digits}f}"
    if interval and low is not None and high is not None and math.isfinite(low):
        shown += f" \\[{low:.{digits}f}, {high:.{digits}f}]"
    return shown


def _compare(console: Console, study: Any) -> None:
    from ulna.study.publishing import subtitle

    outcome = study.outcome
    table = _table(
        "model", "parameters", "GMACs", "Dice \\[95 %]", "n", "sd seeds", "ms", title=_name(subtitle(outcome))
    )
    table.columns[0].overflow = "fold"
    for model in outcome.models:
        cost, dice = outcome.costs.models[model], outcome.described[model]["dice"]
        spread = "-" if dice.sd_seeds is None else f"{dice.sd_seeds:.3f}"
        measure = {"mean": dice.mean, "low": dice.low, "high": dice.high}
        millions = f"{cost.parameters / 1e6:.2f} M"
        n = f"{dice.units} + {dice.undefined}" if dice.undefined else f"{dice.units}"
        cells = [f"{cost.gmacs:.3g}", _value(measure), n, spread, f"{cost.wall_ms[0]:.1f}"]
        table.add_row(_name(model), millions, *cells)
    console.print(table)
    if any(of_model["dice"].undefined for of_model in outcome.described.values()):
        text = f"n: {outcome.unit}s that count, + those in which neither reference nor prediction holds a class"
        _plain(console, text, style="dim")
    if outcome.warning:
        _plain(console, outcome.warning, style="yellow")
    for sentence in outcome.sentences:
        _plain(console, sentence)
    if outcome.ranking is not None:
        _plain(console, outcome.ranking_sentence)
    for note in outcome.footnotes:
        _plain(console, f"note: {note}", style="dim")
    _plain(console, f"report: {study.folder / 'report.html'}")


def _bench(console: Console, made: Any) -> None:
    table = _table("", "Dice \\[95 %]", "epochs", "s/epoch", "MB", "ms", "asked")  # 79 characters with their cells
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
            name, _value(dice), *training, f"{row['prediction_ms']:.1f}", asked, style="bold" if row["base"] else None
        )
    console.print(table)
    said = (
        "bold: the unvaried network; one field is varied at a time; MB of a training, of a prediction for a mesh; ms of a "
        "prediction; asked: share of the voxels"
    )
    _plain(console, said, style="dim")
    if any(row.get("both_empty") for row in made.facts["rows"]):
        counts = ", ".join(dict.fromkeys(f"{row['n']} + {row['both_empty']}" for row in made.facts["rows"]))
        _plain(console, f"cases that count, + those in which neither reference nor prediction holds a class: {counts}")
    if made.facts["warning"]:
        _plain(console, made.facts["warning"], style="yellow")
    for note in made.facts["footnotes"]:
        _plain(console, f"note: {note}", style="dim")
    if made.facts["conditions"]["synthetic"]:
        console.print(
            "the data are synthetic, made by ulna: these figures say nothing about real images", style="yellow"
        )
    _plain(console, f"curves: {made.facts['figure']}")


def _prune(console: Console, made: Any) -> None:
    measured = made.rows[0]["p50_ms"] is not None
    columns = ["level", "ends at", "parameters", "GMACs"]
    columns += ["Dice", "IoU", "ms", "MiB"] if measured else []
    table = _table(*columns)
    table.columns[0].no_wrap = True
    for row in made.rows:
        cells = [row["level"], row["head"] or "all heads", f"{row['parameters']:,}", f"{row['gmacs']:.3g}"]
        if measured:
            cells.append(_value({"mean": row["dice"], "low": row["dice_low"], "high": row["dice_high"]}))
            cells += [f"{row['iou']:.3f}", f"{row['p50_ms']:.1f}", f"{row['memory_mb']:.0f}"]
        table.add_row(*cells, style="bold" if row["level"] == made.chosen else None)
    console.print(table)
    if measured:
        said = (
            f"mean over {made.rows[0]['n']} of {made.rows[0]['cases']} validation cases, those that hold a structure or "
            "are said to [95 % bootstrap interval]; ms: median wall time an "
            "image; MiB: forecast of what a prediction adds to the program"
        )
        console.print(said, style="dim", markup=False, highlight=False)
    if made.chosen is None:
        _plain(console, f"tables and figure: {made.folder}")
        _plain(console, "next: the same command with --level, --head or --latency, and another --out", style="dim")
    else:
        _plain(console, f"run folder of {made.chosen}: {made.folder}")
        _plain(console, f"next: ulna predict {_quoted(made.folder)} IMAGES --out masks", style="dim")


def _explain(console: Console, explanation: Any) -> None:
    facts = explanation.facts
    members = facts["maps"]["uncertainty"]
    table = _table(
        "map", "file", "of", title=_name(f"{facts['target']} in {facts['image']}, {facts['voxels']} predicted")
    )
    for column in table.columns[1:]:
        column.justify = "left"
    for name, about in facts["maps"].items():
        of = f"{members['members']} {members['of']}" if name == "uncertainty" and members["members"] > 1 else ""
        if name == "saliency":
            shares = zip(about["channels"], about["share"], strict=True)
            of = ", ".join(f"{_name(channel)} {share:.0%}" for channel, share in shares)
        table.add_row(_name(name), _name(about["file"]), of)
    console.print(table)
    for name, reason in facts["left_out"].items():
        _plain(console, f"left out: {name}: {reason}", style="dim")
    _plain(console, facts["note"], style="yellow")
    _plain(console, f"maps: {explanation.folder}")


def _demo(console: Console, made: Any) -> None:
    _evaluation_table(console, made.evaluation.summary, title=f"{made.evaluation.summary['cases']} test cases")
    console.print("the data are synthetic, made by ulna: these figures say nothing about real images", style="yellow")
    console.print(f"report: {made.report}", markup=False, highlight=False)


def _quoted(path: Any) -> str:
    import shlex

    return shlex.quote(str(path))


SHOW: dict[str, Callable[[Console, Any], None]] = {
    "bench": _bench,
    "check": _check,
    "compare": _compare,
    "demo": _demo,
    "evaluate": _evaluate,
    "explain": _explain,
    "models": _models,
    "plan": _plan,
    "predict": _predict,
    "prune": _prune,
    "train": _train,
}
