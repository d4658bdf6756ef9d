"""`make bench-transfer`: results are added in parts, and the page shows those that exist."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.bench import transfer
from tests.bench.transfer_page import DiffersError, Measured, Results
from wp1.core.records import Handoff, Request, new_record

FACTS: dict[str, Any] = {
    "machine": "NVIDIA H100 80GB HBM3",
    "engines": "cuda:0 and cuda:0",
    "apart": False,
    "versions": {"vllm": "0.26.0", "torch": "2.11.0"},
    "overrides": [],
}
LENGTHS = (1024, 8192, 32768, 65536)
PLAIN = 1400.0
# GB/s over three decades, as on a GPU.
RATES = {
    "ipc": 1100.0,
    "ipc overlap": 900.0,
    "NIXL push": 2.0,
    "NIXL pull": 0.4,
    "NIXL push layers": 600.0,
    "NIXL pull layers": 0.42,
    "ipc 128": 1200.0,
    "NIXL push 128": 50.0,
    "NIXL pull 128": 0.41,
    "ipc beside steps": 900.0,
}


def rows(variant: str, tokens: int, repeats: int = 5) -> list[Measured]:
    rate = RATES[variant] * (0.6 + 0.1 * math.log2(tokens / 1024) / 1.5)
    size = tokens * 131072
    ms = size / rate / 1e6
    return [
        Measured(variant, tokens, size, rate * (1 + n / 50), ms + 14, ms + n / 10, 3.0, 9.0) for n in range(repeats)
    ]


def whole(folder: Path) -> Results:
    results = Results.begin(folder, FACTS)
    for variant in transfer.VARIANTS:
        for tokens in LENGTHS:
            slow = tokens >= 32768 and RATES[variant] < 1
            results.add(rows(variant, tokens, 1 if slow else 5))
    results.add_plain(dict.fromkeys(LENGTHS, PLAIN))
    return results


def test_page_and_plot_of_all_variants(tmp_path: Path) -> None:
    page = whole(tmp_path).write_page()
    assert (tmp_path / "transfer.md").read_text() == page
    assert (tmp_path / "transfer.png").stat().st_size > 10_000
    assert "Random weights; NVIDIA H100 80GB HBM3, engines on cuda:0 and cuda:0; vllm 0.26.0, torch 2.11.0." in page
    for variant in transfer.VARIANTS:
        assert f"| {variant} " in page
    at_1024 = 1100 * 0.6 * (1 + 2 / 50)
    assert f"{at_1024:,.0f} ({at_1024 / PLAIN:.3g})" in page
    assert "| plain gather " in page
    [best] = [line for line in page.splitlines() if line.startswith("| best ipc / best NIXL")]
    assert [cell.strip() for cell in best.split("|")[2:-1]] == ["2"] * 4


def test_the_page_shows_the_range_of_handoffs(tmp_path: Path) -> None:
    results = Results.begin(tmp_path, FACTS)
    for rate in (4.4, 20.2, 774.0):
        results.add([Measured("NIXL push", 1024, 1 << 27, rate, 30.0, 16.0, 4.0, 9.0)])
    results.add([Measured("ipc", 1024, 1 << 27, rate, 14.0, 1.0, 3.0, 9.0) for rate in (1000.0, 1010.0, 1161.0)])
    page = results.write_page()
    assert "| 4.4 to 774 |" in page
    [fastest] = [line for line in page.splitlines() if line.startswith("| the same ratio, fastest handoffs")]
    assert fastest.split("|")[2].strip() == "1.5"
    [best] = [line for line in page.splitlines() if line.startswith("| best ipc / best NIXL")]
    assert best.split("|")[2].strip() == "50"


def test_a_connector_that_reports_no_bytes_has_no_rate_and_the_plot_is_made(tmp_path: Path) -> None:
    """As NIXL did with vLLM 0.33: rows of 0 bytes, and a plain copy of one row of 64 KiB at 2 GB/s."""
    results = Results.begin(tmp_path, FACTS)
    results.add(rows("ipc", 1024))
    results.add_plain({1024: 1587.0})
    results.add([Measured("NIXL push", 1024, 0, 0.0, 30.0, 16.0, 4.0, 9.0)] * 5)
    results.add_plain({1024: 2.0})
    page = results.write_page()
    assert (tmp_path / "transfer.png").exists()
    [plain] = [line for line in page.splitlines() if line.startswith("| plain gather")]
    assert plain.split("|")[2].strip() == "1,587 (1)"
    assert "measurements: 1,024 tokens: 1,587 GB/s, without outliers 2." in page
    assert "NIXL push, 1,024 tokens: the connector reported no bytes, so there is no rate." in page
    assert "| NIXL push" not in page
    assert "794" not in page


def test_the_plain_copy_has_as_many_bytes_as_the_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results.begin(tmp_path, FACTS)
    results.add([*rows("ipc", 1024), Measured("NIXL push", 1024, 0, 0.0, 30.0, 16.0, 4.0, 9.0)])
    asked: list[Any] = []

    def run(words: list[str], **_: Any) -> Any:
        asked.append(json.loads(words[-1]))
        return type("Ran", (), {"stdout": "[1400.0]"})

    monkeypatch.setattr(transfer.subprocess, "run", run)
    monkeypatch.setattr(transfer.hardware, "gpu_indices", lambda: [0])
    assert transfer._plain_copy({1024}, results) == {1024: 1400.0}
    assert asked == [[[1024 * 131072], 0, 0]]


def test_the_page_shows_the_range_of_plain_copies(tmp_path: Path) -> None:
    results = Results.begin(tmp_path, FACTS)
    results.add(rows("ipc", 1024))
    for rate in (1500.0, 1000.0, 1400.0, 700.0):
        results.add_plain({1024: rate})
    page = results.write_page()
    assert "measurements: 1,024 tokens: 1,000 to 1,500 GB/s, without outliers 700." in page
    [plain] = [line for line in page.splitlines() if line.startswith("| plain gather")]
    assert plain.split("|")[2].strip() == "1,400 (1)"


def test_rows_without_bytes_alone_make_a_page(tmp_path: Path) -> None:
    results = Results.begin(tmp_path, FACTS)
    results.add([Measured("NIXL push", 1024, 0, 0.0, 30.0, 16.0, 4.0, 9.0)])
    results.add_plain({1024: 0.0})
    assert "reported no bytes" in results.write_page()
    assert not (tmp_path / "transfer.png").exists()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"bytes": None}, "reported no bytes"),
        ({"bytes": 0}, "reported 0 bytes, but the prompt has 1,600"),
        ({"bytes": 3200}, "reported 3,200 bytes, but the prompt has 1,600"),
        ({"t_transfer_end": 1.0}, "a transfer time of zero or less"),
    ],
)
def test_a_report_that_allows_no_rate_is_an_error(changes: dict[str, Any], error: str) -> None:
    times = {"t_transfer_begin": 1.0, "t_transfer_end": 2.0}
    handoff = Handoff("7-0a", "r0", "disagg", "c", 0, False, "prefill-0", "decode-0", "nixl_push")
    for name, value in ({"bytes": 1600, "bytes_expected": 1600} | times | changes).items():
        setattr(handoff, name, value)
    record = new_record(Request("r0", "disagg", "c", 0, [1], 5, seed=0), 0.0)
    with pytest.raises(RuntimeError, match=error):
        transfer._measured("NIXL push", 1024, record, handoff)


def test_calls_add_to_one_folder_and_the_page_needs_no_engine(tmp_path: Path) -> None:
    first = Results.begin(tmp_path, FACTS)
    first.add(rows("ipc", 1024))
    first.miss("NIXL push", "no\nroom")
    again = Results.begin(tmp_path, FACTS)
    assert again.has("ipc", 1024)
    assert not again.has("ipc", 8192)
    again.add(rows("NIXL push", 1024))
    again.add_plain({1024: PLAIN})
    assert "NIXL push was not measured completely: no room" in Results.read(tmp_path).write_page()
    again.miss("NIXL push", None)
    found = Results.read(tmp_path)
    assert (found.rows, found.plain, found.missing) == (again.rows, [(1024, PLAIN)], {})
    assert "not measured" not in found.write_page()


def test_a_partial_line_of_a_killed_call_is_left_out(tmp_path: Path) -> None:
    Results.begin(tmp_path, FACTS).add(rows("ipc", 1024, 2))
    path = tmp_path / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    again = Results.read(tmp_path)
    assert len(again.rows) == 1
    again.add(rows("ipc", 8192, 1))
    assert [row.tokens for row in Results.read(tmp_path).rows] == [1024, 8192]


def test_a_page_of_partial_results(tmp_path: Path) -> None:
    results = Results.begin(tmp_path, FACTS)
    assert "plain gather" in results.write_page()
    results.add(rows("ipc", 1024))
    results.add(rows("NIXL pull", 65536, 1))
    page = results.write_page()
    assert "nan" not in page
    assert "None" not in page
    assert (tmp_path / "transfer.png").exists()


def test_another_machine_needs_another_folder(tmp_path: Path) -> None:
    Results.begin(tmp_path, FACTS)
    with pytest.raises(DiffersError, match="was measured with machine NVIDIA H100 80GB HBM3, but this is NVIDIA H200"):
        Results.begin(tmp_path, FACTS | {"machine": "NVIDIA H200"})


def test_variants_that_differ_in_overlap_share_their_engines() -> None:
    assert transfer.groups_of(list(transfer.VARIANTS))[:2] == [["ipc", "ipc overlap"], ["NIXL push"]]
    assert sum(map(len, transfer.groups_of(list(transfer.VARIANTS)))) == len(transfer.VARIANTS)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--only", "ipc,NIXL"], "--only: unknown variant NIXL: choose from ipc,"),
        (["--page", "nowhere"], "--page: nowhere has no facts.json"),
    ],
)
def test_bad_options_are_refused(
    words: list[str], error: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", *words])
    with pytest.raises(SystemExit) as ended:
        transfer.main()
    assert ended.value.code == 2
    assert error in capsys.readouterr().err


def test_page_makes_the_page_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results.begin(tmp_path, FACTS)
    results.add(rows("ipc", 1024))
    monkeypatch.setattr("sys.argv", ["bench", "--page", str(tmp_path)])
    transfer.main()
    assert "| ipc " in capsys.readouterr().out


class Stub:
    """Replaces the engines. Each group takes 100 s, and a variant may raise an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups: list[list[str]] = []
        self.wanted: list[tuple[str, int]] = []
        self.raises: dict[str, BaseException] = {}
        self.now = 0.0
        monkeypatch.setattr(transfer, "_measure", self.measure)
        monkeypatch.setattr(transfer, "_plain_copy", lambda lengths, _: dict.fromkeys(sorted(lengths), PLAIN))
        monkeypatch.setattr(transfer.time, "monotonic", lambda: self.now)

    async def measure(self, group: list[str], wanted: list[tuple[str, int]], *rest: Any) -> None:
        self.groups.append(group)
        self.wanted += wanted
        self.now += 100
        for variant, tokens in wanted:
            if tokens > 1024 and variant in self.raises:
                raise self.raises[variant]
            rest[-1].add(rows(variant, tokens))


