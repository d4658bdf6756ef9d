"""Requests from the configuration: the same seed gives the same prompts on any machine."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from wp1.plan import Cell
from wp1.records import Request
from wp1.workload.dataset import Question

# Warm-up prompts are of their own kind, so that nothing they leave behind can serve a measured one.
WARMUP_QUESTION = "Count from one to ten in words."


def derive_seed(*parts: object) -> int:
    """A seed of 31 bits that depends on every part, and is the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def as_token_ids(text: str) -> list[int]:
    """The UTF-8 bytes of a text as token ids.

    For random weights, which have no tokenizer: the ids mean nothing to the model, but prompts keep distinct contents
    and lengths that grow with the text.
    """
    return list(text.encode())


def random_token_ids(length: int, vocab_size: int, seed: int) -> list[int]:
    """`length` ids, uniform over the vocabulary less its first 1,000, where models keep their special tokens."""
    low = min(1000, vocab_size // 2)
    return np.random.default_rng(seed).integers(low, vocab_size, length).tolist()


Encode = Callable[[str], list[int]]


def measured(
    cfg: Any, cell: Cell, repeat: int, questions: list[Question], vocab_size: int, encode: Encode
) -> list[Request]:
    """The requests of one repeat of a cell, in the order they are sent; every prompt is token ids.

    encode: from a question to the model's token ids. It is done here and not by the engine's front end, where it would
    hold up the other streams and count as waiting.

    A dataset's question has the same seed in every repeat, so that repeats can be compared token by token; random
    prompts differ in every repeat, so that no cache can answer them.
    """
    workload = cfg.workload
    if workload.prompts == "random":
        count = workload.num_requests
        return [
            request_of(
                cfg, cell, repeat, f"{n}",
                random_token_ids(cell.prompt_len or 0, vocab_size, derive_seed(cfg.seed, cell.name, repeat, n)),
                label=f"{cell.prompt_len} random tokens",
                seed=derive_seed(cfg.seed, cell.name, repeat, n, "sampling"),
            )
            for n in range(count)
        ]  # fmt: skip
    rows = questions if workload.num_requests is None else _cycled(questions, workload.num_requests)
    return [
        request_of(
            cfg, cell, repeat, f"{n}-{row.id}",
            encode(row.prompt),
            label=row.question,
            seed=derive_seed(cfg.seed, cell.name, n, "sampling"),
        )
        for n, row in enumerate(rows)
    ]  # fmt: skip


def warmup(cfg: Any, cell: Cell, repeat: int, vocab_size: int, encode: Encode, engines: int) -> list[Request]:
    """What is sent before a cell is measured, `num_warmup` for each engine: other prompts, as long as the cell's.

    repeat: the first that follows.
    """
    requests = []
    for n in range(cfg.workload.num_warmup * engines):
        seed = derive_seed(cfg.seed, cell.name, "warm-up", n)
        if cell.prompt_len is not None:
            prompt = random_token_ids(cell.prompt_len, vocab_size, seed)
        else:
            prompt = encode(f"{WARMUP_QUESTION} ({n})")
        request = request_of(cfg, cell, repeat, f"warm-up-{n}", prompt, label="warm-up", seed=seed)
        request.warmup = True
        request.max_tokens = min(request.max_tokens, 8)
        requests.append(request)
    return requests


def request_of(cfg: Any, cell: Cell, repeat: int, name: str, prompt: list[int], label: str, seed: int) -> Request:
    """One request of a cell with the configuration's sampling. name: tells it from the others of its repeat."""
    workload = cfg.workload
    return Request(
        request_id=f"{cell.arm}/{cell.name}/r{repeat}/{name}",
        arm=cell.arm,
        cell=cell.name,
        repeat=repeat,
        prompt=prompt,
        max_tokens=workload.output_len,
        seed=seed,
        label=label,
        temperature=workload.temperature,
        top_p=workload.top_p,
        ignore_eos=workload.ignore_eos,
        timeout_s=workload.timeout_s,
    )


def _cycled(questions: list[Question], count: int) -> list[Question]:
    return [questions[n % len(questions)] for n in range(count)]
