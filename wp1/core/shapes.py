"""Types of the values in a run folder's files, as far as wp1 reads them, and a check that names a wrong value.

Missing keys are not checked here: some are newer than the folder, and `run_folder.Content` reports the others.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, get_args, get_type_hints

# Names of arms, cells, engines and the like, which appear in reports and file names.
NAME = re.compile(r"[\w.][\w.+:-]{0,199}")
# Upper bound on whole numbers: no real count is near it.
MOST = 10**18
# Description of a kind of value, and a function that checks whether a value is of that kind.
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
# Labels, versions and the like: text without Markdown syntax.
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
    """A value that may be null."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape


class Each:
    """An object with arbitrary keys, whose values all have one shape."""

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
# `colocated` is what earlier runs call `shared_gpu` (`wp1.core.run_folder.read_json`).
_POOL = {"arm": NAMED, "phases": [LABEL], "engines": [_ENGINE], "shared_gpu": TRUTH, "colocated": TRUTH}
_START = {"arm": NAMED, "repeats": [WHOLE], "seconds": NUMBER, "idle": [NUMBER], "from": NAMED}
_REPORTING = {
    "title": LABEL, "by_category": TRUTH, "groups": [LABEL], "depths": TRUTH, "threshold": Maybe(NUMBER),
}  # fmt: skip
_SKIPPED = {"cell": NAMED, "kind": LABEL, "reason": TEXT}
METADATA: Mapping[str, Any] = {
    # `run_folder.read_metadata` also checks that run_id and experiment are names.
    "run_id": TEXT, "status": LABEL, "reason": Maybe(TEXT), "started": MOMENT, "ended": Maybe(MOMENT),
    "experiment": TEXT, "question": TEXT, "config_hash": NAMED, "hash_rule": WHOLE, "seed": WHOLE, "command": [TEXT],
    "sweep": Maybe(_SWEEP), "parent_run_id": Maybe(TEXT), "git": Maybe(_GIT),
    "hardware": {"gpus": [_GPU], "cpu": TEXT, "cores": WHOLE, "memory_gib": NUMBER, "driver": Maybe(TEXT)},
    "versions": Each(LABEL, LABEL), "tags": OBJECT, "labels": [LABEL],
    "model": {
        "name": TEXT, "digest": TEXT, "max_len": WHOLE, "random_weights": TRUTH, "rope": _ROPE,
        "kv_bytes_per_token": Maybe(NUMBER), "weight_bytes": Maybe(WHOLE), "shape": Maybe(OBJECT),
    },
    "arms": [{"arm": NAMED, "scheduler": NAMED, "moves_kv": TRUTH}],
    "transfer": Maybe({"name": NAMED, "why": TEXT}), "pools": [_POOL], "starts": [_START], "taken_over": [_START],
    "skipped": [_SKIPPED], "resumed": [OBJECT], "kv_held": [TEXT], "lines": Each(WHOLE), "boot": Maybe(TEXT),
    "boots": [{"boot": Maybe(TEXT), "moved_s": NUMBER}], "ropes": Each(_ROPE, NAMED),
    "peaks": Maybe({"flops": NUMBER, "bytes_per_s": NUMBER, "kind": TEXT, "source": TEXT}),
    "dataset": Maybe({"reporting": Maybe(Each(_REPORTING, NAMED))}),
}  # fmt: skip
# Before schedulers had names they had a mode, agg or disagg.
_SCHEDULER = {"name": TEXT, "mode": TEXT}
CONFIG: Mapping[Any, Any] = {
    "root": TEXT, "scheduler": Maybe(_SCHEDULER), "arms": Maybe(Each(_SCHEDULER, NAMED)), "model": OBJECT,
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
    "prompt_tokens": WHOLE, "tokens_before": WHOLE, "all_classes": Maybe([TEXT]), "groups": [LABEL],
}  # fmt: skip
SCORE: Mapping[str, Any] = {"request_id": TEXT, "score": NUMBER, "odd": TRUTH}
NOTE: Mapping[str, Any] = {
    "t": NUMBER, "arm": NAMED, "pool": NAMED, "engine": NAMED, "moment": NAMED, "cell": Maybe(NAMED),
    "repeat": Maybe(WHOLE), "note": OBJECT,
}  # fmt: skip


def of_fields(kind: type) -> Mapping[str, Any]:
    """The shapes of a dataclass's fields that are strings, numbers or booleans."""
    shapes = {}
    for name, annotated in get_type_hints(kind).items():
        kinds = [part for part in (get_args(annotated) or (annotated,)) if part is not type(None)]
        shape = OF_TYPE.get(kinds[0]) if len(kinds) == 1 else None
        if shape is not None:
            # Arms and cells appear in reports and file names.
            shape = NAMED if name in ("arm", "cell") else shape
            shapes[name] = Maybe(shape) if type(None) in get_args(annotated) else shape
    return shapes


def unlike(value: Any, shape: Any, at: str = "") -> str | None:
    """The first wrong type in a value, such as `seed is 'x', and not a whole number`; None if all are right.

    at: path of the value within its file.
    """
    if isinstance(shape, Maybe):
        return None if value is None else unlike(value, shape.shape, at)
    description, fits = _kind_of(shape)
    if not fits(value):
        return f"{at or 'it'} is {_short(value)}, and not {description}"
    if isinstance(shape, Each):
        bad_key = next((key for key in value if not shape.keys[1](key)), None)
        if bad_key is not None:
            return f"{at} has the key {_short(bad_key)}, which is not {shape.keys[0]}"
    errors = (unlike(part, part_shape, f"{at}{step}") for part, part_shape, step in _parts(value, shape, at))
    return next((error for error in errors if error is not None), None)


def _kind_of(shape: Any) -> Kind:
    """The kind of a value with this shape, without its parts."""
    if isinstance(shape, list):
        return "a list", lambda value: isinstance(value, list)
    return OBJECT if isinstance(shape, Each | Mapping) else shape


def _parts(value: Any, shape: Any, at: str) -> Iterator[tuple[Any, Any, str]]:
    """The parts of a value, each with its shape and the step in its path."""
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
        # Python refuses to convert numbers with thousands of digits to text.
        return "a number with very many digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
