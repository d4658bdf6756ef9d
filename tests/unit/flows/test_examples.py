"""examples/ with the engine double: what its parts do, and that bad settings are refused by name."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests import REPO
from tests.double import TINY, fresh
from tests.unit.conftest import Command
from wp1.analysis.base.run_tables import RunTables
from wp1.core.records import Request, RequestRecord, new_record
from wp1.core.run_folder import read_json
from wp1.runner.reports import make_report

FOLDER = str(REPO / "examples" / "conf")


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores what the command changes for `--config-dir`."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(REPO / "examples")])


def test_an_experiment_from_outside(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("experiment=shortest_first", "tracking=none", f"root={tmp_path}", f"--config-dir={FOLDER}")
    code, said, _ = command(*TINY, *words)
    assert code == 0, said
    (run_dir,) = (tmp_path / "outputs").glob("run-*")
    figures = read_json(run_dir / "summary.json")["profiling"]["overtaking"]
    assert figures["arrival"]["overtaken_share"] == 0 < figures["shortest"]["overtaken_share"]
    # Classes named in a run's folder are not imported: the package may be missing, or someone else's.
    for name in [name for name in sys.modules if name.startswith("shortest_first")]:
        monkeypatch.delitem(sys.modules, name)
    for _ in range(2):
        page = make_report(run_dir, tmp_path / "reports").read_text()
        assert "> **Not recomputed**: overtaking in `collectors`" in page
        assert "## Collector overtaking" in page
        assert read_json(run_dir / "summary.json")["profiling"]["overtaking"] == figures
    assert not [name for name in sys.modules if name.startswith("shortest_first")]


@pytest.mark.parametrize(
    ("word", "refused"),
    [
        ("arms.shortest.at_onec=2", "unknown key arms.shortest.at_onec: did you mean arms.shortest.at_once?"),
        ("arms.shortest.at_once=0", "arms.shortest.at_once=0 is too small: set arms.shortest.at_once to 1 or more"),
        ("arms.shortest.at_once=two", "Value 'two' of type 'str' could not be converted to Integer"),
        (
            "arms.shortest.order=longest",
            "arms.shortest.order=longest is not known: set arms.shortest.order to shortest",
        ),
        ("arms.shortest.prefill=1", "unknown key arms.shortest.prefill: it is a key of scheduler=disagg"),
    ],
)
def test_its_settings_are_refused_by_name(command: Command, tmp_path: Path, word: str, refused: str) -> None:
    code, said, _ = command("experiment=shortest_first", f"root={tmp_path}", word, f"--config-dir={FOLDER}")
    assert code == 2
    assert said.startswith(f"error: {refused}")
    assert len(said.splitlines()) == 1


def _serve(prompts: list[int], **settings: Any) -> list[RequestRecord]:
    """Requests with prompts of these lengths that come at once; in the order in which they were answered."""
    from shortest_first.scheduler import ShortestFirst  # pyright: ignore[reportMissingImports]

    async def go() -> list[RequestRecord]:
        scheduler = ShortestFirst(name="s", replicas=1, make_backend=fresh(), **settings)
        requests = [
            Request(f"r{n}", "s", "c", 0, [1] * tokens, 3, seed=n, timeout_s=5) for n, tokens in enumerate(prompts)
        ]
        records = [new_record(request, 0.0) for request in requests]
        async with scheduler:
            serving = [asyncio.create_task(scheduler.serve(*pair)) for pair in zip(requests, records, strict=True)]
            await asyncio.sleep(0.001)
            serving[-1].cancel()
            await asyncio.gather(*serving, return_exceptions=True)
        return sorted(records[:-1], key=lambda record: record.t_tokens[0])

    return asyncio.run(go())


def test_the_shortest_prompt_that_waits_is_next_and_one_that_gives_up_takes_no_place() -> None:
    order = [record.prompt_tokens for record in _serve([5, 9, 3, 7, 1])]
    assert order == [5, 3, 7, 9]
    assert [record.prompt_tokens for record in _serve([5, 9, 3, 7, 1], order="arrival")] == [5, 9, 3, 7]


def test_who_was_overtaken() -> None:
    from shortest_first.overtaking import OvertakingCollector  # pyright: ignore[reportMissingImports]

    rows = pl.DataFrame(
        {
            "arm": "a",
            "cell": "c",
            "repeat": 0,
            "warmup": False,
            "t_intended": [0.0, 1.0, 2.0],
            "ttft_ms": [5e3, 1e3, 9e3],
        }
    )
    assert OvertakingCollector().profile(RunTables(Path()), rows) == {
        "a": {"requests": 3, "overtaken_share": 0.333, "longest_ttft_ms": 9000.0}
    }
