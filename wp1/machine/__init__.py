"""This machine: its hardware, its device's peak performance, and where this process's output goes."""
