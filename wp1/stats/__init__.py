"""Confidence intervals and the arithmetic of spans."""
