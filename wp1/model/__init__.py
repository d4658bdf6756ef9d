"""The model: its files, architecture, rotary scaling, and the shape of its KV cache. No engine is needed."""
