"""Confidence intervals, and arithmetic on spans of time."""
