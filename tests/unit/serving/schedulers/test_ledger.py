"""One line per handoff, whenever the reports come and from however many ranks."""

import asyncio

import pytest

from wp1.core.records import Handoff, Request
from wp1.serving.schedulers import ledger as ledger_module
from wp1.serving.schedulers.ledger import Ledger
from wp1.serving.transfer import Kept, TransferReport

REQUEST = Request("disagg/c/r0/1", "disagg", "c", 0, list(range(20)), 5, seed=1)


@pytest.fixture
def written() -> list[Handoff]:
    return []


@pytest.fixture
def ledger(written: list[Handoff]) -> Ledger:
    return Ledger(written.append, "nixl_pull", block_tokens=16, block_bytes=1600)


def _report(size: int, begin: float = 1.0, end: float = 2.0, failed: str | None = None) -> TransferReport:
    # vLLM appends its own letters to our id.
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


def test_ranks_are_added_up_and_their_times_span_from_first_to_last(written: list[Handoff]) -> None:
    ledger = Ledger(written.append, "nixl_pull", block_tokens=16, block_bytes=1600, transfers=2)
    handoff = ledger.open(REQUEST, "7-0a1b2c3d", "prefill-0")
    ledger.report(_report(1600, 1.0, 1.5))
    ledger.close(handoff)
    assert written == []
    ledger.report(_report(1600, 1.2, 1.9))
    assert (written[0].bytes, written[0].t_transfer_begin, written[0].t_transfer_end) == (3200, 1.0, 1.9)


def test_a_failed_handoff_does_not_wait_for_reports(ledger: Ledger, written: list[Handoff]) -> None:
    handoff = ledger.open(REQUEST, "7-0a1b2c3d", "prefill-0")
    ledger.report(_report(3200, failed="NIXL reports ERR"))
    assert ledger.failure("7-0a1b2c3d") == "NIXL reports ERR"
    handoff.error = "it did not arrive"
    ledger.close(handoff)
    assert (written[0].status, written[0].bytes) == ("failed", None)


def test_without_a_report_the_line_is_written_at_the_end_without_bytes(
    ledger: Ledger, written: list[Handoff], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "SETTLE_S", 0.1)
    ledger.close(ledger.open(REQUEST, "7-0a1b2c3d", "prefill-0"))
    assert written == []
    asyncio.run(ledger.settle())
    assert (written[0].status, written[0].bytes) == ("ok", None)


@pytest.fixture
def caching(written: list[Handoff]) -> Ledger:
    return Ledger(written.append, "ipc", block_tokens=16, block_bytes=1600, keeps=True)


@pytest.mark.parametrize(
    ("length", "kept", "blocks"),
    [(20, 0, 2), (20, 16, 1), (32, 16, 1), (33, 16, 2), (33, 32, 1), (1, 0, 1), (1, 1, 0), (32, 32, 0)],
)
def test_blocks_in_the_decode_engines_cache_are_not_expected(
    caching: Ledger, written: list[Handoff], length: int, kept: int, blocks: int
) -> None:
    request = Request("disagg/c/r0/1", "disagg", "c", 0, list(range(length)), 5, seed=1)
    handoff = caching.open(request, "7-0a1b2c3d", "prefill-0")
    caching.keep(Kept("7-0a1b2c3d-89abcdef", kept))
    if blocks:
        caching.report(_report(blocks * 1600))
    caching.close(handoff)
    [row] = written
    assert (row.tokens, row.tokens_kept, row.bytes, row.bytes_expected) == (length, kept, blocks * 1600, blocks * 1600)
    assert row.blocks == blocks
    # If all blocks were cached, there is no transfer time, rather than zero seconds at some moment.
    assert (row.t_transfer_begin is None) is (blocks == 0)


def test_with_a_prefix_cache_a_line_waits_for_the_cached_tokens(caching: Ledger, written: list[Handoff]) -> None:
    """A prefill engine that writes may report the bytes before the decode engine reports its cached tokens."""
    handoff = caching.open(REQUEST, "7-0a1b2c3d", "prefill-0")
    caching.report(_report(1600))
    caching.close(handoff)
    assert written == []
    caching.keep(Kept("7-0a1b2c3d-89abcdef", 16))
    assert [(row.bytes, row.bytes_expected) for row in written] == [(1600, 1600)]


def test_lines_are_written_as_handoffs_end_and_use_no_memory(ledger: Ledger, written: list[Handoff]) -> None:
    """Even if less moved than expected: a killed run loses no line, and a long run uses no more memory."""
    for n in range(1000):
        handoff = ledger.open(REQUEST, f"{n}-0a1b2c3d", "prefill-0")
        ledger.report(TransferReport(f"{n}-0a1b2c3d-89abcdef", 1.0, 2.0, 1600))
        ledger.close(handoff)
        assert len(written) == n + 1
    assert {(row.bytes, row.bytes_expected) for row in written} == {(1600, 3200)}
    assert not ledger._open
    assert not ledger._unsettled


def test_a_line_whose_report_is_overdue_is_written(
    ledger: Ledger, written: list[Handoff], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(ledger_module.time, "monotonic", lambda: now)
    for n in range(3):
        ledger.close(ledger.open(REQUEST, f"{n}-0a1b2c3d", "prefill-0"))
        now += 0.9
    ledger.sweep()
    assert [row.handoff_id for row in written] == ["0-0a1b2c3d"]
    now += 0.9
    # While other handoffs end, no explicit sweep is needed.
    ledger.close(ledger.open(REQUEST, "3-0a1b2c3d", "prefill-0"))
    assert [row.handoff_id for row in written] == ["0-0a1b2c3d", "1-0a1b2c3d"]
    assert {(row.status, row.bytes) for row in written} == {("ok", None)}


def test_reports_of_unknown_handoffs_are_dropped(ledger: Ledger, written: list[Handoff]) -> None:
    forgotten = ledger.open(REQUEST, "7-0a1b2c3d", "prefill-0")
    ledger.report(_report(3200))
    ledger.forget(forgotten)
    ledger.report(_report(3200))
    ledger.keep(Kept("7-0a1b2c3d-89abcdef", 16))
    assert not ledger._open
    assert written == []


def test_without_a_known_block_size_no_bytes_are_expected(written: list[Handoff]) -> None:
    ledger = Ledger(written.append, "nixl_push", block_tokens=16, block_bytes=None)
    handoff = ledger.open(REQUEST, "7-0a1b2c3d", "prefill-0")
    ledger.report(_report(3200))
    ledger.close(handoff)
    assert (written[0].bytes, written[0].bytes_expected, written[0].blocks) == (3200, None, None)


def test_bytes_that_a_connector_cannot_tell_are_not_zero(ledger: Ledger, written: list[Handoff]) -> None:
    handoff = ledger.open(REQUEST, "7-0a1b2c3d", "prefill-0")
    ledger.report(TransferReport("7-0a1b2c3d-89abcdef", 1.0, 2.0, None))
    ledger.close(handoff)
    assert (written[0].bytes, written[0].blocks, written[0].t_transfer_end) == (None, None, 2.0)
