"""Answer quality (E4, E6)."""
