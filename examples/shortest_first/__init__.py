"""An example of extending wp1 from outside: a scheduler, a collector and an experiment (docs/extending.md)."""
