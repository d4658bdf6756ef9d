"""Seeds derived from the run's seed."""

import hashlib


def derive_seed(*parts: object) -> int:
    """A 31-bit seed that depends on every part and is the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
