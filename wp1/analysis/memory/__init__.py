"""Where memory goes (E5)."""
