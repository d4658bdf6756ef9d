"""Unit tests mirror wp1's folders; engine tests start real engines."""

from pathlib import Path

REPO = Path(__file__).parents[1]
