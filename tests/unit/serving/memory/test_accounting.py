"""A worker's notes, with a fake of vLLM's worker."""

from types import SimpleNamespace
from typing import Any

import pytest

from wp1.serving.memory.accounting import Accounting, Blocks


def _step(
    new: dict[str, list[int]] | None = None, grown: dict[str, list[int] | None] | None = None, **other: Any
) -> Any:
    grown = grown or {}
    return SimpleNamespace(
        finished_req_ids=set(other.get("finished", ())),
        scheduled_new_reqs=[SimpleNamespace(req_id=name, block_ids=(blocks,)) for name, blocks in (new or {}).items()],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(grown),
            new_block_ids=[None if blocks is None else (blocks,) for blocks in grown.values()],
            resumed_req_ids=set(other.get("resumed", ())),
        ),
        num_scheduled_tokens=other.get("tokens", {}),
    )


def test_blocks_follow_the_scheduler() -> None:
    blocks = Blocks()
    blocks.step(_step({"a": [1, 2]}))
    blocks.step(_step({"b": [3]}, {"a": [4]}))
    assert (blocks.most, blocks.most_at_once) == (3, 4)
    blocks.step(_step(grown={"b": None}, finished=["a"]))
    blocks.reset()
    blocks.step(_step(grown={"b": [5]}))
    assert (blocks.most, blocks.most_at_once) == (2, 2)


def test_a_request_that_is_resumed_has_new_blocks() -> None:
    blocks = Blocks()
    blocks.step(_step({"a": [1, 2, 3]}))
    blocks.reset()
    blocks.step(_step(grown={"a": [7]}, resumed=["a"]))
    assert blocks.most == 1


class FakeMeter:
    def __init__(self, local_rank: int) -> None:
        self.peaks = [70, 5, 90]
        self.log: list[str] = []

    def note(self) -> dict[str, Any]:
        return {"resident": 1}

    def kv_is_there(self, kv: Any) -> None:
        self.log.append("kv")

    def begin(self) -> None:
        self.log.append("begin")

    def end(self) -> int | None:
        self.log.append("end")
        return self.peaks.pop(0)

    def account(self, weights: Any, kv: Any) -> dict[str, Any]:
        return {"limit": 9}


class VLLMWorker:
    rank = 0

    def __init__(self, **_: Any) -> None:
        self.calls: list[str] = []

    def init_device(self) -> None:
        self.calls.append("init_device")

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        module = SimpleNamespace(parameters=lambda: [], buffers=lambda: [])
        self.model_runner = SimpleNamespace(get_model=lambda: module, kv_caches=[])
        self.model_runner.capture_model = lambda: 77

    def determine_available_memory(self) -> int:
        return 123

    def initialize_from_config(self, config: Any) -> None:
        self.calls.append(config)

    def compile_or_warm_up_model(self) -> float:
        return self.model_runner.capture_model() / 7

    def execute_model(self, output: Any) -> str:
        return f"ran {len(output.num_scheduled_tokens)}"


class Worker(Accounting, VLLMWorker):
    meter_class = FakeMeter


@pytest.fixture
def worker() -> Worker:
    worker = Worker(local_rank=0)
    worker.init_device()
    worker.load_model(load_dummy_weights=False)
    assert worker.determine_available_memory() == 123
    worker.initialize_from_config("config")
    assert worker.compile_or_warm_up_model() == 11
    return worker


def test_every_stage_of_the_start_is_noted(worker: Worker) -> None:
    note = worker.wp1_memory_start()
    stages = [stage["stage"] for stage in note["stages"]]
    assert stages == ["imported", "device", "weights", "profiled", "kv_cache", "ready"]
    assert note["vllm"] == {"capture_model": 77}
    assert worker.calls == ["init_device", "config"]


def test_prefill_and_decode_have_separate_peaks(worker: Worker) -> None:
    worker.wp1_memory_begin()
    assert worker.execute_model(_step({"a": [1]}, tokens={"a": 128})) == "ran 1"
    worker.execute_model(_step(grown={"a": None}, tokens={"a": 1}))
    worker.execute_model(_step(finished=["a"]))  # nothing to compute
    worker.execute_model(_step({"b": [1, 2]}, tokens={"b": 256}))
    note = worker.wp1_memory_end()
    assert note["steps"] == {"prefill": 2, "decode": 1}
    assert note["step_peaks"] == {"prefill": 90, "decode": 5}
    assert (note["blocks_a_request"], note["blocks_at_once"]) == (2, 2)
    worker.wp1_memory_begin()
    assert worker.wp1_memory_end()["steps"] == {}
