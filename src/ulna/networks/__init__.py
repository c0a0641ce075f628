"""Networks: wiring, heads, and the composition of both from an architecture."""
