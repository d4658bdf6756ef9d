"""Random numbers of seeded requests on a CPU: a discarded token uses none of a request's numbers."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from wp1.serving.sampling import RewindingGenerator, remember_generators

VOCABULARY = 50


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator(device="cpu").manual_seed(seed)


class Runner:
    """A fake of vLLM's model runner that draws and rewinds random numbers as vLLM does."""

    def __init__(self, **seeds: int) -> None:
        self.requests = {name: SimpleNamespace(generator=_seeded(seed)) for name, seed in seeds.items()}
        self.input_batch: Any = SimpleNamespace(req_ids=[], generators={})

    def step(self, names: list[str], cut: tuple[str, ...] = ()) -> dict[str, list[float]]:
        """The numbers drawn in a step with these requests. cut: requests whose prompt is only partly computed."""
        self.input_batch.req_ids = names
        self.input_batch.generators = {n: self.requests[name].generator for n, name in enumerate(names)}
        remember_generators(self)
        drawn = {
            name: torch.empty(VOCABULARY).exponential_(generator=self.input_batch.generators[n]).tolist()
            for n, name in enumerate(names)
        }
        for n, name in enumerate(names):
            if name in cut:
                generator = self.input_batch.generators[n]
                generator.set_offset(generator.get_offset() - 4)
        return {name: numbers for name, numbers in drawn.items() if name not in cut}


def test_torch_has_no_offset_on_a_cpu() -> None:
    """Once torch supports offsets on a CPU, `wp1.serving.sampling` can be removed."""
    with pytest.raises(RuntimeError, match="does not use offset"):
        _seeded(1).get_offset()


def test_chunks_of_a_prompt_use_no_random_numbers() -> None:
    whole, cut = Runner(a=7), Runner(a=7, short=3)
    wanted = [whole.step(["a"])["a"] for _ in range(4)]
    for _ in range(3):
        cut.step(["short", "a"], cut=("a",))
    assert [cut.step(["short", "a"])["a"] for _ in range(4)] == wanted


def test_a_short_prompt_next_to_a_long_one_is_chunked_too() -> None:
    runner, alone = Runner(long=1, short=2), Runner(short=2)
    runner.step(["long", "short"], cut=("long", "short"))
    assert runner.step(["short"]) == alone.step(["short"])


def test_a_preempted_request_resumes_its_own_sequence() -> None:
    """Its tokens are recomputed in chunks, at another index of the batch."""
    wanted, runner = Runner(a=7), Runner(a=7, b=8)
    numbers = [wanted.step(["a"])["a"] for _ in range(4)]
    found = [runner.step(["a", "b"])["a"] for _ in range(2)]
    runner.step(["b"])
    runner.step(["b", "a"], cut=("a",))
    runner.step(["b", "a"], cut=("a",))
    found += [runner.step(["b", "a"])["a"] for _ in range(2)]
    assert found == numbers


def test_a_runner_without_generators_is_left_alone() -> None:
    remember_generators(SimpleNamespace())
    remember_generators(SimpleNamespace(input_batch=SimpleNamespace()))


def test_only_negative_offsets_are_accepted() -> None:
    with pytest.raises(ValueError, match="must be negative"):
        RewindingGenerator.of(_seeded(1)).set_offset(4)
