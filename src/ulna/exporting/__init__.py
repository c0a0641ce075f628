"""Runs as one file that needs no torch, and what is said about a model."""
