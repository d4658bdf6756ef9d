"""One real engine: streaming, seeds, every kind of prompt, aborts, and YaRN as applied by the engine."""

import asyncio
import gc
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import polars as pl
import psutil
import pytest
from hydra import compose, initialize_config_dir

from tests.engine.conftest import Loop
from wp1.analysis.base import tables
from wp1.analysis.memory import figures as memory_figures
from wp1.config import schema
from wp1.core.errors import ConfigError
from wp1.core.records import ControlRecord, Request, RequestRecord, new_record
from wp1.machine.output import output_to
from wp1.main import CONF
from wp1.model import models
from wp1.serving import liveness
from wp1.serving.guard import ProcessGuard
from wp1.serving.memory import Moment
from wp1.serving.placement import Place
from wp1.serving.schedulers.serve import collect
from wp1.serving.starting import kv_free
from wp1.serving.vllm_backend import VLLMBackend
from wp1.workload.prompts import random_token_ids

MARS = [{"role": "user", "content": "Which planet is known as the red planet?"}]


@pytest.fixture(scope="module")
def engine(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMBackend]:
    """The bundled model at twice its native context length."""
    folder = tmp_path_factory.mktemp("engine")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = schema.resolve(compose("config", ["model.max_len=16384", f"root={folder}"]))
    with ProcessGuard() as guard, output_to(folder / "engine.log"):
        backend = VLLMBackend(
            name="agg-0",
            model=models.prepare(cfg),
            engine={"max_num_seqs": 8, "enable_prefix_caching": False, "max_num_batched_tokens": 512},
            kv_cache_gib=0.75,
            startup_timeout_s=600,
            tensor_parallel=1,
            place=Place(),
            seed=0,
            log=folder / "engine.log",
            kill=guard.kill,
            memory=True,
        )
        loop(backend.__aenter__(), timeout_s=700)
        yield backend
        loop(backend.__aexit__(None, None, None))
    # vLLM's finaliser prints errors if it runs at interpreter exit.
    gc.collect()


def _request(prompt: Any = MARS, name: str = "r", tokens: int = 12, seed: int = 1, **changes: Any) -> Request:
    return Request(name, "agg", "cell", 0, prompt, tokens, seed, **changes)


def _ask(loop: Loop, engine: VLLMBackend, request: Request) -> RequestRecord:
    record = new_record(request, 0.0)
    loop(collect(engine.generate(request), record, request.timeout_s))
    return record


def _ask_at_once(loop: Loop, engine: VLLMBackend, requests: list[Request]) -> list[RequestRecord]:
    async def all_of() -> list[RequestRecord]:
        records = [new_record(request, 0.0) for request in requests]
        await asyncio.gather(*(collect(engine.generate(q), r, 300) for q, r in zip(requests, records, strict=True)))
        return records

    return loop(all_of())


def test_the_engine_answers_a_question(loop: Loop, engine: VLLMBackend) -> None:
    record = _ask(loop, engine, _request())
    assert record.status == "ok", record.error
    assert "Mars" in record.text
    assert record.finish_reason == "stop"


def test_times_are_in_order_on_one_clock_and_tokens_are_counted(loop: Loop, engine: VLLMBackend) -> None:
    record = _ask(loop, engine, _request(ignore_eos=True, tokens=9))
    assert record.output_tokens == len(record.token_ids) == len(record.t_tokens) == 9
    assert record.finish_reason == "length"
    times = [record.t_sent, record.t_queued, record.t_scheduled, record.t_engine_first_token, record.t_tokens[0]]
    assert None not in times
    assert times == sorted(times)  # type: ignore[type-var]
    assert record.t_tokens == sorted(record.t_tokens)
    assert record.t_tokens[-1] <= (record.t_end or 0)
    assert (record.t_engine_last_token or 0) <= record.t_tokens[-1]
    # The tokens were streamed, not sent all at the end.
    assert record.t_tokens[-1] - record.t_tokens[0] > 0.01


def test_chat_token_ids_and_text_are_the_same_prompt(loop: Loop, engine: VLLMBackend) -> None:
    chat = _ask(loop, engine, _request(name="chat"))
    tokenizer = engine._engine.get_tokenizer()
    text = tokenizer.apply_chat_template(MARS, add_generation_prompt=True, tokenize=False)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert chat.prompt_tokens == len(ids)
    assert _ask(loop, engine, _request(ids, "ids")).token_ids == chat.token_ids
    assert _ask(loop, engine, _request(text, "text")).token_ids == chat.token_ids


