"""Everything after records.jsonl: pure functions from a run's folder to figures, plots and a report."""
