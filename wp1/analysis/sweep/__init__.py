"""The jobs of a sweep compared."""
