"""Measurements behind what ulna recommends, to repeat on one's own machine and data."""
