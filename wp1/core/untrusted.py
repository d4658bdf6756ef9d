"""What is taken from a folder that may be somebody else's, and what its user has to say himself.

`resume=` runs the command that a folder records, and `wp1.track` publishes to the store that it names. Both can be
written by anybody. So of a recorded command only settings of wp1's own configuration are taken, and of these none that
lets the engines' processes load other code; and a store only if it is this user's own.
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

# How options of Hydra's begin, also shortened, that name configuration or state which lies elsewhere.
OPTIONS = ("-c", "--c", "-e", "--e", "-p", "--p")
# Arguments of engines that name classes, files or code, or reach them.
_REACHES_CODE = re.compile(
    r"trust|cls|class|plugin|processor|parser|loader|load_format|config|override|import|module|path|dir|env|"
    r"tokenizer|middleware|compil|template|hf_|rpc|lora|adapter",
    re.IGNORECASE,
)
# Groups whose values may hold parts, which name code, or settings of engines that reach it.
PARTS = ("backend", "scheduler", "transfer", "arms", "collectors", "workload", "dataset", "tracking")
_PLAIN_CHOICE = re.compile(r"[\w,.+\-\[\] '\"]*")


def check(folder: Path, kept: Sequence[str], typed: Sequence[str], root: str) -> None:
    """Raises ConfigError that names what of a folder's recorded command has to be typed beside resume= to be used.

    kept: the words of the command that are to be used, less those whose keys are typed. root: where its store lies.
    """
    for word in kept:
        if (why := _doubt(word, folder, root)) is None:
            continue
        said = f"resume={folder}: its command has {shown_word(word)}, {why}"
        if "=" not in word:
            raise ConfigError(f"{said}. Start a new run")
        key = word.lstrip("+~").partition("=")[0]
        raise ConfigError(f"{said}. If you know who made the folder, type {key}=... beside resume=")


def _doubt(word: str, folder: Path, root: str) -> str | None:
    """Why a word is not taken from a folder; None if it is."""
    if word.startswith(OPTIONS):
        return "an option that can name code of somebody else's"
    key, _, value = word.lstrip("+~").partition("=")
    if word.startswith("-") or ("=" not in word and not word.startswith("~")):
        return None
    if REDACTED in value:
        return "which stands for a secret that is not in the folder"
    if "${" in value:
        return "which is looked up on this machine"
    if key == "tracking.uri" and not is_own_store(value.strip("'\""), folder, root):
        return "a store that is not known to be yours"
    return _of_code(key, value)


def _of_code(key: str, value: str) -> str | None:
    """Why a setting could have other code run than wp1's; None if it cannot."""
    if re.split(r"[./@:]", key)[0] == "hydra" or "/" in key or "@" in key:
        return "a setting of Hydra's, which can name code of somebody else's"
    if "_target_" in key or "_target_" in value:
        return "which names code to run"
    if key.startswith(("transfer.environment", "transfer.extra")):
        return "which reaches the environment or the connector of the engines"
    argument = key.removeprefix("backend.engine.")
    if argument != key and ("{" in value or _REACHES_CODE.search(argument)):
        return "which can have engines load code"
    # A group's choice is a name; an object in its place could say anything.
    choice = "." not in key and key not in ("root", "seed") and not _PLAIN_CHOICE.fullmatch(value)
    of_group = key.partition(".")[0] in PARTS and "{" in value
    return "which is no plain choice" if choice or of_group else None


def is_own_store(uri: str, folder: Path, root: str) -> bool:
    """Whether a store that a folder names is this user's own, so that what MLflow sends there, passwords too, may go.

    It is if it is the one that this user has set as default: MLFLOW_TRACKING_URI, or what conf/tracking/mlflow.yaml
    says; or if it is a file in the project that the folder lies in, or none.
    """
    if not uri or uri in _defaults():
        return True
    if not uri.startswith("sqlite:///") or "?" in uri:
        return False
    database = Path(root) / uri.removeprefix("sqlite:///")
    return at_home(folder, root) and database.resolve().is_relative_to(Path(root).resolve())


def _defaults() -> set[str]:
    found = {os.environ.get("MLFLOW_TRACKING_URI") or ""}
    path = CONF / "tracking" / "mlflow.yaml"
    if path.is_file():
        found.add(str(yaml.safe_load(path.read_text(encoding="utf-8")).get("uri") or ""))
    return {uri for uri in found if uri.startswith(("http://", "https://"))}


def check_links(folder: Path) -> None:
    """Raises ConfigError where a link lies in a run's or sweep's folder: logs and engines would write through it."""
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place, name)
            if path.is_symlink():
                raise ConfigError(
                    f"resume={folder}: {path} is a link, and none is followed: put there what it leads to"
                )
