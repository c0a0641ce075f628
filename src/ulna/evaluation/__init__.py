"""Masks against references: measures, figures, the report."""
