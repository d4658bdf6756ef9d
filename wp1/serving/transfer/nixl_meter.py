"""Measures NIXL's transfers: a layer between vLLM's connector and NIXL's agent, in the engines' workers.

It adds up the bytes of the posted descriptors, whichever side posts them, measures the time until each transfer ends,
and ends transfers that take too long.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(slots=True)
class _Open:
    request: str
    bytes: int | None  # None: the form of vLLM's list of descriptors is unknown
    begin: float = 0.0


class _Sizes:
    """Bytes of each descriptor in a prepared list, stored as runs of equal sizes: a list may have tens of millions."""

    def __init__(self, lengths: np.ndarray, counts: np.ndarray) -> None:
        self._lengths = lengths
        self._ends = np.cumsum(counts)  # the index after each run

    def of(self, ids: Any) -> int:
        """Total bytes of the descriptors with these indices."""
        return int(self._lengths[np.searchsorted(self._ends, np.asarray(ids), side="right")].sum())


def sizes_of(descs: Any) -> _Sizes | None:
    """The sizes in a list of descriptors that vLLM passes to NIXL; None if its form is unknown.

    Rows are (address, bytes, device) up to vLLM 0.32, and (address, bytes, device, stride, count) from 0.33, which
    stands for `count` descriptors of that many bytes.
    """
    try:
        rows = np.asarray(descs, dtype=np.uint64).astype(np.int64)
    except (TypeError, ValueError):
        return None
    if rows.ndim != 2 or rows.shape[1] not in (3, 5):
        return None
    if rows.shape[1] == 5:
        return _Sizes(rows[:, 1], rows[:, 4])
    lengths = rows[:, 1]
    starts = np.flatnonzero(np.diff(lengths, prepend=-1))
    return _Sizes(lengths[starts], np.diff(starts, append=len(lengths)))


class Meter:
    """Wraps NIXL's agent and records the size, begin and end of every transfer; all other calls pass through.

    A transfer that takes longer than `timeout_s` seconds is reported to vLLM as failed, and vLLM cancels it.
    """

    def __init__(self, agent: Any, timeout_s: float) -> None:
        self._agent = agent
        self._timeout_s = timeout_s
        self._sizes: dict[Any, _Sizes] = {}  # by prepared list
        self._last: tuple[Any, _Sizes | None] | None = None
        self._open: dict[Any, _Open] = {}
        self.rows: list[tuple[str, float, float, int | None, str | None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)

    def get_xfer_descs(self, descs: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = self._agent.get_xfer_descs(descs, *args, **kwargs)
        self._last = (prepared, sizes_of(descs))
        return prepared

    def prep_xfer_dlist(self, agent_name: str, xfer_list: Any, *args: Any, **kwargs: Any) -> Any:
        handle = self._agent.prep_xfer_dlist(agent_name, xfer_list, *args, **kwargs)
        # Up to vLLM 0.32 this is called with the result of `get_xfer_descs`, from 0.33 with the descriptors themselves.
        last, self._last = self._last, None
        sizes = last[1] if last is not None and last[0] is xfer_list else sizes_of(xfer_list)
        if sizes is not None:
            self._sizes[handle] = sizes
        return handle

    def release_dlist_handle(self, handle: Any, *args: Any, **kwargs: Any) -> Any:
        self._sizes.pop(handle, None)
        return self._agent.release_dlist_handle(handle, *args, **kwargs)

    def make_prepped_xfer(self, operation: str, local: Any, local_ids: Any, remote: Any, remote_ids: Any,
                          notif_msg: bytes = b"", *args: Any, **kwargs: Any) -> Any:  # fmt: skip
        handle = self._agent.make_prepped_xfer(
            operation, local, local_ids, remote, remote_ids, notif_msg, *args, **kwargs
        )
        sizes = self._sizes.get(local)
        # The notification of a transfer's end consists of the request's id, a colon and a number.
        request = notif_msg.decode(errors="replace").rpartition(":")[0]
        self._open[handle] = _Open(request, None if sizes is None else sizes.of(local_ids))
        return handle

    def transfer(self, handle: Any, *args: Any, **kwargs: Any) -> Any:
        if (opened := self._open.get(handle)) is not None:
            opened.begin = time.monotonic()
        return self._agent.transfer(handle, *args, **kwargs)

    def check_xfer_state(self, handle: Any) -> str:
        state = self._agent.check_xfer_state(handle)
        opened = self._open.get(handle)
        if opened is None:
            return state
        now = time.monotonic()
        if state == "DONE":
            self._end(handle, min(now, opened.begin + self._duration(handle)))
        elif state != "PROC":
            self._end(handle, now, f"NIXL reports {state}")
        elif now - opened.begin > self._timeout_s:
            self._end(handle, now, f"not complete after {self._timeout_s:g} s (transfer.timeout_s)")
            return "TIMEOUT"
        return state

    def _duration(self, handle: Any) -> float:
        """Seconds by NIXL's own clock, which sees the end before we poll; infinite if NIXL does not report them."""
        try:
            microseconds = self._agent.get_xfer_telemetry(handle).xferDuration
        except Exception:  # NIXL raises various errors if telemetry is off
            microseconds = 0
        return microseconds / 1e6 if microseconds else float("inf")

    def _end(self, handle: Any, end: float, failed: str | None = None) -> None:
        opened = self._open.pop(handle)
        self.rows.append((opened.request, opened.begin, end, opened.bytes, failed))

    def release_xfer_handle(self, handle: Any) -> Any:
        self._open.pop(handle, None)
        return self._agent.release_xfer_handle(handle)
