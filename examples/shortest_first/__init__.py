"""A scheduler, a collector and an experiment that are no part of wp1: docs/extending.md."""
