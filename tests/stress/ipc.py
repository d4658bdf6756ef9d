"""Random handoffs with random aborts over transfer=ipc's real protocol, in two processes, without vLLM.

    python -m tests.stress.ipc --handoffs 10000
    python -m tests.stress.ipc --device cuda --handoffs 1000 --verify
    python -m tests.stress.ipc --device cuda --handoffs 1000 --verify --apart

This process runs the decode engine and acts as wp1's scheduler; another process runs the prefill engine. Checked are
that each block that arrives belongs to its prompt, that no block is lost or released twice, and that only aborted
handoffs end without their KV.
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
# Limits on handoffs in flight, chosen at random. They include 1 because an idle engine loads KV in another way.
IN_FLIGHT = (1, 3, 24)
LEASE_S = 600.0
STUCK_S = 15.0
# What happens to a handoff, with weights. `gone`: the client disconnects; `dropped`: the finished prompt is not wanted,
# so a decode engine is asked to fetch and drop its KV; `both`: first `gone`, then `dropped`.
FATES = {"none": 60, "gone": 20, "dropped": 10, "both": 10}


@dataclass(slots=True)
class Handoff:
    """One handoff as wp1's scheduler sees it. early: the decode engine gets the request before prefill ends."""

    number: int
    tokens: int
    early: bool
    wants_token: bool
    fate: str
    gives_up_at: float  # step number, or infinity
    params: dict[str, Any] | None = None
    given_up: bool = False
    prefilling: bool = True
    decoding: int = 0  # its requests in the decode engine

    @property
    def name(self) -> str:
        return f"{self.number}-stress"


class Client:
    """Begins handoffs, abandons some, and accounts for each."""

    def __init__(self, prefill: Connection, decode: DecodeEngine, handoffs: int, seed: int, room: int) -> None:
        """room: blocks of the decode engine. As in wp1's broker, a handoff begins only if they have room for it."""
        self._prefill = prefill
        self._decode = decode
        self._not_begun = handoffs
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
        return f"{dict(self.outcomes)}, {self._not_begun} not begun, in flight {list(self._open.values())}"

    @property
    def busy(self) -> bool:
        return bool(self._not_begun or self._open)

    def step(self) -> None:
        self._step += 1
        while self._not_begun and len(self._open) < self._in_flight and self._room >= blocks_for(MOST_TOKENS + 1):
            self._begin(self._not_begun)
            self._not_begun -= 1
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
        """Called when a request of the decode engine ends without an abort."""
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
            # As if the prefill engine's token were the last one.
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
        # If the prompt has ended meanwhile, its result still arrives.
        self._prefill.send(("abort", handoff.number))

    def _close_if_over(self, handoff: Handoff) -> None:
        if not handoff.prefilling and not handoff.decoding:
            del self._open[handoff.number]
            self._room += blocks_for(handoff.tokens + 1)
            self.outcomes["given up" if handoff.given_up else "well"] += 1


def prefill_process(pipe: Connection, folder: str, settings: dict[str, Any]) -> None:
    """Main function of the other process: runs the prefill engine on commands from the pipe."""
    engine = PrefillEngine(Path(folder), lease_s=LEASE_S, **settings)
    pipe.send("ready")
    while True:
        while pipe.poll(0 if engine.busy else None):
            kind, *rest = pipe.recv()
            if kind == "stop":
                # Releases may be on their way. Blocks that are not released in time would wait for their lease.
                deadline = time.monotonic() + 10
                while engine.busy and time.monotonic() < deadline:
                    engine.step()
                pipe.send((engine.in_use, engine.preemptions))
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
    """Runs `handoffs` handoffs and returns counts of their outcomes. Raises AssertionError if a check fails.

    ranks: workers per engine, all in its process; num_blocks: blocks per engine; apart: use GPUs 0 and 1, visible to
    each process as they are to wp1's engines; cached: see `DecodeEngine`.
    """
    begin = last_message = time.monotonic()
    before = 0
    settings = {"ranks": ranks, "device": device, "num_blocks": num_blocks, "seed": seed}
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory(prefix="kv-") as folder:
        child = context.Process(target=prefill_process, args=(theirs, folder, settings), daemon=True)
        # CUDA reads the variable when a process first uses a GPU, which this one has not done yet.
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
            moved = time.monotonic()  # on a busy machine the start alone may take longer than STUCK_S
            while client.busy or decode.busy:
                if time.monotonic() - moved > STUCK_S:
                    ours.send(("say",))
                    time.sleep(1)
                    raise AssertionError(f"nothing ended for {STUCK_S:g} s: {client}; {decode}")
                assert time.monotonic() - begin < limit_s, f"not done after {limit_s:g} s: {client}"
                client.step()
                for request, why in decode.step():
                    client.decoded(request, why)
                if (ended := client.outcomes.total()) != before:
                    moved, before = time.monotonic(), ended
                if time.monotonic() - last_message > 5:
                    last_message = time.monotonic()
                    say(f"{sum(client.outcomes[word] for word in ('well', 'given up'))} of {handoffs}")
            ours.send(("stop",))
            in_use, preemptions = ours.recv()
        finally:
            child.kill()
            child.join()
        decode.stop()
    assert in_use == 0, f"the prefill engine lost {in_use} blocks"
    assert decode.in_use == 0, f"the decode engine lost {decode.in_use} blocks"
    assert decode.leftovers() == 0, f"{decode.leftovers()} entries for ended handoffs are left"
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
    parser.add_argument("--ranks", type=int, default=1, help="workers per engine, all in its process")
    parser.add_argument(
        "--blocks", type=int, default=400, help="blocks per engine; fewer blocks cause more preemptions"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verify", action="store_true", help="also compare checksums on both sides")
    parser.add_argument("--apart", action="store_true", help="with --device cuda: transfer from GPU 0 to GPU 1")
    parser.add_argument("--limit-s", type=float, default=600.0)
    args = parser.parse_args()
    if args.apart and args.device != "cuda":
        parser.error("--apart needs --device cuda")
    try:
        result = stress(
            args.handoffs,
            device=args.device,
            ranks=args.ranks,
            num_blocks=args.blocks,
            seed=args.seed,
            verify=args.verify,
            apart=args.apart,
            limit_s=args.limit_s,
            say=lambda message: print(message, file=sys.stderr, flush=True),
        )
    except AssertionError as error:
        print(f"transfer=ipc failed: {error}", file=sys.stderr)
        raise
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
