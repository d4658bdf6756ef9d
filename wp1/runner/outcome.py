"""How a run ended."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wp1.analysis.base.run_tables import RunTables


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and its results."""

    status: str  # completed, failed or interrupted
    reason: str | None
    run: RunTables  # as its report has read it
    report: Path | None
    summary: dict[str, Any] | None

    @property
    def run_dir(self) -> Path:
        return self.run.path
