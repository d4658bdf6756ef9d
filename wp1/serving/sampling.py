"""What vLLM's sampling with a seed needs on a CPU: a generator that can be turned back.

vLLM samples a token for every request of a step, also for one whose prompt is computed only in part, and throws that
token away. So that it costs nothing of the request's random numbers, the model runner turns the request's generator
back by `set_offset(get_offset() - 4)`. Torch has offsets on GPUs only; on a CPU both raise "CPU Generator does not use
offset", and the engine dies. Any seeded request meets this whose prompt does not fit into what is left of a step.
"""

from typing import Any

import torch


class RewindingGenerator(torch.Generator):
    """A generator on a CPU that goes back to where it was at `remember` if its offset is set back.

    A state of the Mersenne Twister cannot be counted back, so it is kept: 5 KB, copied in about 1 µs.
    """

    _kept: torch.Tensor

    @classmethod
    def of(cls, generator: torch.Generator) -> "RewindingGenerator":
        """A generator that goes on with the numbers of another one."""
        own = cls(device="cpu")
        own.set_state(generator.get_state())
        own.remember()
        return own

    def remember(self) -> None:
        """A step begins: what is drawn from here on may be turned back."""
        self._kept = self.get_state()

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> "RewindingGenerator":
        """Undoes what was drawn in this step. vLLM asks for nothing else, so other offsets are errors."""
        if offset >= 0:
            raise ValueError(f"a generator on a CPU is only ever turned back, and {offset} is not back")
        self.set_state(self._kept)
        return self


class SeededSampling:
    """Mixed in before vLLM's worker on a CPU: requests with a seed get generators that can be turned back."""

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        runner: Any = self.model_runner  # type: ignore[attr-defined]
        remember_generators(runner)
        return super().sample_tokens(*args, **kwargs)  # type: ignore[misc]


def remember_generators(runner: Any) -> None:
    """Keeps the state of the generator of every request of the step that is about to be sampled.

    runner: vLLM's model runner. Its second version has no generators: there a token's random numbers follow from the
    seed and the token's place, and nothing is turned back.
    """
    batch: Any = getattr(runner, "input_batch", None)
    generators: dict[int, torch.Generator] = getattr(batch, "generators", {})
    for place, generator in generators.items():
        if isinstance(generator, RewindingGenerator):
            generator.remember()
        else:
            # In both places: a request that is preempted takes its generator from the second when it comes back.
            own = RewindingGenerator.of(generator)
            generators[place] = runner.requests[batch.req_ids[place]].generator = own