def call(folder: Path, **words: Any) -> tuple[bool, Results]:
    class Screen:
        def say(self, text: str) -> None:
            pass

    class Words:
        write = None
        only = list(transfer.VARIANTS)[:3]
        lengths = (1024, 8192)
        budget_s = None

    for name, value in words.items():
        setattr(Words, name, value)
    any_: Any = Screen()
    results = Results.begin(folder / "results", FACTS)
    return transfer._measure_all(Words, 1.0, folder, any_, results), results


def test_existing_results_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Stub(monkeypatch)
    call(tmp_path, only=["ipc"], lengths=(1024,))
    stub.wanted.clear()
    stopped, _ = call(tmp_path)
    assert not stopped
    assert ("ipc", 1024) not in stub.wanted
    assert {("ipc", 8192), ("ipc overlap", 1024), ("NIXL push", 8192)} <= set(stub.wanted)
    stub.groups.clear()
    assert not call(tmp_path)[0]
    assert stub.groups == []


def test_no_engines_are_started_without_enough_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Stub(monkeypatch)
    assert call(tmp_path, budget_s=150)[0]
    assert stub.groups == [["ipc", "ipc overlap"]]
    assert not call(tmp_path, budget_s=150)[0]
    assert stub.groups[1:] == [["NIXL push"]]


@pytest.mark.parametrize("error", [RuntimeError("no room"), KeyboardInterrupt()])
def test_what_was_measured_before_an_error_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    stub = Stub(monkeypatch)
    stub.raises["ipc"] = error
    stopped, _ = call(tmp_path)
    found = Results.read(tmp_path / "results")
    assert found.has("ipc", 1024)
    assert stopped == isinstance(error, KeyboardInterrupt)
    assert found.has("NIXL push", 8192) == (not stopped)
    assert set(found.missing) == (set() if stopped else {"ipc", "ipc overlap"})
    stub.raises.clear()
    call(tmp_path)
    assert json.loads((tmp_path / "results" / "missing.json").read_text() if not stopped else "{}") == {}
