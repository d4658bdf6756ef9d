"""Hydra's hooks: the launcher and the callback of sweeps."""
