"""What the files of a run's folder must look like, so far as they are read: a value of a wrong kind is named.

These tables say nothing of keys that are missing: some are newer than a folder, and `summary.Content` names the rest.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, get_args, get_type_hints

# Of arms, cells, engines and the like, which stand in pages and in names of files.
NAME = re.compile(r"[\w.][\w.+:-]{0,199}")
# Of whole numbers: nothing that is counted comes near.
MOST = 10**18
# A kind of value in words, and whether a value is one.
Kind = tuple[str, Callable[[Any], bool]]


def _is_moment(value: Any) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value) is not None
    except ValueError:
        return False


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < MOST if isinstance(value, int) else math.isfinite(value)


TEXT: Kind = ("a text", lambda value: isinstance(value, str))
# Of labels, versions and the like: words that Markdown makes nothing of.
_WORDS = re.compile(r"[\w][\w .,+:()-]{0,199}")
LABEL: Kind = ("plain words", lambda value: isinstance(value, str) and _WORDS.fullmatch(value) is not None)
NAMED: Kind = ("a name", lambda value: isinstance(value, str) and NAME.fullmatch(value) is not None)
NUMBER: Kind = ("a number", lambda value: isinstance(value, int | float) and _is_number(value))
WHOLE: Kind = ("a whole number", lambda value: isinstance(value, int) and _is_number(value))
TRUTH: Kind = ("true or false", lambda value: isinstance(value, bool))
MOMENT: Kind = ("a moment as 2026-01-31T12:00:00+00:00", _is_moment)
OBJECT: Kind = ("an object", lambda value: isinstance(value, dict))


OF_TYPE: Mapping[Any, Kind] = {str: TEXT, int: WHOLE, float: NUMBER, bool: TRUTH}


class Maybe:
    """What may be null."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape


class Each:
    """An object whose keys are free; all its values are of one shape."""

    def __init__(self, shape: Any, keys: Kind = TEXT) -> None:
        self.shape, self.keys = shape, keys


# A Kind, Maybe or Each; [shape] for a list of one shape; {key: shape} for an object with these keys, and {...: shape}
# for all its other keys.
_GPU = {"name": TEXT, "memory_gib": NUMBER}
_GIT = {"commit": NAMED, "branch": Maybe(TEXT), "dirty": TRUTH}
_SWEEP = {"name": NAMED, "job": WHOLE, "overrides": [TEXT]}
_ROPE = {"type": NAMED, "factor": NUMBER, "original_max_len": WHOLE, "max_len": WHOLE}
_ENGINE = {
    "name": NAMED,
    "devices": [LABEL],
    "startup_s": NUMBER,
    "settings": {"dtype": NAMED, "kv_blocks": Maybe(WHOLE), "block_size": Maybe(WHOLE)},
}
_POOL = {"arm": NAMED, "phases": [LABEL], "engines": [_ENGINE], "colocated": TRUTH}
_START = {"arm": NAMED, "repeats": [WHOLE], "seconds": NUMBER, "idle": [NUMBER], "from": NAMED}
_SKIPPED = {"cell": NAMED, "kind": LABEL, "reason": TEXT}
METADATA: Mapping[str, Any] = {
    # Whether the id and the experiment are names, `summary.read_metadata` asks.
    "run_id": TEXT, "status": LABEL, "reason": Maybe(TEXT), "started": MOMENT, "ended": Maybe(MOMENT),
    "experiment": TEXT, "question": TEXT, "config_hash": NAMED, "seed": WHOLE, "command": [TEXT],
    "sweep": Maybe(_SWEEP), "parent_run_id": Maybe(TEXT), "git": Maybe(_GIT),
    "hardware": {"gpus": [_GPU], "cpu": TEXT, "cores": WHOLE, "memory_gib": NUMBER, "driver": Maybe(TEXT)},
    "versions": Each(LABEL, LABEL), "tags": OBJECT, "labels": [LABEL],
    "model": {
        "name": TEXT, "digest": TEXT, "max_len": WHOLE, "random_weights": TRUTH, "rope": _ROPE,
        "kv_bytes_per_token": Maybe(NUMBER), "weight_bytes": Maybe(WHOLE), "shape": Maybe(OBJECT),
    },
    "transfer": Maybe({"name": NAMED, "why": TEXT}), "pools": [_POOL], "starts": [_START], "taken_over": [_START],
    "skipped": [_SKIPPED], "resumed": [OBJECT], "kv_held": [TEXT], "lines": Each(WHOLE), "boot": Maybe(TEXT),
    "boots": [{"boot": Maybe(TEXT), "moved_s": NUMBER}], "ropes": Each(_ROPE, NAMED),
    "peaks": Maybe({"flops": NUMBER, "bytes_per_s": NUMBER, "kind": TEXT, "source": TEXT}), "dataset": Maybe(OBJECT),
}  # fmt: skip
CONFIG: Mapping[Any, Any] = {
    "root": TEXT, "scheduler": Maybe({"mode": TEXT}), "arms": Maybe(Each({"mode": TEXT}, NAMED)), "model": OBJECT,
    "dataset": OBJECT, "collectors": Maybe(Each(OBJECT)), "seed": WHOLE, "tags": Maybe(OBJECT), "backend": OBJECT,
    "workload": {
        "prompts": TEXT, "output_len": WHOLE, "temperature": NUMBER, "concurrency": WHOLE, "request_rate": NUMBER,
        "num_requests": Maybe(WHOLE),
    },
    "slo": {"name": TEXT, ...: Maybe(NUMBER)},
    "tracking": {"enabled": TRUTH, "uri": TEXT, "timeout_s": NUMBER},
    "experiment": {
        "name": TEXT, "repeats": WHOLE, "prompt_lens": Maybe([WHOLE]), "request_rates": Maybe([NUMBER]),
        "concurrencies": Maybe([WHOLE]), "goodput_budget_s": Maybe(NUMBER),
    },
}  # fmt: skip
MANIFEST: Mapping[str, Any] = {
    "sweep": NAMED, "status": LABEL, "started": MOMENT, "ended": Maybe(MOMENT), "experiment": NAMED, "question": TEXT,
    "command": [TEXT], "overrides": [TEXT], "jobs": [[TEXT]], "root": TEXT,
    "tracking": {"enabled": TRUTH, "uri": TEXT, "timeout_s": NUMBER}, "parent_run_id": Maybe(TEXT),
}  # fmt: skip
JOB: Mapping[str, Any] = {"job": WHOLE, "overrides": [TEXT], "status": LABEL, "reason": TEXT}

