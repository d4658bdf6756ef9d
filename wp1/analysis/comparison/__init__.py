"""Arms compared with each other: differences, parity of tokens, and what they mean in words."""
