"""Seeds derived from the run's."""

import hashlib


def derive_seed(*parts: object) -> int:
    """A seed of 31 bits that depends on every part, and is the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
