"""What `ulna cache` prints: prepared cases by data set."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from ulna.cli.printing import make_table, print_plain, safe
from ulna.errors import counted


def print_cache(console: Console, cached: Any) -> None:
    """Print what lies in the cache, or what was removed from it."""
    if cached.removed is not None:
        print_plain(console, f"removed {counted(cached.removed, 'prepared case')} ({cached.freed / 1e9:.2f} GB)")
    if cached.data:
        table = make_table("data set", "cases", "GB", "last used")
        for one in cached.data:
            table.add_row(safe(one.data or "not known"), str(one.cases), f"{one.bytes / 1e9:.2f}", one.used[:16])
        console.print(table)
    limit = "" if cached.limit is None else f" of at most {cached.limit / 1e9:.1f}"
    print_plain(
        console, f"{counted(cached.cases, 'prepared case')}, {cached.bytes / 1e9:.2f}{limit} GB in {cached.folder}"
    )
    if cached.data:
        print_plain(console, "ulna cache --clear removes them; ULNA_CACHE=0 keeps none", style="dim")