EXAMPLE: Mapping[str, Any] = {
    "cell": NAMED, "example": TEXT, "task": TEXT, "category": Maybe(TEXT), "metric": TEXT, "length": Maybe(NUMBER),
    "depth": Maybe(NUMBER), "difficulty": Maybe(TEXT), "length_group": Maybe(TEXT), "label": TEXT,
    "prompt_tokens": WHOLE, "tokens_before": WHOLE, "all_classes": Maybe([TEXT]),
}  # fmt: skip
NOTE: Mapping[str, Any] = {
    "t": NUMBER, "arm": NAMED, "pool": NAMED, "engine": NAMED, "moment": NAMED, "cell": Maybe(NAMED),
    "repeat": Maybe(WHOLE), "note": OBJECT,
}  # fmt: skip


def of_fields(kind: type) -> Mapping[str, Any]:
    """The shape of a dataclass's fields, of those that are texts, numbers and truths."""
    found = {}
    for name, annotated in get_type_hints(kind).items():
        kinds = [part for part in (get_args(annotated) or (annotated,)) if part is not type(None)]
        shape = OF_TYPE.get(kinds[0]) if len(kinds) == 1 else None
        if shape is not None:
            # What stands in pages and keys.
            shape = NAMED if name in ("arm", "cell") else shape
            found[name] = Maybe(shape) if type(None) in get_args(annotated) else shape
    return found


def unlike(value: Any, shape: Any, at: str = "") -> str | None:
    """The first thing that is not of the shape, in words, as `seed is 'x', and not a whole number`; None if all is."""
    if isinstance(shape, Maybe):
        return None if value is None else unlike(value, shape.shape, at)
    words, fits = _kind_of(shape)
    if not fits(value):
        return f"{at or 'it'} is {_short(value)}, and not {words}"
    if isinstance(shape, Each):
        strange = next((key for key in value if not shape.keys[1](key)), None)
        if strange is not None:
            return f"{at} has the key {_short(strange)}, which is not {shape.keys[0]}"
    parts = (unlike(part, of_part, f"{at}{step}") for part, of_part, step in _parts(value, shape, at))
    return next((wrong for wrong in parts if wrong is not None), None)


def _kind_of(shape: Any) -> Kind:
    """What a value of this shape is, whatever it has in it."""
    if isinstance(shape, list):
        return "a list", lambda value: isinstance(value, list)
    return OBJECT if isinstance(shape, Each | Mapping) else shape


def _parts(value: Any, shape: Any, at: str) -> Iterator[tuple[Any, Any, str]]:
    """The parts of a value, with their shapes and the step to each."""
    if isinstance(shape, list):
        yield from ((part, shape[0], f"[{n}]") for n, part in enumerate(value))
    elif isinstance(shape, Each):
        yield from ((part, shape.shape, f".{key}") for key, part in value.items())
    elif isinstance(shape, Mapping):
        dot = "." if at else ""
        of_keys = ((key, shape.get(key, shape.get(...))) for key in value) if ... in shape else shape.items()
        yield from ((value[key], part, f"{dot}{key}") for key, part in of_keys if key in value)


def _short(value: Any) -> str:
    if isinstance(value, int) and abs(value) > 1 << 64:
        # Python refuses to write thousands of digits out.
        return "a number of very many digits"
    told = repr(value)
    return told if len(told) <= 60 else f"{told[:59]}…"
