"""A run's folder with its files of requests, handoffs and samples as tables."""

from functools import cached_property
from pathlib import Path

import polars as pl

from wp1.analysis.base import tables
from wp1.core.run_files import CONTROL, DEVICE, ENGINE_STATS, HANDOFFS, LOOP, QUEUES, RECORDS
from wp1.core.run_folder import RunFolder


class RunTables(RunFolder):
    """A run's folder whose files are read as tables (`wp1.analysis.base.tables`), each once, on first use.

    compared: its answers are compared with another run's, so their tokens are needed. A run that compares its own
    tokens reads them anyway.
    """

    def __init__(self, path: Path, compared: bool = False) -> None:
        super().__init__(path)
        self._compared = compared
        self._requests: pl.DataFrame | None = None
        self._keys: pl.DataFrame | None = None

    @property
    def requests(self) -> pl.DataFrame:
        """`tables.requests`, without the columns of `tables.BULK` that this run's figures do not need."""
        if self._requests is None:
            compared = self._compared or self.config["experiment"]["same_tokens"] or self._has_arms
            lines = tables.records(RECORDS.at(self.path), tables.bulk_of(self.config, compared))
            self._keys = lines.select(tables.KEYS)
            self._requests = tables.measurable(lines)
        return self._requests

    @property
    def _has_arms(self) -> bool:
        return len(self.config.get("arms") or {}) > 1

    def keys(self) -> pl.DataFrame:
        """`tables.keys`: from the requests if they were read, else from the file, which needs less memory."""
        return self._keys if self._keys is not None else tables.keys(RECORDS.at(self.path))

    def drop_tokens(self) -> None:
        """Frees the columns that only a comparison of answers needs."""
        if self._requests is not None:
            self._requests = self._requests.drop(tables.bulk_of(self.config, compared=False), strict=False)

    def drop_requests(self) -> None:
        """Frees all requests; the next use reads them again."""
        self._requests = self._keys = None

    @cached_property
    def handoffs(self) -> pl.DataFrame:
        """`tables.handoffs`."""
        return tables.handoffs(HANDOFFS.at(self.path))

    @cached_property
    def control(self) -> pl.DataFrame:
        """`tables.control`."""
        return tables.control(CONTROL.at(self.path))

    @cached_property
    def queues(self) -> pl.DataFrame:
        """`tables.queues`."""
        return tables.queues(QUEUES.at(self.path))

    @cached_property
    def lags(self) -> pl.DataFrame:
        """`tables.lags`."""
        return tables.lags(LOOP.at(self.path))

    @cached_property
    def engine_stats(self) -> pl.DataFrame:
        """`tables.engine_stats`."""
        return tables.engine_stats(ENGINE_STATS.at(self.path))

    @cached_property
    def device_samples(self) -> pl.DataFrame:
        """`tables.device_samples`."""
        return tables.device_samples(DEVICE.at(self.path))
