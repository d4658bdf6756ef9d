"""The account of NIXL's transfers: a layer between vLLM's connector and NIXL's agent, in the engines' workers.

It adds up the bytes of the descriptors that are posted, whichever side posts them, takes the time until they are over,
and ends what takes too long.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(slots=True)
class _Open:
    request: str
    bytes: int | None  # None: vLLM's list of descriptors was of no form that we know
    begin: float = 0.0


class _Sizes:
    """Bytes of each descriptor in a prepared list, kept as runs of equal ones: a list may have tens of millions."""

    def __init__(self, lengths: np.ndarray, counts: np.ndarray) -> None:
        self._lengths = lengths
        self._ends = np.cumsum(counts)  # the index after each run

    def of(self, ids: Any) -> int:
        """Bytes of the descriptors with these indices, together."""
        return int(self._lengths[np.searchsorted(self._ends, np.asarray(ids), side="right")].sum())


def sizes_of(descs: Any) -> _Sizes | None:
    """The sizes in a list of descriptors as vLLM gives it to NIXL; None for a form that is not known.

    Rows are (address, bytes, device) each until vLLM 0.32, and (address, bytes, device, stride, count) from 0.33, which
    stands for `count` descriptors of so many bytes.
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
    """NIXL's agent, with the size, begin and end of every transfer noted; everything else is passed on.

    A transfer is over `timeout_s` seconds after it was posted: vLLM is then told that it failed, and cancels it.
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
        made = self._agent.get_xfer_descs(descs, *args, **kwargs)
        self._last = (made, sizes_of(descs))
        return made

    def prep_xfer_dlist(self, agent_name: str, xfer_list: Any, *args: Any, **kwargs: Any) -> Any:
        handle = self._agent.prep_xfer_dlist(agent_name, xfer_list, *args, **kwargs)
        # Until vLLM 0.32 what `get_xfer_descs` made of the descriptors comes here, from 0.33 they come themselves.
        of_made, self._last = self._last, None
        sizes = of_made[1] if of_made is not None and of_made[0] is xfer_list else sizes_of(xfer_list)
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
        # The message that ends a transfer is the request's id and a number.
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
            self._end(handle, now, f"NIXL says {state}")
        elif now - opened.begin > self._timeout_s:
            self._end(handle, now, f"not there after {self._timeout_s:g} s (transfer.timeout_s)")
            return "TIMEOUT"
        return state

    def _duration(self, handle: Any) -> float:
        """Seconds by NIXL's own clock, which sees the end before we come to ask; infinite where it does not say."""
        try:
            microseconds = self._agent.get_xfer_telemetry(handle).xferDuration
        except Exception:  # whatever a telemetry that is off raises
            microseconds = 0
        return microseconds / 1e6 if microseconds else float("inf")

    def _end(self, handle: Any, end: float, failed: str | None = None) -> None:
        opened = self._open.pop(handle)
        self.rows.append((opened.request, opened.begin, end, opened.bytes, failed))

    def release_xfer_handle(self, handle: Any) -> Any:
        self._open.pop(handle, None)
        return self._agent.release_xfer_handle(handle)
