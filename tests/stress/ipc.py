"""Handoffs of random sizes with random aborts over transfer=ipc's real protocol, in two processes, without vLLM.

    python -m tests.stress.ipc --handoffs 10000
    python -m tests.stress.ipc --device cuda --handoffs 1000 --verify
    python -m tests.stress.ipc --device cuda --handoffs 1000 --verify --apart

This process has the decode engine and plays wp1's scheduler, another has the prefill engine. What must hold: each block
that arrives is the prompt's, no block is lost, none is released twice, and only what was aborted ends without its KV.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.stress.engines import (
    BLOCK_TOKENS,
    DECODE,
    PREFILL,
    DecodeEngine,
    PrefillEngine,
    Request,
    blocks_for,
    first_token,
)
from wp1.serving.transfer import Pools
from wp1.serving.transfer.ipc import IpcTransfer

MOST_TOKENS = 640
# Handoffs in flight, up to which the next begins: an engine that has nothing else to do takes KV over in another way.
IN_FLIGHT = (1, 3, 24)
LEASE_S = 600.0
STUCK_S = 15.0
# What may happen to a handoff, and how often. `gone`: the client goes away; `dropped`: the prompt is done and nobody
# wants it, so that a decode engine is asked to fetch and drop it; `both`: first the one and then the other.
FATES = {"none": 60, "gone": 20, "dropped": 10, "both": 10}


@dataclass(slots=True)
class Handoff:
    """One handoff as wp1's scheduler would see it. early: a decode engine is asked before the prompt is computed."""

    number: int
    tokens: int
    early: bool
    wants_token: bool
    fate: str
    gives_up_at: float  # steps from now
    params: dict[str, Any] | None = None
    given_up: bool = False
    prefilling: bool = True
    decoding: int = 0  # requests of it in the decode engine

    @property
    def name(self) -> str:
        return f"{self.number}-stress"


class Client:
    """Begins handoffs, gives some up, and accounts for each."""

    def __init__(self, prefill: Connection, decode: DecodeEngine, handoffs: int, seed: int, room: int) -> None:
        """room: blocks of the decode engine; as with wp1's broker, what is begun has its place there."""
        self._prefill = prefill
        self._decode = decode
        self._left = handoffs
        self._chance = random.Random(seed)
        self._room = room
        self._transfer = IpcTransfer(
            name="ipc", pools=Pools(1, 1, None), timeout_s=60.0, overlap="on", at_once_mib=1.0, verify=False
        )
        self._open: dict[int, Handoff] = {}
        self._step = 0
        self._in_flight = IN_FLIGHT[-1]
        self.outcomes: Counter[str] = Counter()

    def __str__(self) -> str:
        return f"{dict(self.outcomes)}, {self._left} not begun, in flight {list(self._open.values())}"

    @property
    def busy(self) -> bool:
        return bool(self._left or self._open)

    def step(self) -> None:
        self._step += 1
        while self._left and len(self._open) < self._in_flight and self._room >= blocks_for(MOST_TOKENS + 1):
            self._begin(self._left)
            self._left -= 1
            if self._chance.random() < 0.05:
                self._in_flight = self._chance.choice(IN_FLIGHT)
        for handoff in list(self._open.values()):
            if not handoff.given_up and self._step >= handoff.gives_up_at:
                self._give_up(handoff)
                self._close_if_over(handoff)
        while self._prefill.poll():
            number, params = self._prefill.recv()
            handoff = self._open[number]
            handoff.prefilling = False
            if params is not None:
                self._prefilled(handoff, params)
            self._close_if_over(handoff)

    def decoded(self, request: Request, why: str | None) -> None:
        """A request of the decode engine has ended by itself."""
        handoff = self._open[request.number]
        handoff.decoding -= 1
        if request.request_id == handoff.name and not handoff.given_up:
            assert why is None, f"{handoff} failed: {why}"
        self._close_if_over(handoff)

    def _begin(self, number: int) -> None:
        [fate] = self._chance.choices(list(FATES), list(FATES.values()))
        tokens = self._chance.randint(1, MOST_TOKENS)
        if self._chance.random() < 0.2:
            tokens = -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS
        early, wants_token = self._chance.random() < 0.7, self._chance.random() < 0.5
        gives_up = self._step + self._chance.randint(0, 40) if fate in ("gone", "both") else float("inf")
        handoff = Handoff(number, tokens, early, wants_token, fate, gives_up)
        self._open[number] = handoff
        self._room -= blocks_for(tokens + 1)
        params = self._transfer.prefill_params(handoff.name, DECODE if early else None)
        self._prefill.send(("add", number, tokens, params))
        if early:
            self._ask(handoff, self._transfer.early_params(handoff.name, PREFILL, tokens, wants_token))

    def _ask(self, handoff: Handoff, params: dict[str, Any], suffix: str = "") -> None:
        tokens = [5] * handoff.tokens
        if not suffix and handoff.wants_token:
            tokens.append(0 if handoff.early else first_token(handoff.number))
        output_len = 1 if suffix else self._chance.randint(1, 12)
        request = Request(handoff.name + suffix, params, tokens, handoff.number, output_len)
        self._decode.add(request)
        handoff.decoding += 1

    def _prefilled(self, handoff: Handoff, params: dict[str, Any]) -> None:
        fetch = self._transfer.decode_params(params, handoff.tokens)
        if handoff.early and not handoff.given_up and handoff.fate == "dropped":
            # As where the prefill engine's token is the last one.
            self._give_up(handoff)
        if not handoff.early and (handoff.given_up or handoff.fate == "dropped"):
            handoff.given_up = True
            self._ask(handoff, fetch, "-drop")
        elif not handoff.early:
            self._ask(handoff, fetch)
        elif handoff.given_up and handoff.fate == "both":
            self._ask(handoff, fetch, "-drop")

    def _give_up(self, handoff: Handoff) -> None:
        handoff.given_up = True
        if self._decode.abort(handoff.name):
            handoff.decoding -= 1
        # What has ended meanwhile says so all the same.
        self._prefill.send(("abort", handoff.number))

    def _close_if_over(self, handoff: Handoff) -> None:
        if not handoff.prefilling and not handoff.decoding:
            del self._open[handoff.number]
            self._room += blocks_for(handoff.tokens + 1)
            self.outcomes["given up" if handoff.given_up else "well"] += 1


