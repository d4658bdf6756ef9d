"""Plots of single requests' latency."""
