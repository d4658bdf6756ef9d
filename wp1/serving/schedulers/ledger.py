"""Accounts for every handoff: joins what the scheduler knows with what the connectors report later."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from wp1.core.records import Handoff, Request
from wp1.serving.transfer import Kept, TransferReport

# An engine passes its connector's reports on after its next step, which an idle engine delays for a moment.
SETTLE_S = 2.0
POLL_S = 0.05


@dataclass(slots=True)
class _Account:
    handoff: Handoff
    reports: list[TransferReport] = field(default_factory=list)
    kept: int | None = None  # tokens whose KV does not move; None until the decode engine reports them
    closed: float = 0.0  # monotonic seconds


class Ledger:
    """Writes one row for each handoff, once it has ended and all reports are in, or `SETTLE_S` after its end.

    block_tokens, block_bytes: size of one KV block over all layers and ranks. block_bytes is None if it is not known,
    because what moves is not whole blocks; the expected bytes are then unknown too.
    transfers: number of reports for each handoff, one for each pair of ranks between which bytes move.
    keeps: whether the decode engines have a prefix cache and so report what they found in it for each handoff.
    """

    def __init__(
        self,
        write: Callable[[Handoff], None],
        transfer: str,
        block_tokens: int,
        block_bytes: int | None,
        transfers: int = 1,
        keeps: bool = False,
    ) -> None:
        self._write = write
        self._transfer = transfer
        self._block_tokens = block_tokens
        self._block_bytes = block_bytes
        self._transfers = transfers
        self._keeps = keeps
        self._open: dict[str, _Account] = {}
        self._unsettled: dict[str, _Account] = {}  # ended, with reports missing; in the order of their ends

    def open(self, request: Request, name: str, source: str) -> Handoff:
        """Begins a handoff; `name` is unique in the run. `close` or `forget` must follow."""
        handoff = Handoff(
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
            bytes_expected=self._expected(len(request.prompt), 0),
            block_bytes=self._block_bytes,
        )
        self._open[name] = _Account(handoff)
        return handoff

    def report(self, report: TransferReport) -> None:
        """Adds a connector's report of a transfer on one rank, unless the handoff is already written or forgotten."""
        account = self._account(report.handoff_id)
        if account is not None:
            account.reports.append(report)
            self._settle_if_complete(account)

    def keep(self, kept: Kept) -> Handoff | None:
        """Adds a decode engine's report of how many of the prompt's tokens need not be fetched.

        Returns the handoff if that is all of them, else None.
        """
        account = self._account(kept.handoff_id)
        if account is None:
            return None
        account.kept = kept.tokens
        self._settle_if_complete(account)
        return account.handoff if kept.tokens >= account.handoff.tokens else None

    def failure(self, handoff_id: str) -> str | None:
        """The connector's reason for a failed transfer, or None."""
        return next((report.failed for report in self._reports(handoff_id) if report.failed), None)

    def arrival(self, handoff_id: str) -> float | None:
        """When the latest KV arrived (monotonic seconds), by the reports so far; None if the connector cannot know.

        Only a connector that copies by itself knows, and then reports `copy_s`.
        """
        copies = (r for r in self._reports(handoff_id) if not r.failed and r.copy_s is not None)
        return max((report.t_end for report in copies), default=None)

    def close(self, handoff: Handoff) -> None:
        """Ends a handoff. A failed one (with an error) is written at once, without waiting for reports."""
        handoff.status = "failed" if handoff.error else "ok"
        account = self._open.pop(handoff.handoff_id)
        account.closed = time.monotonic()
        self._unsettled[handoff.handoff_id] = account
        if handoff.error:
            self._settle(account)
        else:
            self._settle_if_complete(account)
        self.sweep()

    def forget(self, handoff: Handoff) -> None:
        """Drops a handoff that did not take place after all. Has no effect after `close`."""
        self._open.pop(handoff.handoff_id, None)

    def sweep(self) -> None:
        """Writes handoffs whose reports are overdue, so that they are neither lost nor kept in memory."""
        overdue = time.monotonic() - SETTLE_S
        while self._unsettled and (account := next(iter(self._unsettled.values()))).closed < overdue:
            self._settle(account)

    async def settle(self) -> None:
        """Waits up to SETTLE_S for missing reports, then writes all ended handoffs."""
        for _ in range(round(SETTLE_S / POLL_S)):
            if not self._unsettled:
                break
            await asyncio.sleep(POLL_S)
        for account in list(self._unsettled.values()):
            self._settle(account)

    def _account(self, reported_id: str) -> _Account | None:
        # vLLM appends a dash and random letters to a request's id. Ours has one dash.
        name = "-".join(reported_id.split("-")[:2])
        return self._open.get(name) or self._unsettled.get(name)

    def _reports(self, handoff_id: str) -> list[TransferReport]:
        account = self._account(handoff_id)
        return [] if account is None else account.reports

    def _expected(self, tokens: int, kept: int) -> int | None:
        """Bytes of the blocks that hold the tokens after the first `kept`, including a partly filled last block.

        `kept` is a multiple of the block's tokens, or all tokens.
        """
        if kept >= tokens:
            return 0
        if self._block_bytes is None:
            return None
        return (-(-tokens // self._block_tokens) - kept // self._block_tokens) * self._block_bytes

    def _settle_if_complete(self, account: _Account) -> None:
        handoff = account.handoff
        if handoff.handoff_id not in self._unsettled or (self._keeps and account.kept is None):
            return
        nothing_moves = account.kept is not None and account.kept >= handoff.tokens
        if nothing_moves or len(account.reports) >= self._transfers:
            self._settle(account)

    def _settle(self, account: _Account) -> None:
        handoff = account.handoff
        del self._unsettled[handoff.handoff_id]
        handoff.tokens_kept = account.kept
        handoff.bytes_expected = self._expected(handoff.tokens, account.kept or 0)
        arrived = [report for report in account.reports if not report.failed]
        if arrived:
            self._add_up(handoff, arrived)
        elif handoff.bytes_expected == 0 and handoff.status == "ok":
            handoff.bytes = handoff.blocks = 0
        self._write(handoff)

    def _add_up(self, handoff: Handoff, arrived: list[TransferReport]) -> None:
        sizes = [report.bytes for report in arrived if report.bytes is not None]
        if len(sizes) == len(arrived):
            handoff.bytes = sum(sizes)
            handoff.blocks = None if self._block_bytes is None else round(handoff.bytes / self._block_bytes)
        handoff.t_transfer_begin = min(report.t_begin for report in arrived)
        handoff.t_transfer_end = max(report.t_end for report in arrived)
        handoff.copy_s = max((r.copy_s for r in arrived if r.copy_s is not None), default=None)
        handoff.wait_s = max((r.wait_s for r in arrived if r.wait_s is not None), default=None)
        handoff.runs = max((r.runs for r in arrived if r.runs is not None), default=None)
