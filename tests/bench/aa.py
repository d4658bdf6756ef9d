"""A/A test on a real engine: the same arm twice, so that every claimed difference is false.

One engine serves the bundled model. A comparison has three repeats of each side, which alternate and get the same
prompts. Differences claimed by `wp1.analysis.comparison.figures` are counted by metric. `python -m tests.bench --only
aa` runs `--pairs` comparisons. The simulated comparisons of `tests.bench.calibration` are cheaper and many more, but
they assume distributions.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
from hydra import compose, initialize_config_dir

from tests.bench import machine
from tests.bench.calibration import HEADER, table_rows
from wp1.analysis.base import metrics, tables
from wp1.analysis.comparison.figures import compare
from wp1.analysis.report import table
from wp1.config import schema
from wp1.core.jsonl import RecordWriter
from wp1.core.plan import plan
from wp1.core.records import Request
from wp1.main import CONF
from wp1.model import models
from wp1.runner.console import Screen
from wp1.runner.load_generator import drive
from wp1.serving.engines import make_scheduler
from wp1.serving.guard import ProcessGuard
from wp1.workload import prompts

REPEATS, REQUESTS, CONCURRENCY, PROMPT_LEN, OUTPUT_LEN = 3, 6, 2, 64, 16
ARMS = ("a", "b")
SLO = {"ttft_ms": 2000.0, "tpot_ms": 200.0}


async def compared(folder: Path, comparisons: int, screen: Screen) -> list[pl.DataFrame]:
    """The table of each comparison (`wp1.analysis.comparison.figures`). Files of a run go to `folder`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = ["workload=random", f"workload.prompt_len={PROMPT_LEN}", f"workload.output_len={OUTPUT_LEN}"]
        overrides += [f"workload.num_requests={REQUESTS}", f"workload.concurrency={CONCURRENCY}", "model.max_len=2048"]
        cfg: Any = schema.resolve(compose("config", [f"root={folder}", *overrides, "experiment.same_tokens=false"]))
    cell = plan(cfg)[0].cells[0]
    model = models.prepare(cfg)
    data = prompts.PromptData(model.vocab_size, prompts.as_token_ids)
    comparison_tables = []
    with ProcessGuard() as guard:
        scheduler = make_scheduler(cfg, plan(cfg)[0], model, folder / "engine.log", guard.kill, lambda _: None)
        with screen.step("starting an engine"):
            await scheduler.__aenter__()
        try:
            with screen.step(f"{comparisons} comparisons of {2 * REPEATS} rounds of {REQUESTS} requests"):
                with RecordWriter(folder / "warm.jsonl") as writer:
                    for repeat in range(3):
                        warm = _of_arm("warm", prompts.measured(cfg, cell, 10**6 + repeat, data))
                        await drive(scheduler, warm, writer.write, None, CONCURRENCY)
                for number in range(comparisons):
                    path = folder / f"records-{number}.jsonl"
                    with RecordWriter(path) as writer:
                        for repeat in range(number * REPEATS, (number + 1) * REPEATS):
                            for arm in ARMS if repeat % 2 else ARMS[::-1]:
                                batch = _of_arm(arm, prompts.measured(cfg, cell, repeat, data))
                                await drive(scheduler, batch, writer.write, None, CONCURRENCY)
                    requests = tables.requests(path)
                    a, b = (requests.filter(pl.col("arm") == arm) for arm in ARMS)
                    comparison_tables.append(compare(a, b, SLO))
        finally:
            await scheduler.__aexit__(None, None, None)
    return comparison_tables


def _of_arm(arm: str, requests: Any) -> list[Request]:
    return [replace(r, arm=arm, request_id=f"{arm}/{r.request_id.partition('/')[2]}") for r in requests]


def text_of(comparisons: list[pl.DataFrame]) -> str:
    """How often a difference was claimed, by metric."""
    rows = pl.concat(comparisons)
    lines = []
    for figure in metrics.shown_in("comparison"):
        tested = rows.filter((pl.col("metric") == figure.name) & pl.col("excludes_zero").is_not_null())
        if tested.height:
            shown = int(tested["shown"].sum())
            lines.append([figure.title, tested.height, int(tested["excludes_zero"].sum()), shown])
    tested = rows.filter(pl.col("excludes_zero").is_not_null())
    lines.append(["**all**", tested.height, int(tested["excludes_zero"].sum()), int(tested["shown"].sum())])
    share = tested["excludes_zero"].mean()
    claims = sum(bool(comparison["shown"].any()) for comparison in comparisons)
    sentences = (
        f"{100 * float(share or 0):.1f} % of {tested.height} intervals exclude zero although nothing differs "  # pyright: ignore[reportArgumentType]
        f"(5 % are expected). A difference was claimed in {claims} of {len(comparisons)} comparisons."
    )
    return f"{table(['metric', 'comparisons', 'excludes zero', 'shown'], lines, 'lrrr')}\n\n{sentences}"


def simulated() -> str:
    """The table of docs/metrics.md."""
    return table(list(HEADER), list(_printed(table_rows())), "ll" + "r" * (len(HEADER) - 2))


def _printed(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    for row in rows:
        print(" | ".join(row), flush=True)
        yield row


def page(text: str, comparisons: int) -> str:
    """docs/results/aa-cpu.md."""
    return (
        f"# The same arm twice\n\n`make bench ARGS='--only aa --pairs {comparisons}'` on {machine.device()}: "
        f"{comparisons} comparisons of {REPEATS}\nrepeats of {REQUESTS} requests, {CONCURRENCY} at a time, "
        f"{PROMPT_LEN} prompt and {OUTPUT_LEN} output tokens each, on one engine of the\nbundled model, both sides in "
        "turn with the same "
        "prompts. Every claimed difference is false.\n\n"
        f"{text}\n\n{machine.installed()}\n"
    )
