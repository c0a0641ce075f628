"""A training that takes a second."""

import csv

TINY = (
    "architecture.channels=[4, 8, 16]",
    "planning.batch=2",
    "training.min_steps=4",
    "training.checkpoint_minutes=0",
    "optimizer.lr=1e-2",
)


def rows_of(folder):
    """The rows of metrics.csv, as text."""
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
