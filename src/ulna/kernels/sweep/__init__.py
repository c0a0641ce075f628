"""The gated sweep of spatial dependency layers."""
