"""The shape of a configuration, and every check that needs no model and no engine."""
