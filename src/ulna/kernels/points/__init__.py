"""Reading maps at points."""
