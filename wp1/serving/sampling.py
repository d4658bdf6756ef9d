"""Seeded sampling on a CPU: a random generator that vLLM can rewind.

vLLM samples a token for every request in a step. If the request's prompt is only partly computed, vLLM discards the
token and rewinds the request's generator by `set_offset(get_offset() - 4)`, so that no random numbers are used up.
Torch supports offsets only on GPUs. On a CPU both calls raise "CPU Generator does not use offset", and the engine dies.
This affects every seeded request whose prompt does not fit in the rest of a step (chunked prefill).
"""

from typing import Any

import torch


class RewindingGenerator(torch.Generator):
    """A CPU generator that returns to its state at `remember` if its offset is set back.

    The Mersenne Twister cannot be stepped backwards, so its state is saved: 5 KB, copied in about 1 µs.
    """

    _saved: torch.Tensor

    @classmethod
    def of(cls, generator: torch.Generator) -> "RewindingGenerator":
        """A generator that continues another one's sequence."""
        own = cls(device="cpu")
        own.set_state(generator.get_state())
        own.remember()
        return own

    def remember(self) -> None:
        """Saves the state at the beginning of a step: numbers drawn from here on may be undone."""
        self._saved = self.get_state()

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> "RewindingGenerator":
        """Undoes the draws of this step. vLLM needs nothing else, so other offsets raise ValueError."""
        if offset >= 0:
            raise ValueError(f"offset {offset} must be negative: a generator on a CPU can only be rewound")
        self.set_state(self._saved)
        return self


class SeededSampling:
    """Mixed in before vLLM's CPU worker: requests with a seed get generators that can be rewound."""

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        runner: Any = self.model_runner  # type: ignore[attr-defined]
        remember_generators(runner)
        return super().sample_tokens(*args, **kwargs)  # type: ignore[misc]


def remember_generators(runner: Any) -> None:
    """Saves the generator state of every request in the step that is about to be sampled.

    runner: vLLM's model runner. Its second version has no generators: it derives a token's random numbers from the seed
    and the token's position, so nothing is rewound.
    """
    batch: Any = getattr(runner, "input_batch", None)
    generators: dict[int, torch.Generator] = getattr(batch, "generators", {})
    for index, generator in generators.items():
        if isinstance(generator, RewindingGenerator):
            generator.remember()
        else:
            # Replaced in both places: a preempted request takes its generator from `requests` when it resumes.
            own = RewindingGenerator.of(generator)
            generators[index] = runner.requests[batch.req_ids[index]].generator = own
