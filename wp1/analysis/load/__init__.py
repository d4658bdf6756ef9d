"""Figures by load (E2): steady state, queues, goodput."""
