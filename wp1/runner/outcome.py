"""How a run ended."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """How a run ended and what it left."""

    status: str  # completed, failed or interrupted
    reason: str | None
    run_dir: Path
    report: Path | None
    summary: dict[str, Any] | None
