"""Parsing cell names: `1024-rate0.5` is 1,024 prompt tokens at 0.5 requests/s, `1024-conc4` four requests at a time,
`toolagent-speed2` a trace at twice its recorded speed.

`wp1.core.plan` makes the names. A name in another form is a cell without length and load.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_NAME = re.compile(r"(?P<prompt>.+)-(?P<kind>rate|conc|speed)(?P<load>\d+(\.\d+)?(e[+-]?\d+)?)")

# Longest length or load in a name; with more digits it is not a number of tokens or requests.
MOST_DIGITS = 12


@dataclass(frozen=True)
class CellName:
    """The parts of a cell's name."""

    name: str
    prompt: str  # the length in tokens, or the dataset
    rate: float  # requests/s; 0 for a closed loop
    concurrency: int | None  # of a closed loop
    speed: float | None = None  # of a trace: 2 is twice the recorded speed

    @property
    def prompt_len(self) -> int | None:
        """Tokens; None for a dataset's prompts."""
        return int(self.prompt) if self.prompt.isdecimal() and len(self.prompt) <= MOST_DIGITS else None

    @property
    def open_loop(self) -> bool:
        """Whether requests were sent on a schedule, rather than when others were answered."""
        return self.rate > 0 or self.speed is not None

    @property
    def load(self) -> str:
        """The load as text."""
        if self.speed is not None:
            return "as recorded" if self.speed == 1 else f"at {self.speed:g} times the recorded speed"
        if self.rate > 0:
            return f"{self.rate:g} requests/s"
        if self.concurrency is None:
            return ""
        return "one at a time" if self.concurrency == 1 else f"{self.concurrency} at a time"

    @property
    def words(self) -> str:
        """The cell as text, such as `1,024 tokens at 0.5 requests/s`."""
        prompt = self.prompt if self.prompt_len is None else f"{self.prompt_len:,} tokens"
        return f"{prompt} {'at ' if self.rate > 0 else ''}{self.load}".strip()


def parse(name: str) -> CellName:
    """Length and load from a cell's name."""
    found = _NAME.fullmatch(name)
    if found is None or (load := float(found["load"])) >= 10**MOST_DIGITS:
        return CellName(name, name, 0.0, None)
    if found["kind"] == "rate" and load > 0:
        return CellName(name, found["prompt"], load, None)
    if found["kind"] == "speed":
        return CellName(name, found["prompt"], 0.0, None, load)
    # A rate of zero means one at a time.
    return CellName(name, found["prompt"], 0.0, int(load) or 1)


def ordered(names: Iterable[str]) -> list[str]:
    """Each name once: by length, closed loops before open ones, then by load; others last, in the given order."""
    parsed = [parse(name) for name in dict.fromkeys(names)]
    parsed.sort(
        key=lambda c: (
            c.prompt_len is None,
            c.prompt_len or 0,
            "" if c.prompt_len else c.prompt,
            c.rate,
            c.concurrency or 0,
            c.speed or 0,
        )
    )
    return [cell.name for cell in parsed]
