"""The account of every handoff: what the scheduler knows of it, and what the connectors report of it later."""

import asyncio
from collections import defaultdict
from collections.abc import Callable

from wp1.records import Handoff, Request
from wp1.serving.transfer import TransferReport

# An engine tells what its connector counted after its next step; an idle one may owe that for a moment.
SETTLE_S = 2.0
POLL_S = 0.05


class Ledger:
    """Writes one line for each handoff that ended, with its bytes where the connector reported them in time.

    block_tokens, block_bytes: size of one KV block, over all layers and all ranks.
    """

    def __init__(self, write: Callable[[Handoff], None], transfer: str, block_tokens: int, block_bytes: int) -> None:
        self._write = write
        self._transfer = transfer
        self._block_tokens = block_tokens
        self._block_bytes = block_bytes
        self._reports: dict[str, list[TransferReport]] = defaultdict(list)
        self._unsettled: dict[str, Handoff] = {}  # ended, not all bytes reported

    def open(self, request: Request, name: str, source: str) -> Handoff:
        """A handoff that begins; its id is unique in the run."""
        return Handoff(
            handoff_id=name,
            request_id=request.request_id,
            arm=request.arm,
            cell=request.cell,
            repeat=request.repeat,
            warmup=request.warmup,
            source=source,
            target=None,
            transfer=self._transfer,
            tokens=len(request.prompt),
            bytes_expected=-(-len(request.prompt) // self._block_tokens) * self._block_bytes,
            block_bytes=self._block_bytes,
        )

    def report(self, report: TransferReport) -> None:
        """What a connector says of a transfer, on one rank."""
        # vLLM adds random letters to a request's id; ours has one dash.
        name = "-".join(report.handoff_id.split("-")[:2])
        self._reports[name].append(report)
        if (handoff := self._unsettled.get(name)) is not None and self._complete(handoff):
            self._settle(handoff)

    def failure(self, handoff_id: str) -> str | None:
        """Why the connector says that a transfer failed, if it does."""
        return next((report.failed for report in self._reports.get(handoff_id, ()) if report.failed), None)

    def arrival(self, handoff_id: str) -> float | None:
        """When the last of what has come came, as told by now by a connector that copies itself, and so knows it."""
        told = (r for r in self._reports.get(handoff_id, ()) if not r.failed and r.copy_s is not None)
        return max((report.t_end for report in told), default=None)

    def close(self, handoff: Handoff) -> None:
        """The handoff has ended, well if the decode engine gave a token. A failed one waits for no report."""
        handoff.status = "failed" if handoff.error else "ok"
        self._unsettled[handoff.handoff_id] = handoff
        if handoff.error or self._complete(handoff):
            self._settle(handoff)

    async def settle(self) -> None:
        """Waits a moment for reports that are owed, then writes what there is."""
        for _ in range(round(SETTLE_S / POLL_S)):
            if not self._unsettled:
                break
            await asyncio.sleep(POLL_S)
        for handoff in list(self._unsettled.values()):
            self._settle(handoff)

    def _complete(self, handoff: Handoff) -> bool:
        reported = sum(report.bytes or 0 for report in self._reports.get(handoff.handoff_id, ()))
        return reported >= (handoff.bytes_expected or 0) > 0

    def _settle(self, handoff: Handoff) -> None:
        del self._unsettled[handoff.handoff_id]
        arrived = [report for report in self._reports.pop(handoff.handoff_id, ()) if not report.failed]
        if arrived:
            sizes = [report.bytes for report in arrived if report.bytes is not None]
            if len(sizes) == len(arrived):
                handoff.bytes = sum(sizes)
                handoff.blocks = round(handoff.bytes / self._block_bytes)
            handoff.t_transfer_begin = min(report.t_begin for report in arrived)
            handoff.t_transfer_end = max(report.t_end for report in arrived)
            handoff.copy_s = max((r.copy_s for r in arrived if r.copy_s is not None), default=None)
            handoff.wait_s = max((r.wait_s for r in arrived if r.wait_s is not None), default=None)
            handoff.runs = max((r.runs for r in arrived if r.runs is not None), default=None)
        self._write(handoff)
