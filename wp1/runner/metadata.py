"""The initial run_metadata.json: everything known before the model is prepared."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from wp1.core import redaction
from wp1.core.identity import HASH_RULE, PARENT_VARIABLE, git_state, versions
from wp1.machine import hardware


def _boot() -> str | None:
    """The id of this boot; each boot has its own monotonic clock. None if the system has no boot id."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def run_metadata(
    run_id: str, cfg: DictConfig, hash_: str, code: Path, sweep: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The part of run_metadata.json that is known before the model is prepared.

    sweep: for a job of a sweep, the sweep's `name`, the job's number as `job`, and its `overrides`.
    """
    return {
        "run_id": run_id,
        "status": "running",
        "reason": None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "ended": None,
        "experiment": cfg.experiment.name,
        "question": cfg.experiment.question,
        "config_hash": hash_,
        "hash_rule": HASH_RULE,
        "seed": cfg.seed,
        "command": ["wp1", *redaction.words(sys.argv[1:])],
        "sweep": sweep,
        "parent_run_id": os.environ.get(PARENT_VARIABLE) or None,
        "git": git_state(code),
        "hardware": hardware.describe(),
        "versions": versions(),
        "tags": redaction.config({"tags": dict(cfg.tags)})["tags"],
        "labels": [],
        "model": {},
        "transfer": None,
        "pools": [],
        "starts": [],
        "taken_over": [],
        "skipped": [],
        "resumed": [],
        "boot": _boot(),
        "kv_held": [],
    }
