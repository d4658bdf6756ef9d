"""make bench: what wp1 itself costs, measured side by side with the same work without it.

- serving: 32 requests through wp1 (scheduler, records, all collectors at 10 Hz) against the same requests sent straight
  to vLLM's AsyncLLM, in turn; the target is at most 1.02.
- sampling: wp1 with the device collector on against off; the target is under 1.01. A machine's noise is larger than
  that, so the CPU time of sampling on an otherwise idle machine is measured too, relative to the elapsed time.
- broker: a request's way through both pools without engines, with 10,000 in flight.
- handoff: time to the decode pool's first token minus prefill and transfer: the time of queues, steps and messages.
- generation, truncation, scoring: the cost of quality benchmarks without an engine (`tests.bench.quality`).
- vllm: mean TTFT, mean TPOT and output throughput against `vllm bench serve` with `vllm serve`, side by side
  (`tests.bench.against_vllm`); the target is within 2 %.
- load: wp1 alone on one core: requests started on schedule, their delay, and tokens/s (`tests.bench.load`).
- analysis: a million requests from JSONL to the report: time and memory (`tests.bench.analysis`).
- aa, aa-simulated (only with --only): how often a difference is claimed although there is none, for the same arm twice
  on a real engine (`tests.bench.aa`), and simulated (`tests.bench.calibration`, the table in docs/metrics.md).
- composing: `python -m wp1 --cfg job` against `python -c 'import hydra'`; the target is within 2 s.

Each ratio is the median over pairs of neighbouring rounds, with the range of the middle half of the pairs, because
these machines are shared and a single pair says little. `--write FILE` also writes the table as markdown;
`--only load,analysis` measures these parts only.
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
from wp1.core.jsonl import RecordWriter
from wp1.core.plan import Cell, plan
from wp1.core.records import Request
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
    parser.add_argument("--pairs", type=int, default=16, help="pairs of rounds for each ratio")
    parser.add_argument("--write", type=Path, help="also write the table to this markdown file")
    parser.add_argument(
        "--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}; or one of {', '.join(ALONE)}"
    )
    args = parser.parse_args()
    only = args.only.split(",")
    if args.only in ALONE:
        _alone(args.only, args.pairs, args.write)
    if unknown := set(only) - set(PARTS):
        choices = f"{', '.join(PARTS)}, or one of {', '.join(ALONE)} alone"
        parser.error(f"--only: unknown part {', '.join(sorted(unknown))}: choose from {choices}")
    rows: list[list[str]] = []
    if "engines" in only or "vllm" in only:
        with Screen() as screen, tempfile.TemporaryDirectory() as folder, output_to(Path(folder) / "engine.log"):
            rows += asyncio.run(_engines(Path(folder), args.pairs, screen)) if "engines" in only else []
            rows += asyncio.run(against_vllm.rows(Path(folder), args.pairs, screen)) if "vllm" in only else []
    rows += [disaggregation.broker_row(args.pairs)] if "broker" in only else []
    rows += load.rows() if "load" in only else []
    rows += analysis.rows() if "analysis" in only else []
    rows += quality.rows() if "quality" in only else []
    rows += [_composing(args.pairs)] if "composing" in only else []
    text = table(["what", "with", "without", "ratio", "middle half", "target"], rows, "lrrrrr")
    print(text)
    if args.write:
        args.write.write_text(_page(text, args.pairs), encoding="utf-8")
    sys.stdout.flush()
    # Exit as wp1 does: vLLM's finalisers print errors at interpreter exit.
    os._exit(0)


def _alone(part: str, pairs: int, write: Path | None) -> NoReturn:
    """Runs an A/A part, which does not measure wp1's cost and has a page of its own, and exits."""
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
    """The rows for serving and sampling, which need an engine. Files of a run go to `folder`."""
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
    """Batches of new prompts, so that no round can benefit from an earlier one."""
    repeat = 0
    while True:
        yield list(prompts.measured(cfg, cell, repeat, prompts.PromptData(vocabulary, prompts.as_token_ids)))
        repeat += 1


async def _straight(backend: Any, request: Request) -> None:
    """Reads the engine's own stream to its end, as a script without wp1 would."""
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
    """CPU seconds of this process during ten seconds of sampling, minus those during ten seconds of idling."""

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
    """Times both in seconds, `pairs` times. The first alternates, so that a drift of the machine favours neither."""

    async def timed(what: Callable[[], Awaitable[None]]) -> float:
        start = time.perf_counter()
        await what()
        return time.perf_counter() - start

    times = []
    for n in range(pairs):
        if n % 2:
            b, a = await timed(second), await timed(first)
        else:
            a, b = await timed(first), await timed(second)
        times.append((a, b))
    return times


def _composing(pairs: int) -> list[str]:
    def timed(*words: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    timed("-m", "wp1", "--cfg", "job")
    times = [(timed("-m", "wp1", "--cfg", "job"), timed("-c", "import hydra")) for _ in range(pairs)]
    return _row("composing: wp1 --cfg job / import hydra", times, "≤ 2 s")


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
        f"Medians over {pairs} pairs of rounds, or at most {against_vllm.MOST_PAIRS} against vllm bench serve.\n"
        f"Unless its row says otherwise, a round is {REQUESTS} requests of {PROMPT_LEN} prompt and {OUTPUT_LEN}\n"
        f"output tokens, all at once.\n\n{text}\n\n{machine.installed()}\n"
    )


if __name__ == "__main__":
    main()
