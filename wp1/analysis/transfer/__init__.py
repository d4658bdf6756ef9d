"""Cost of moving KV caches between engines."""
