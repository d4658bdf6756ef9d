"""make bench: what wp1 itself costs, side by side with doing without it, in one run.

- serving: 32 requests through wp1 (scheduler, records, all collectors at 10 Hz) against the same requests straight
  through vLLM's AsyncLLM, in turn; to stay at or under 1.02.
- sampling: the same through wp1 with the device collector on and off; to stay under 1.01. As a machine's noise is
  larger than that, also the CPU time that sampling takes, over the time it goes on, with nothing else to do.
- broker: the way of a request through both pools without engines, with 10,000 in flight.
- handoff: time to the decode pool's first token less prefill and transfer: what queues, steps and messages take.
- generation, truncation, scoring: what judging answers costs without an engine (tests/bench/quality.py).
- vllm: mean TTFT, mean TPOT and output throughput against `vllm bench serve` on `vllm serve`, side by side
  (`tests.bench.against_vllm`); within 2 %, or it is said why not.
- load: requests started on schedule, how late, and tokens/s, of wp1 alone on one core (`tests.bench.load`).
- analysis: a million requests from JSONL to summary: time and memory (`tests.bench.analysis`).
- aa, aa-simulated (with --only alone): how often a difference is claimed where there is none: the same arm twice on a
  real engine (`tests.bench.aa`), and simulated (`tests.bench.calibration`, the table of docs/metrics.md).
- composing: `python -m wp1 --cfg job` against `python -c 'import hydra'`; to answer within 2 s.

Each ratio is the median over pairs of neighbouring rounds, with the range of the middle half of the pairs: these
machines are shared, and a single pair says little. `--write FILE` keeps the table as markdown; `--only load,analysis`
measures these alone.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir

from tests.bench import aa, against_vllm, analysis, disaggregation, load, machine, quality
from wp1.analysis.report import table
from wp1.collectors.device import GPUStatsCollector
from wp1.config import schema
from wp1.core.plan import Cell, plan
from wp1.core.records import RecordWriter, Request
from wp1.machine import hardware
from wp1.machine.output import output_to
from wp1.main import CONF
from wp1.model import models
from wp1.runner.console import Screen
from wp1.runner.load_generator import drive
from wp1.serving import vllm_output
from wp1.serving.engines import make_scheduler
from wp1.serving.guard import ProcessGuard
from wp1.serving.schedulers.aggregated import AggregatedScheduler
from wp1.workload import prompts

REQUESTS, PROMPT_LEN, OUTPUT_LEN = 32, 64, 32
PARTS = ("engines", "vllm", "broker", "load", "analysis", "quality", "composing")
ALONE = ("aa", "aa-simulated")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--pairs", type=int, default=16, help="pairs of rounds a ratio")
    parser.add_argument("--write", type=Path, help="also write the table to this markdown file")
    parser.add_argument(
        "--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}; or one of {', '.join(ALONE)}"
    )
    words = parser.parse_args()
    only = words.only.split(",")
    if words.only in ALONE:
        _alone(words.only, words.pairs, words.write)
    if unknown := set(only) - set(PARTS):
        parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(PARTS)}, and {', '.join(ALONE)} go alone")
    rows: list[list[str]] = []
    if "engines" in only or "vllm" in only:
        with Screen() as screen, tempfile.TemporaryDirectory() as folder, output_to(Path(folder) / "engine.log"):
            rows += asyncio.run(_engines(Path(folder), words.pairs, screen)) if "engines" in only else []
            rows += asyncio.run(against_vllm.rows(Path(folder), words.pairs, screen)) if "vllm" in only else []
    rows += [disaggregation.broker_row(words.pairs)] if "broker" in only else []
    rows += load.rows() if "load" in only else []
    rows += analysis.rows() if "analysis" in only else []
    rows += quality.rows() if "quality" in only else []
    rows += [_composing(words.pairs)] if "composing" in only else []
    text = table(["what", "with", "without", "ratio", "middle half", "to reach"], rows, "lrrrrr")
    print(text)
    if words.write:
        words.write.write_text(_page(text, words.pairs), encoding="utf-8")
    sys.stdout.flush()
    # As wp1 itself leaves: vLLM's finalisers complain at the interpreter's end.
    os._exit(0)


def _alone(part: str, pairs: int, write: Path | None) -> NoReturn:
    """What claims nothing of what wp1 costs, and has a page of its own."""
    if part == "aa":
        with Screen() as screen, tempfile.TemporaryDirectory() as folder, output_to(Path(folder) / "engine.log"):
            text = aa.text_of(asyncio.run(aa.compared(Path(folder), pairs, screen)))
    else:
        text = aa.simulated()
    print(text)
    if write:
        write.write_text(aa.page(text, pairs) if part == "aa" else text + "\n", encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)


async def _engines(folder: Path, pairs: int, screen: Screen) -> list[list[str]]:
    return await _serving(folder, pairs, screen) + await disaggregation.handoff_rows(folder, screen)


async def _serving(folder: Path, pairs: int, screen: Screen) -> list[list[str]]:
    """Both ratios that need an engine; in `folder` goes what a run would leave."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = ["workload=random", f"workload.prompt_len={PROMPT_LEN}", f"workload.output_len={OUTPUT_LEN}"]
        overrides += [f"workload.num_requests={REQUESTS}", f"workload.concurrency={REQUESTS}", "model.max_len=2048"]
        cfg: Any = schema.resolve(compose("config", [f"root={folder}", *overrides]))
    cell = plan(cfg)[0].cells[0]
    model = models.prepare(cfg)
    rounds = _rounds(cfg, cell, model.vocab_size)
    with ProcessGuard() as guard, RecordWriter(folder / "records.jsonl") as writer:
        scheduler = make_scheduler(cfg, plan(cfg)[0], model, folder / "engine.log", guard.kill, lambda _: None)
        assert isinstance(scheduler, AggregatedScheduler)
        with screen.step("starting an engine"):
            await scheduler.__aenter__()
        engine: Any = scheduler._engines[0]

        async def through_wp1() -> None:
            await drive(scheduler, next(rounds), writer.write, None, REQUESTS)

        async def sampled() -> None:
            with _sampling(folder):
                await through_wp1()

        async def straight() -> None:
            await asyncio.gather(*(_straight(engine, request) for request in next(rounds)))

        try:
            with screen.step(f"timing {4 * pairs} rounds of {REQUESTS} requests"):
                for warm in (straight, sampled):
                    await warm()
                serving = await _in_turn(sampled, straight, pairs)
                sampling = await _in_turn(sampled, through_wp1, pairs)
                cost = await _cpu_of_sampling(folder)
        finally:
            await scheduler.__aexit__(None, None, None)
    return [
        _row(f"serving {REQUESTS} requests: wp1 / AsyncLLM", serving, "≤ 1.02"),
        _row("sampling at 10 Hz: on / off", sampling, "< 1.01"),
        ["sampling at 10 Hz: its CPU time / time", f"{cost:.3f} s", "10 s", f"{cost / 10:.4f}", "", "< 0.01"],
    ]


