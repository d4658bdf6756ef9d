"""Figures by prompt length (E1)."""
