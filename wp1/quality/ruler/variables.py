"""RULER's variable tracking (scripts/data/synthetic/variable_tracking.py)."""

import itertools
import random
import string
from typing import Any

from wp1.quality import lm_eval_files
from wp1.quality.fit_to_length import Draft
from wp1.quality.ruler.asked import Asked
from wp1.workload.seeds import derive_seed

TYPO = ("assgined", "assigned")  # in lm-eval's copy only
# Tokens that the worked example has at most: as many lines of noise as fit (14 by SmolLM2's tokenizer).
EXAMPLE = 500
HOPS = 4


class VariableTracking:
    """A chain of assignments among lines of noise, after a worked example; for one tokenizer."""

    def __init__(self, tokens: Any) -> None:
        self._tokens = tokens
        self._example_lines: int | None = None

    def asked(self, rng: random.Random, seed: int) -> Asked:
        """A prompt. seed: of the run; where the assignments of the worked example stand follows from it alone."""
        config = lm_eval_files.constant("ruler", "vt_utils", "CONFIG")["variable_tracking"]
        opening = config["answer_prefix"].replace(*TYPO)
        noise = str(lm_eval_files.constant("ruler", "vt_utils", "noise")).rstrip("\n")

        def asked(chain: list[str], lines: int, places: random.Random) -> str:
            context = "\n".join(_woven([noise] * lines, chain, places))
            return config["template"].format(context=context, query=chain[0].rpartition("= ")[2])

        def example(chain: list[str], lines: int) -> str:
            # Where the assignments stand is the same in all prompts of a seed; names and value are not.
            places = random.Random(derive_seed(seed, "ruler", "vt", "example", lines))
            answer = opening.format(num_v=HOPS + 1, query=chain[0].rpartition("= ")[2])
            return asked(chain, lines, places) + answer

        names, chain = _chain(rng, 3)
        if self._example_lines is None:
            # Counted without its answer, as variable_tracking.py counts it.
            lines = HOPS + 1
            while self._count(example(chain, lines + 1)) <= EXAMPLE:
                lines += 1
            self._example_lines = lines
        shown = f"{example(chain, self._example_lines)} {' '.join(names)}"
        names, chain = _chain(rng, 5)
        woven_seed = rng.getrandbits(32)
        each = self._count(f"{noise}\n")

        def make(units: int, noise: int) -> str:
            return f"{shown}\n\n{asked(chain, units, random.Random(woven_seed))}"

        answer = opening.format(num_v=HOPS + 1, query=chain[0].rpartition("= ")[2])
        draft = Draft(make, lambda units: each * units, HOPS + 1, padded=False)
        return Asked(draft, names, answer)

    def _count(self, text: str) -> int:
        return self._tokens.counts([text])[0]


def _chain(rng: random.Random, letters: int) -> tuple[list[str], list[str]]:
    names: list[str] = []
    while len(names) < HOPS + 1:
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name not in names:
            names.append(name)
    first = f"VAR {names[0]} = {rng.randint(10000, 99998)}"
    return names, [first, *(f"VAR {b} = VAR {a} " for a, b in itertools.pairwise(names))]


def _woven(lines: list[str], chain: list[str], rng: random.Random) -> list[str]:
    """The chain's assignments among lines, in order."""
    places = sorted(rng.sample(range(len(lines)), len(chain)))
    woven = list(lines)
    for shift, (place, assignment) in enumerate(zip(places, chain, strict=True)):
        woven.insert(place + shift, assignment)
    return woven
