"""One line a handoff, whenever and from however many ranks the connector's report comes."""

import asyncio

import pytest

from wp1.records import Handoff, Request
from wp1.serving import ledger as ledger_module
from wp1.serving.ledger import Ledger
from wp1.serving.transfer import TransferReport

REQUEST = Request("disagg/c/r0/1", "disagg", "c", 0, list(range(20)), 5, seed=1)


@pytest.fixture
def written() -> list[Handoff]:
    return []


@pytest.fixture
def ledger(written: list[Handoff]) -> Ledger:
    return Ledger(written.append, "nixl_pull", block_tokens=16, block_bytes=1600)


def _report(size: int, begin: float = 1.0, end: float = 2.0, failed: str | None = None) -> TransferReport:
    # vLLM's own letters are behind ours.
    return TransferReport("7-0a1b2c3d-89abcdef", begin, end, size, failed)


def test_report_first_end_later(ledger: Ledger, written: list[Handoff]) -> None:
    handoff = ledger.open(REQUEST, "7-0a1b2c3d", "prefill-0")
    ledger.report(_report(3200))
    assert written == []
    ledger.close(handoff)
    assert written == [handoff]
    assert (handoff.status, handoff.bytes, handoff.blocks, handoff.bytes_expected) == ("ok", 3200, 2, 3200)


def test_end_first_report_later(ledger: Ledger, written: list[Handoff]) -> None:
    handoff = ledger.open(REQUEST, "7-0a1b2c3d", "prefill-0")
    ledger.close(handoff)
    assert written == []
    ledger.report(_report(3200))
    assert [row.bytes for row in written] == [3200]


def test_ranks_are_added_up_and_their_times_span_from_first_to_last(ledger: Ledger, written: list[Handoff]) -> None:
    handoff = ledger.open(REQUEST, "7-0a1b2c3d", "prefill-0")
    ledger.report(_report(1600, 1.0, 1.5))
    ledger.close(handoff)
    assert written == []
    ledger.report(_report(1600, 1.2, 1.9))
    assert (written[0].bytes, written[0].t_transfer_begin, written[0].t_transfer_end) == (3200, 1.0, 1.9)


def test_a_handoff_that_failed_waits_for_nobody(ledger: Ledger, written: list[Handoff]) -> None:
    handoff = ledger.open(REQUEST, "7-0a1b2c3d", "prefill-0")
    ledger.report(_report(3200, failed="NIXL says ERR"))
    assert ledger.failure("7-0a1b2c3d") == "NIXL says ERR"
    handoff.error = "it did not arrive"
    ledger.close(handoff)
    assert (written[0].status, written[0].bytes) == ("failed", None)


def test_without_a_report_the_line_is_written_at_the_end_and_says_nothing_of_bytes(
    ledger: Ledger, written: list[Handoff], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "SETTLE_S", 0.1)
    ledger.close(ledger.open(REQUEST, "7-0a1b2c3d", "prefill-0"))
    assert written == []
    asyncio.run(ledger.settle())
    assert (written[0].status, written[0].bytes) == ("ok", None)
