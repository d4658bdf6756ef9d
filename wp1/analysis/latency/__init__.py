"""Latency of requests: the section of a report and the plots of single requests."""
