"""Weights of others."""
