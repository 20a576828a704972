"""Diverse generation from a single video (arXiv 2109.08591)."""
