"""What `ulna plan` prints: every choice with its reason, and what the training takes."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from ulna.cli.printing import make_table, print_plain, quoted, safe
from ulna.errors import counted


def print_plan(console: Console, estimate: Any) -> None:
    """Print what was planned."""
    planned, plan = estimate.planned, estimate.plan
    read = "" if plan.slices is None else " (their slices, by a 2D network)"
    table = make_table("", "choice and reason")
    table.columns[1].justify = "left"
    table.columns[1].no_wrap = False
    table.add_row(
        "images",
        f"{plan.image_dims}D{read}, {counted(plan.in_channels, 'channel')}, {counted(plan.fingerprint.cases, 'case')}",
    )
    table.add_row("classes", ", ".join(map(safe, plan.labels.described)))
    for field, reason in plan.reasons.items():
        table.add_row(safe(field), safe(reason))
    read = "a patch" if planned.points is None else f"a patch, read at {counted(planned.points, 'point')}"
    work = f"{planned.parameters:,} parameters, {planned.gmacs:.3g} GMACs {read}"
    table.add_row("network", f"{safe(planned.recipe.model)}: {work}")
    table.add_row("time", safe(_duration(estimate)))
    if estimate.timing is not None:
        hours = ", ".join(f"{name} {_long(hours)}" for name, hours in estimate.timing.budgets.items())
        table.add_row("budgets", f"--budget of `ulna train`, each at most: {hours}")
    console.print(table)
    if estimate.preview is not None:
        print_plain(console, f"preview: {estimate.preview}")
    if estimate.file is not None:
        print_plain(console, f"plan: {estimate.file}")
        next_step = f"next: ulna train {quoted(estimate.data)} --plan {quoted(estimate.file)}"
        print_plain(console, next_step, style="dim")


def _duration(estimate: Any) -> str:
    timing = estimate.timing
    if timing is None:
        return f"not estimated: {estimate.untimed}"
    epochs = counted(timing.epochs, "epoch")
    if timing.epochs * timing.epoch_s > 3600 * timing.hours:
        epochs = f"{3600 * timing.hours / timing.epoch_s:.0f} of {epochs}, as training.max_hours allows,"
    threads = "" if timing.threads is None else f", {counted(timing.threads, 'thread')}"
    return (
        f"about {_long(timing.hours)} for {epochs} of {counted(timing.steps, 'step')}, {timing.step_s:.3g} s each, and "
        f"{timing.validation_s:.3g} s of validation: an estimate from steps on made data, on {timing.device}{threads}; a "
        "training that gets no better ends sooner"
    )


def _long(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
