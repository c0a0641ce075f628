"""What the verbs print: tables for the terminal, one function a verb."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from ulna.cli.cache_table import print_cache
from ulna.cli.plan_table import print_plan
from ulna.cli.printing import SYNTHETIC, make_table, mean_and_interval, print_plain, quoted, safe
from ulna.cli.score_tables import further_rows, print_parts
from ulna.cli.study_tables import print_bench, print_levels, print_study
from ulna.errors import counted, listed, printable, printable_text
from ulna.exporting.card import page as card_page
from ulna.pages.sealing import PAGE_FILE
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


def _models(console: Console, models: list[Any]) -> None:
    if len(models) == 1:
        model = models[0]
        console.print(f"[bold]{model.name}[/]  {model.note}\n{model.paper}", highlight=False)
        table = make_table("slot", "block")
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
    table = make_table("model", "image", "parameters", "paper", "GMACs", "ptflops", "paper")
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


def _recipes(console: Console, found: list[Any]) -> None:
    """The list, or the text of one, to be read or written into a file."""
    if len(found) == 1:
        console.print(printable_text(found[0].text.rstrip()), markup=False, highlight=False, soft_wrap=True)
        return
    table = make_table("recipe", "paper", "table", "data")
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "left", False
    table.columns[0].no_wrap = True
    for recipe in found:
        paper, printed_in, data = (" ".join(recipe.about[name].split()) for name in ("Paper", "Table", "Data"))
        brief = (paper.partition(",")[0], printed_in.partition(" (")[0], re.split(r", | \(", data)[0])
        table.add_row(recipe.name, *map(safe, brief))
    console.print(table)
    console.print(
        "ulna recipes NAME shows one: its published figures, and in what it departs from the paper; `ulna train DATA "
        "--recipe NAME` trains by it, `ulna compare DATA --recipe NAME --out FOLDER` makes the table",
        style="dim",
        markup=False,
        highlight=False,
    )


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
            print_plain(console, f"changed  {change}")
        if len(changes) > MOST_LINES:
            console.print(f"         and {len(changes) - MOST_LINES} more (changes.json lists all)")
        _problems(console, report.repair.left_out, "left out")
        print_plain(console, f"repaired copy: {report.repair.folder}")
    _problems(console, report.problems, "problem")
    for note in report.notes:
        print_plain(console, f"note     {note}", style="dim")
    cases = len(report.scans)
    if report.problems:
        count = counted(len(report.problems), "problem")
        console.print(f"[bold red]{count}[/] in {counted(cases, 'case')}", highlight=False)
    else:
        names = ", ".join(map(safe, report.labels.described))
        console.print(f"[bold green]no problems[/] in {counted(cases, 'case')}: {names}", highlight=False)
        if said := report.slices_in_words():
            print_plain(console, said, style="dim")
        print_plain(console, f"next: ulna train {quoted(report.root)}", style="dim")


def _problems(console: Console, found: Any, mark: str) -> None:
    """Problems by their remedy, each kind at most twelve lines."""
    kinds: dict[str, list[Any]] = {}
    for problem in found:
        kinds.setdefault(problem.remedy, []).append(problem)
    for remedy, problems in kinds.items():
        for problem in problems[:MOST_LINES]:
            console.print(f"[red]{mark:8}[/] ", end="")
            print_plain(console, f"{problem.file}: {problem.what}")
        if len(problems) > MOST_LINES:
            console.print(f"         and {len(problems) - MOST_LINES} more like these (--json lists all)")
        print_plain(console, f"         -> {remedy}", style="dim")


def _train(console: Console, run: Any) -> None:
    summary = run.summary
    part = summary["evaluated_on"]
    scored = _scored(summary[part], "case of all folds" if "folds" in summary else f"{part} case")
    _evaluation_table(console, summary[part], title=f"{safe(summary['model'])} on {scored}")
    console.print(
        f"{_best_epochs(summary)}; {summary['wall_seconds'] / 60:.1f} min, "
        f"peak memory {summary['peak_memory_mb'] / 1024:.1f} GB",
        highlight=False,
    )
    for line in _trust(summary.get("trust", {})):
        print_plain(console, line, style="dim")
    print_plain(console, f"run folder: {run.folder}")
    print_plain(console, f"page: {run.folder / PAGE_FILE}")
    code = " --allow-code" if "digest" in run.summary.get("network", {}) else ""
    print_plain(console, f"next: ulna predict {quoted(run.folder)} IMAGES --out masks{code}", style="dim")


def _trust(told: Any) -> list[str]:
    """What the validation cases said about the answers of a run."""
    lines = [
        f"post-processing of {name}: {kept['does']} (Dice {kept['dice_before']:.4f} to {kept['dice_after']:.4f} on "
        f"{counted(kept['cases'], 'validation case')}, p {kept['p']:.1e})"
        for name, kept in told.get("post_processing", {}).items()
    ]
    if temperature := told.get("temperature"):
        before, after = (f"{temperature[f'ece_{when}']:.4f}" for when in ("before", "after"))
        lines.append(f"probabilities: temperature {temperature['value']:.3g}, ECE {before} before and {after} after")
    for origin, error in told.get("predicted_dice", {}).items():
        held = told.get("predicted_dice_on_test")
        on_test = (
            f", {held['mean_absolute_error']:.4f} on {counted(held['cases'], 'test case')}"
            if held and held["from"] == origin
            else ""
        )
        own, mean = error["mean_absolute_error"], error["of_the_mean_alone"]
        lines.append(f"predicted Dice (from {origin}): mean error {own:.4f}, of the mean alone {mean:.4f}{on_test}")
    return lines


def _best_epochs(summary: Any) -> str:
    """Of a run, or the Dice of every fold of a cross-validation and how its cases were scored."""
    if "folds" in summary:
        each = ["-" if fold["dice"] is None else f"{fold['dice']:.4f}" for fold in summary["folds"]]
        return f"Dice of the folds: {', '.join(each)} ({summary['note']})"
    chosen = f"validation Dice {summary['val_dice']:.4f}"
    if summary.get("monitor") == "iou":
        chosen = f"validation IoU {summary['val_iou']:.4f} (Dice {summary['val_dice']:.4f})"
    return f"best epoch {summary['best_epoch']} of {summary['epochs']}, {chosen}"


def _predict(console: Console, predictions: Any) -> None:
    made = [row["seconds"] for row in predictions.cases if row["case"] not in set(predictions.skipped)]
    there = f"; {len(predictions.skipped)} stood there already" if predictions.skipped else ""
    print_plain(console, f"{counted(len(made), 'mask')} written to {predictions.folder} ({sum(made):.1f} s){there}")
    odd = sum(bool(row.get("trust", {}).get("flags")) for row in predictions.cases)
    if odd:
        text = (
            f"{odd} of {counted(len(predictions.cases), 'case')} {'is' if odd == 1 else 'are'} unlike the training data"
        )
        print_plain(console, f"{text} in image or mask: see predict.json", style="yellow")
    if predictions.report is not None:
        print_plain(console, f"page: {predictions.report}")
    print_plain(console, f"next: ulna evaluate {quoted(predictions.folder)} LABELS", style="dim")


def _evaluate(console: Console, evaluation: Any) -> None:
    _evaluation_table(console, evaluation.summary, title=_scored(evaluation.summary))
    missing = evaluation.summary["missing"]
    if missing:
        text = f"{counted(len(missing), 'reference')} without a prediction, counted as missed: {listed(missing, 5)}"
        print_plain(console, text, style="yellow")
    if left := evaluation.summary.get("not_scored"):
        text = f"{counted(len(left), 'case')} not scored, for want of memory, and in no mean: {listed(left, 5)}"
        print_plain(console, text, style="yellow")
    if evaluation.report is not None:
        print_plain(console, f"page: {evaluation.report}")


def _scored(summary: Any, case: str = "case") -> str:
    """What was scored, in words."""
    images = counted(summary.get("images", summary["cases"]), case)
    what = summary.get("by", "")
    return f"{counted(summary['cases'], what)} of {images}" if what in ("slice", "group") else images


def _evaluation_table(console: Console, summary: Any, title: str) -> None:
    """Measures as rows with intervals for a few classes; classes as rows with means alone for many."""
    classes = summary["classes"] if len(summary["classes"]) == 1 else {**summary["classes"], "mean": summary["mean"]}
    counts = {
        name: (str(of_class.get("n", "-")), str(of_class.get("both_empty", "-"))) for name, of_class in classes.items()
    }
    if len(classes) <= 4:
        table = make_table("", *map(safe, classes), title=title)
        for measure, name in {**MEASURES, **further_rows(summary)}.items():
            table.add_row(name, *(mean_and_interval(of_class[measure]) for of_class in classes.values()))
        table.add_row("n", *(n for n, _ in counts.values()))
        table.add_row("both empty", *(empty for _, empty in counts.values()))
    else:
        table = make_table("", *MEASURES.values(), "n", "both empty", title=title)
        for name, of_class in classes.items():
            table.add_row(
                safe(name),
                *(mean_and_interval(of_class[measure], interval=False) for measure in MEASURES),
                *counts[name],
            )
    console.print(table)
    if len(classes) > 4 and (further := further_rows(summary)):
        table = make_table("", *further.values())
        for name, of_class in classes.items():
            table.add_row(safe(name), *(mean_and_interval(of_class[measure], interval=False) for measure in further))
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
    print_parts(console, summary)
    if summary.get("interval_note"):
        print_plain(console, summary["interval_note"], style="yellow")


def _explain(console: Console, explanation: Any) -> None:
    facts = explanation.facts
    members = facts["maps"]["uncertainty"]
    table = make_table(
        "map", "file", "of", title=safe(f"{facts['target']} in {facts['image']}, {facts['voxels']} predicted")
    )
    for column in table.columns[1:]:
        column.justify = "left"
    for name, about in facts["maps"].items():
        of = f"{members['members']} {members['of']}" if name == "uncertainty" and members["members"] > 1 else ""
        if name == "saliency":
            shares = zip(about["channels"], about["share"], strict=True)
            of = ", ".join(f"{safe(channel)} {share:.0%}" for channel, share in shares)
        table.add_row(safe(name), safe(about["file"]), of)
    console.print(table)
    for name, reason in facts["left_out"].items():
        print_plain(console, f"left out: {name}: {reason}", style="dim")
    print_plain(console, facts["note"], style="yellow")
    print_plain(console, f"maps: {explanation.folder}")


def _demo(console: Console, made: Any) -> None:
    _evaluation_table(console, made.evaluation.summary, title=counted(made.evaluation.summary["cases"], "test case"))
    print_plain(console, SYNTHETIC, style="yellow")
    print_plain(console, f"report: {made.report}")


def _export(console: Console, made: Any) -> None:
    parity = made.parity
    seen = "made-up images" if parity.made_up else "cases"
    print_plain(
        console,
        f"{parity.identical:.4%} of {parity.voxels:,} voxels of {parity.cases} {seen} are as `ulna predict` has them in "
        f"float32; logits differ by up to {parity.logits:.1e}, probabilities by {parity.probabilities:.1e}",
    )
    against = "against the references" if parity.against_references else "against the masks of the run"
    if made.precision != "fp32":
        print_plain(console, f"Dice lost in {made.precision}, {against}: {parity.dice_lost:.4f}")
    print_plain(console, f"file: {made.file} ({made.bytes / 1e6:.1f} MB)")


def _info(console: Console, made: Any) -> None:
    print_plain(console, card_page(made.card, made.name).rstrip())


def _zoo(console: Console, made: Any) -> None:
    for entry in made.entries:
        print_plain(
            console, f"{entry['name']}: finds {entry['structures']} in images of {entry['images']}", style="bold"
        )
        print_plain(console, f"  Dice {entry['dice']} on cases that it never saw; {entry['bytes'] / 1e6:.1f} MB")
        print_plain(console, f"  licence: {entry['licence']}")
        if "examples" in entry:
            print_plain(console, f"  images to try: {entry['examples']}")
    print_plain(console, "next: ulna info zoo:NAME; ulna predict zoo:NAME IMAGES --out masks", style="dim")


def _convert(console: Console, made: Any) -> None:
    size, step = " x ".join(map(str, made.size)), " x ".join(f"{one:.4g}" for one in made.spacing)
    channels = f", {made.channels} channels" if made.channels > 1 else ""
    print_plain(console, f"file: {made.file} ({size} of {step} {made.unit}{channels}, {made.dtype})")


def _import_weights(console: Console, made: Any) -> None:
    names = [printable(weight.name) for weight in made.weights]
    for name, weight in zip(names, made.weights, strict=True):
        shape = _shape(weight.shape) or "one number"
        print_plain(console, f"{name:<{max(map(len, names))}}  {shape}  {weight.numbers}")
    for note in made.notes:
        print_plain(console, note)
    print_plain(console, f"file: {made.file} ({counted(len(made.weights), 'weight')})")


SHOW: dict[str, Callable[[Console, Any], None]] = {
    "bench": print_bench,
    "cache": print_cache,
    "check": _check,
    "compare": print_study,
    "convert": _convert,
    "demo": _demo,
    "evaluate": _evaluate,
    "explain": _explain,
    "export": _export,
    "import-weights": _import_weights,
    "info": _info,
    "models": _models,
    "zoo": _zoo,
    "plan": print_plan,
    "predict": _predict,
    "prune": print_levels,
    "recipes": _recipes,
    "train": _train,
}
