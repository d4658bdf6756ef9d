"""This machine: its hardware, what its device can do at most, and where its output goes."""