def test_the_seed_determines_the_sampled_tokens(loop: Loop, engine: VLLMBackend) -> None:
    story = [{"role": "user", "content": "Tell me a story."}]
    first, again, other = (
        _ask(loop, engine, _request(story, f"s{n}", tokens=16, seed=seed, temperature=1.0))
        for n, seed in enumerate([7, 7, 8])
    )
    assert first.token_ids == again.token_ids
    assert first.token_ids != other.token_ids


def test_asking_for_margins_changes_no_token(loop: Loop, engine: VLLMBackend) -> None:
    plain = _ask(loop, engine, _request(name="plain"))
    asked = _ask(loop, engine, replace(_request(name="asked"), margins=True))
    assert asked.token_ids == plain.token_ids
    assert isinstance(asked, ControlRecord) and not isinstance(plain, ControlRecord)
    assert len(asked.margins) == asked.output_tokens
    # bfloat16 logits are quantised: above 16 in steps of an eighth of a nat, below in fractions of that.
    assert all(0 <= margin < 100 for margin in asked.margins)
    assert all(margin * 128 == pytest.approx(round(margin * 128), abs=0.02) for margin in asked.margins)
    # Nothing was compiled for that.
    assert {process.environ().get("TORCHDYNAMO_DISABLE") for process in engine._life.processes} == {"1"}


def test_seeded_sampling_with_chunked_prefill_works_and_is_repeatable(loop: Loop, engine: VLLMBackend) -> None:
    """vLLM rewinds a request's generator after each chunk, which torch alone cannot do on a CPU.

    This affects short prompts too, if a longer one leaves them too little room in a step of 512 tokens.
    """
    lengths = [700, 30, 400, 300]

    def ask(name: str, first_seed: int = 1) -> list[RequestRecord]:
        asked = [
            _request(random_token_ids(length, 49152, seed=length), f"{name}{n}", seed=first_seed + n, temperature=1.0)
            for n, length in enumerate(lengths)
        ]
        return _ask_at_once(loop, engine, [replace(request, ignore_eos=True) for request in asked])

    first, again, other = ask("first"), ask("again"), ask("other", first_seed=101)
    for records in (first, again, other):
        assert [(record.status, record.error) for record in records] == [("ok", None)] * len(lengths)
    assert [record.token_ids for record in first] == [record.token_ids for record in again]
    assert all(one.token_ids != two.token_ids for one, two in zip(first, other, strict=True))


def test_no_prompt_is_taken_from_a_cache(loop: Loop, engine: VLLMBackend) -> None:
    long = list(range(1000, 1400))
    records = [_ask(loop, engine, _request(long, f"c{n}", tokens=1)) for n in range(2)]
    assert [record.cached_tokens for record in records] == [0, 0]


def test_concurrent_requests_do_not_mix(loop: Loop, engine: VLLMBackend) -> None:
    requests = [_request([1000 + n] * 20, f"m{n}", tokens=4 + n, ignore_eos=True) for n in range(6)]
    records = _ask_at_once(loop, engine, requests)
    assert [record.output_tokens for record in records] == [4, 5, 6, 7, 8, 9]
    assert [record.prompt_tokens for record in records] == [20] * 6


def test_a_timeout_aborts_the_request_in_the_engine(loop: Loop, engine: VLLMBackend) -> None:
    record = _ask(loop, engine, _request(tokens=4000, ignore_eos=True, timeout_s=3))
    assert (record.status, record.cause) == ("timeout", "timeout")
    assert 0 < record.output_tokens < 4000
    assert engine._engine.get_num_unfinished_requests() == 0
    assert _ask(loop, engine, _request(name="after")).status == "ok"


def test_abort_ends_a_request_early(loop: Loop, engine: VLLMBackend) -> None:
    async def go() -> RequestRecord:
        request = _request(name="long", tokens=4000, ignore_eos=True)
        record = new_record(request, 0.0)
        task = asyncio.create_task(collect(engine.generate(request), record, 60))
        while record.output_tokens < 3:
            await asyncio.sleep(0.02)
        await engine.abort("long")
        await asyncio.wait_for(task, 10)
        return record

    record = loop(go())
    assert record.finish_reason == "abort"
    assert record.output_tokens < 4000


def test_a_prompt_that_is_too_long_is_refused_and_the_engine_survives(loop: Loop, engine: VLLMBackend) -> None:
    record = _ask(loop, engine, _request([1000] * 17000))
    assert (record.status, record.cause) == ("error", "engine_error")
    assert "16384" in (record.error or "")
    assert _ask(loop, engine, _request(name="next")).status == "ok"


