"""Warm-up continues until two rounds are alike, within its limits."""

import asyncio
import time
from typing import Any

import pytest

from tests.conftest import Compose
from wp1.core.plan import plan
from wp1.core.records import Request, RequestRecord
from wp1.runner import warmup
from wp1.workload import prompts
from wp1.workload.prompts import PromptData

DATA = PromptData(49152, prompts.as_token_ids)


class Settling:
    """Takes `seconds[n]` to the first token of its request number n, then always the last of them."""

    def __init__(self, *seconds: float, fails: bool = False) -> None:
        self.seconds, self.fails, self.served = seconds, fails, 0

    async def serve(self, request: Request, record: RequestRecord) -> None:
        taken = self.seconds[min(self.served, len(self.seconds) - 1)]
        self.served += 1
        # The time limit is not tested here.
        record.t_sent = record.t_intended
        if not self.fails:
            record.t_tokens, record.status = [record.t_intended + taken], "ok"


def _rounds(config: Compose, scheduler: Settling, *overrides: str, engines: int = 1) -> list[RequestRecord]:
    cfg: Any = config("workload=random", *overrides)
    records: list[RequestRecord] = []
    cell = plan(cfg)[0].cells[0]
    asyncio.run(warmup.warm_up(cfg, cell, 0, DATA, scheduler, engines, records.append))  # type: ignore[arg-type]
    assert all(record.warmup for record in records)
    assert len({record.request_id for record in records}) == len(records)
    return records


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    [((1.0,), 2), ((9.0, 1.0, 1.1), 3), ((0.010, 0.006), 2), ((1, 2, 4, 8, 16, 32), 5)],
)
def test_it_ends_when_two_rounds_are_alike(config: Compose, seconds: tuple[float, ...], rounds: int) -> None:
    assert len(_rounds(config, Settling(*seconds))) == rounds


def test_every_engine_has_its_request_in_a_round(config: Compose) -> None:
    assert len(_rounds(config, Settling(1.0), engines=3)) == 6


def test_its_limits_are_kept(config: Compose) -> None:
    assert len(_rounds(config, Settling(1.0), "workload.num_warmup=4")) == 5
    assert len(_rounds(config, Settling(1.0), "workload.num_warmup=3", "workload.max_warmup=3")) == 3
    assert _rounds(config, Settling(1.0), "workload.num_warmup=0") == []
    assert len(_rounds(config, Settling(1.0, fails=True))) == 1


def test_long_rounds_are_not_repeated(config: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 11.0, 22.0])
    monkeypatch.setattr(warmup, "time", type("Clock", (), {"monotonic": lambda: next(clock)}))
    assert len(_rounds(config, Settling(9.0, 1.0))) == 1
    assert time.monotonic() > 0
