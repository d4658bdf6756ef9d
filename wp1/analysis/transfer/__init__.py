"""What moving the KV cache between engines cost."""