def _rounds(cfg: Any, cell: Cell, vocabulary: int) -> Iterator[list[Request]]:
    """Batches of fresh prompts, so that no round can profit from the one before."""
    repeat = 0
    while True:
        yield list(prompts.measured(cfg, cell, repeat, prompts.PromptData(vocabulary, prompts.as_token_ids)))
        repeat += 1


async def _straight(backend: Any, request: Request) -> None:
    """What a script without wp1 would do: the engine's own stream, read to its end."""
    prompt = vllm_output.prompt_of(request, backend._engine.get_tokenizer)
    sampling = vllm_output.sampling_params(request, backend._model.has_tokenizer)
    async for _ in backend._engine.generate(prompt, sampling, request.request_id):
        pass


@contextmanager
def _sampling(folder: Path) -> Iterator[None]:
    collector = GPUStatsCollector(hz=10)
    collector.start(folder, hardware.gpu_indices()[:1])
    try:
        yield
    finally:
        collector.stop()


async def _cpu_of_sampling(folder: Path, seconds: float = 10) -> float:
    """CPU seconds of this process in ten seconds of sampling, less those of ten seconds of idling."""

    async def idle() -> float:
        start = time.process_time()
        await asyncio.sleep(seconds)
        return time.process_time() - start

    without = await idle()
    with _sampling(folder):
        return await idle() - without


Pair = tuple[float, float]


async def _in_turn(
    first: Callable[[], Awaitable[None]], second: Callable[[], Awaitable[None]], pairs: int
) -> list[Pair]:
    """Seconds of both, `pairs` times; who goes first alternates, so that a drift of the machine favours neither."""

    async def timed(what: Callable[[], Awaitable[None]]) -> float:
        start = time.perf_counter()
        await what()
        return time.perf_counter() - start

    found = []
    for n in range(pairs):
        if n % 2:
            b, a = await timed(second), await timed(first)
        else:
            a, b = await timed(first), await timed(second)
        found.append((a, b))
    return found


def _composing(pairs: int) -> list[str]:
    def timed(*words: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    timed("-m", "wp1", "--cfg", "job")
    found = [(timed("-m", "wp1", "--cfg", "job"), timed("-c", "import hydra")) for _ in range(pairs)]
    return _row("composing: wp1 --cfg job / import hydra", found, "≤ 2 s")


def _row(what: str, pairs: list[Pair], goal: str) -> list[str]:
    ratios = sorted(a / b for a, b in pairs)
    low, _, high = statistics.quantiles(ratios, n=4)
    with_, without = (statistics.median(times) for times in zip(*pairs, strict=True))
    return [
        what,
        f"{with_:.3f} s",
        f"{without:.3f} s",
        f"{statistics.median(ratios):.3f}",
        f"{low:.3f} to {high:.3f}",
        goal,
    ]


def _page(text: str, pairs: int) -> str:
    return (
        f"# What wp1 itself costs\n\n`make bench ARGS='--pairs {pairs}'` on {machine.device()}.\n"
        f"Medians over {pairs} pairs of rounds, against vllm bench serve at most {against_vllm.MOST_PAIRS}.\n"
        f"Unless its row says otherwise, a round is {REQUESTS} requests of {PROMPT_LEN} prompt and {OUTPUT_LEN}\n"
        f"output tokens, all at once.\n\n{text}\n\n{machine.installed()}\n"
    )


if __name__ == "__main__":
    main()
