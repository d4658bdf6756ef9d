"""Decides which settings of a folder that may come from someone else are used, and which the user has to type.

`resume=` runs the command that a folder records, and `wp1.track` publishes to the store that it names. Anyone may have
written them. So only settings of wp1's own configuration are taken from a recorded command, and none that lets the
engines' processes load other code. A store is used only if it is this user's own.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from wp1.core.errors import ConfigError
from wp1.core.paths import CONF, at_home
from wp1.core.redaction import REDACTED
from wp1.core.redaction import word as shown_word

# Beginnings of Hydra's options, also abbreviated, that name configuration or state elsewhere.
OPTIONS = ("-c", "--c", "-e", "--e", "-p", "--p")
# Engine arguments that name or reach classes, files or code.
_REACHES_CODE = re.compile(
    r"trust|cls|class|plugin|processor|parser|loader|load_format|config|override|import|module|path|dir|env|"
    r"tokenizer|middleware|compil|template|hf_|rpc|lora|adapter",
    re.IGNORECASE,
)
# Groups whose values may hold parts, which name code, or settings of engines that reach it.
PARTS = ("backend", "scheduler", "transfer", "arms", "collectors", "workload", "dataset", "tracking")
_PLAIN_CHOICE = re.compile(r"[\w,.+\-\[\] '\"]*")


def check(folder: Path, kept: Sequence[str], typed: Sequence[str], root: str) -> None:
    """Raises ConfigError, naming it, if the folder's recorded command has a setting that the user must type.

    kept: arguments of the command that are used, without those whose keys are typed. root: folder of its store.
    """
    for word in kept:
        if (why := _doubt(word, folder, root)) is None:
            continue
        message = f"resume={folder}: its command has {shown_word(word)}, {why}"
        if "=" not in word:
            raise ConfigError(f"{message}. Start a new run")
        key = word.lstrip("+~").partition("=")[0]
        raise ConfigError(f"{message}. If you know who made the folder, type {key}=... beside resume=")


def _doubt(word: str, folder: Path, root: str) -> str | None:
    """Why an argument is not taken from a folder; None if it is."""
    if word.startswith(OPTIONS):
        return "an option that can name someone else's code"
    key, _, value = word.lstrip("+~").partition("=")
    if word.startswith("-") or ("=" not in word and not word.startswith("~")):
        return None
    if REDACTED in value:
        return "which stands for a secret that is not in the folder"
    if "${" in value:
        return "which would be resolved on this machine"
    if key == "tracking.uri" and not is_own_store(value.strip("'\""), folder, root):
        return "a store that is not known to be yours"
    return _of_code(key, value)


def _of_code(key: str, value: str) -> str | None:
    """Why a setting could run code that is not wp1's; None if it cannot."""
    if re.split(r"[./@:]", key)[0] == "hydra" or "/" in key or "@" in key:
        return "a setting of Hydra, which can name someone else's code"
    of_code = key == "dataset.benchmark" or (key in ("workload.prompts", "workload.arrivals") and "." in value)
    if of_code or "_target_" in key or "_target_" in value:
        return "which names code to run"
    if key.startswith(("transfer.environment", "transfer.extra")):
        return "which reaches the environment or the connector of the engines"
    argument = key.removeprefix("backend.engine.")
    if argument != key and ("{" in value or _REACHES_CODE.search(argument)):
        return "which can make engines load code"
    # A group's choice is a name; an object instead could contain anything.
    choice = "." not in key and key not in ("root", "seed") and not _PLAIN_CHOICE.fullmatch(value)
    of_group = key.partition(".")[0] in PARTS and "{" in value
    return "which is not a plain value" if choice or of_group else None


def is_own_store(uri: str, folder: Path, root: str) -> bool:
    """Whether a store that a folder names is this user's own, so that MLflow may send it data, including passwords.

    It is if `uri` is empty, if it is the user's default (MLFLOW_TRACKING_URI, or the one in conf/tracking/mlflow.yaml),
    or if it is a file in the project that contains the folder.
    """
    if not uri or uri in _defaults():
        return True
    if not uri.startswith("sqlite:///") or "?" in uri:
        return False
    database = Path(root) / uri.removeprefix("sqlite:///")
    return at_home(folder, root) and database.resolve().is_relative_to(Path(root).resolve())


def _defaults() -> set[str]:
    uris = {os.environ.get("MLFLOW_TRACKING_URI") or ""}
    path = CONF / "tracking" / "mlflow.yaml"
    if path.is_file():
        uris.add(str(yaml.safe_load(path.read_text(encoding="utf-8")).get("uri") or ""))
    return {uri for uri in uris if uri.startswith(("http://", "https://"))}


def check_links(folder: Path) -> None:
    """Raises ConfigError if a run's or sweep's folder contains a link: logs and engines would write through it."""
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            if path.is_symlink():
                raise ConfigError(
                    f"resume={folder}: {path} is a link, and links are not followed: replace it by its target"
                )