def prefill_process(pipe: Connection, folder: str, settings: dict[str, Any]) -> None:
    """The other process: the prefill engine, for what comes through the pipe."""
    engine = PrefillEngine(Path(folder), lease_s=LEASE_S, **settings)
    pipe.send("ready")
    while True:
        while pipe.poll(0 if engine.busy else None):
            kind, *rest = pipe.recv()
            if kind == "stop":
                # Releases may be on their way; what is not let go of by then waits for its lease.
                deadline = time.monotonic() + 10
                while engine.busy and time.monotonic() < deadline:
                    engine.step()
                pipe.send((engine.given, engine.preemptions))
                return
            if kind == "say":
                print(engine, file=sys.stderr, flush=True)
            elif kind == "add":
                number, tokens, params = rest
                engine.add(Request(f"{number}-stress", params, [5] * tokens, number))
            elif engine.abort(f"{rest[0]}-stress"):
                pipe.send((rest[0], None))
        for request, params in engine.step():
            pipe.send((request.number, params))


def stress(
    handoffs: int,
    *,
    device: str = "cpu",
    ranks: int = 1,
    num_blocks: int = 400,
    seed: int = 0,
    verify: bool = False,
    apart: bool = False,
    cached: float = 0.1,
    limit_s: float = 600.0,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """What came of so many handoffs. Raises AssertionError where something is not as it must be.

    ranks: workers of each engine, all in its process; num_blocks: of each engine; apart: on GPUs 0 and 1, which each
    process sees as an engine of wp1 does; cached: see `DecodeEngine`.
    """
    begin = said = time.monotonic()
    before = 0
    settings = {"ranks": ranks, "device": device, "num_blocks": num_blocks, "seed": seed}
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory(prefix="kv-") as folder:
        child = context.Process(target=prefill_process, args=(theirs, folder, settings), daemon=True)
        # A process reads it when it first uses a GPU, which this one has not done yet.
        if apart:
            os.environ["CUDA_VISIBLE_DEVICES"] = "0"
        child.start()
        if apart:
            os.environ["CUDA_VISIBLE_DEVICES"] = "1,0"
        theirs.close()
        try:
            assert ours.recv() == "ready"
            decode = DecodeEngine(Path(folder), verify=verify, cached=cached, **settings)
            client = Client(ours, decode, handoffs, seed, num_blocks - 1)
            moved = time.monotonic()  # on a busy machine the start alone takes longer than STUCK_S
            while client.busy or decode.busy:
                if time.monotonic() - moved > STUCK_S:
                    ours.send(("say",))
                    time.sleep(1)
                    raise AssertionError(f"nothing ended for {STUCK_S:g} s: {client}; {decode}")
                assert time.monotonic() - begin < limit_s, f"not over after {limit_s:g} s: {client}"
                client.step()
                for request, why in decode.step():
                    client.decoded(request, why)
                if (ended := client.outcomes.total()) != before:
                    moved, before = time.monotonic(), ended
                if time.monotonic() - said > 5:
                    said = time.monotonic()
                    say(f"{sum(client.outcomes[word] for word in ('well', 'given up'))} of {handoffs}")
            ours.send(("stop",))
            given, preemptions = ours.recv()
        finally:
            child.kill()
            child.join()
        decode.stop()
    assert given == 0, f"{given} blocks are lost in the prefill engine"
    assert decode.given == 0, f"{decode.given} blocks are lost in the decode engine"
    assert decode.leftovers() == 0, f"{decode.leftovers()} handoffs are still remembered"
    outcomes = client.outcomes
    assert outcomes["well"] + outcomes["given up"] == handoffs
    return {
        "device": device,
        **({"GPUs": 2} if apart else {}),
        "handoffs": handoffs,
        **outcomes,
        **decode.moved,
        "preempted in prefill": preemptions,
        "preempted in decode": decode.preemptions,
        "seconds": round(time.monotonic() - begin, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--handoffs", type=int, default=10_000)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--ranks", type=int, default=1, help="workers of each engine, all in its process")
    parser.add_argument("--blocks", type=int, default=400, help="of each engine; the fewer, the more is preempted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verify", action="store_true", help="checksums on both sides, too")
    parser.add_argument("--apart", action="store_true", help="with --device cuda: from GPU 0 to GPU 1")
    parser.add_argument("--limit-s", type=float, default=600.0)
    asked = parser.parse_args()
    if asked.apart and asked.device != "cuda":
        parser.error("--apart is for --device cuda")
    try:
        result = stress(
            asked.handoffs,
            device=asked.device,
            ranks=asked.ranks,
            num_blocks=asked.blocks,
            seed=asked.seed,
            verify=asked.verify,
            apart=asked.apart,
            limit_s=asked.limit_s,
            say=lambda words: print(words, file=sys.stderr, flush=True),
        )
    except AssertionError as error:
        print(f"transfer=ipc failed: {error}", file=sys.stderr)
        raise
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