def test_yarn_is_in_effect_in_the_engine(engine: VLLMBackend) -> None:
    scaling = engine.rope_in_effect()
    assert scaling["rope_type"] == "yarn"
    assert scaling["factor"] == 2.0
    assert scaling["original_max_position_embeddings"] == 8192
    assert scaling["rope_theta"] == 100000.0
    assert engine._engine.vllm_config.model_config.max_model_len == 16384


def test_its_memory_is_accounted_for(loop: Loop, engine: VLLMBackend) -> None:
    notes: list[dict[str, Any]] = []

    def note(moment: Moment) -> None:
        of_cell = {} if moment == "start" else {"cell": "700-conc1", "repeat": 0}
        known = {"arm": "agg", "pool": "agg", "engine": "agg-0", "moment": moment, **of_cell}
        notes.extend(known | {"note": note} for note in loop(engine.memory(moment)))

    note("start")
    note("begin")
    assert _ask(loop, engine, _request([1000] * 700, "memory", tokens=4, ignore_eos=True)).status == "ok"
    note("end")
    model = {"weight_bytes": 269_000_000, "kv_bytes_per_token": 23_040, "max_len": 16384, "shape": None}
    pools = [{"arm": "agg", "engines": [asdict(engine.info())]}]
    requests = tables.with_latencies(pl.DataFrame(schema=tables.RECORD_SCHEMA))
    [row] = memory_figures.rows_of(notes, requests, {"pools": pools, "model": model})
    assert row.adds_up, row
    # Kernels repack weights, and some keep a second copy.
    assert 0.9 < row.parts["weights"] / model["weight_bytes"] < 2
    assert row.blocks == -(-703 // 128)
    assert row.parts["kv_in_use"] == row.blocks * 128 * 23_040
    assert row.kv_pool == row.calculated["kv_reserved"]
    assert row.parts["activations"] > 1 << 20


def test_the_engine_describes_itself(engine: VLLMBackend) -> None:
    info = engine.info()
    assert info.devices == ["cpu"]
    assert info.startup_s > 1
    assert info.settings["dtype"] == "bfloat16"
    # 0.75 GiB in blocks of 128 tokens with 23,040 bytes each.
    assert info.settings["kv_blocks"] == int(0.75 * (1 << 30)) // (info.settings["block_size"] * 23_040)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_num_seq": 3}, "max_num_seqs"),
        ({"max_model_len": 3}, r"model\.max_len"),
        ({"load_format": "dummy"}, r"model\.source"),
        ({"gpu_memory_utilization": "abc"}, "gpu_memory_utilization"),
        ({"max_num_seqs": "many"}, r"backend\.engine"),
    ],
)
def test_arguments_the_engine_would_refuse_are_refused_first(
    engine: VLLMBackend, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    engine.check()
    monkeypatch.setattr(engine, "_engine_arguments", arguments)
    with pytest.raises(ConfigError, match=message) as refusal:
        engine.check()
    assert "\n" not in str(refusal.value)


def test_the_engine_reports_the_layout_of_its_kv_cache(engine: VLLMBackend) -> None:
    settings = engine.info().settings
    # 30 layers, 3 KV heads of size 64, keys and values, 2 bytes each.
    assert (settings["kv_token_bytes"], settings["kv_layers"]) == (23_040, "30 FullAttentionSpec")
    assert settings["kv_block_bytes"] == settings["block_size"] * 23_040
    assert settings["kv_note"] is None


def test_an_engine_that_hangs_is_killed_and_reported(
    loop: Loop, engine: VLLMBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Must be the last test, because it ends the engine. Suspended processes stand for a kernel that never returns."""
    monkeypatch.setattr(liveness, "LOOK_S", 3.0)
    for process in engine._life.processes:
        process.suspend()
    assert loop(kv_free([engine], within_s=0.5), timeout_s=5) == {"agg-0": False}
    record = _ask(loop, engine, _request(timeout_s=3))
    assert (record.status, record.output_tokens) == ("timeout", 0)
    deadline = time.monotonic() + 30
    while engine.alive and time.monotonic() < deadline:
        time.sleep(0.1)
    why = r"engine agg-0 died: it did not answer within \d+ s \(to check that it is alive\) and was killed"
    assert re.fullmatch(why, engine.death or "")
    begin = time.monotonic()
    after = _ask(loop, engine, _request(name="after"))
    assert (after.status, after.cause, after.error) == ("error", "engine_died", engine.death)
    assert time.monotonic() - begin < 3
    assert psutil.wait_procs(engine._life.processes, timeout=10)[1] == []
