"""Secrets in a configuration: used for the run, and written down nowhere.

A run's folder, its page in MLflow and its logs go to other people. What looks like a secret there, by its key or by its
form, is replaced by REDACTED: tokens, keys and passwords of engines and their environment, and of an address its user
part and what its query says.
"""

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "REDACTED"
# Keys of somebody else's making, among which secrets can be. wp1's own keys, as scheduler.first_token, have none.
FREE = ("backend.engine", "transfer.environment", "transfer.extra", "tags", "collectors")
_WORDS = (
    r"api[_-]?keys?|access[_-]?key(?:[_-]?id)?|secret(?:[_-]?(?:access[_-]?)?key)?|private[_-]?key|token|password|"
    r"passwd|passphrase|(?<=_)pass|pwd|credentials?|auth|authorization|bearer|cookie|signature"
)
# Not what a tokenizer calls its own.
_KEY = re.compile(rf"(?:(?<![A-Za-z])(?:{_WORDS}|key)|passw(?:or)?d|passphrase)$", re.IGNORECASE)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_OF_TOKENIZER = re.compile(
    r"(?:^|_)(?:bos|eos|pad|unk|sep|cls|mask|image|audio|video|begin|end|start|stop|first|next|last)_token$"
)
_ADDRESS = re.compile(r"(?P<scheme>\b[a-zA-Z][\w+.-]*://)(?P<user>[^/\s?#'\"]*@)?(?P<rest>[^\s'\"]*)")
_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|"
    r"AKIA[A-Z0-9]{16}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)
# In a message or a log: key=value, "key": "value" and what a request's header says.
_PAIR = re.compile(
    rf"(?P<key>\b[\w.-]*?(?:{_WORDS}))(?P<between>=[\"']?|[\"']\s*:\s*[\"']|:\s*(?:bearer|basic)\s+)"
    r"(?P<value>[^\s\"',;&}\]]+)",
    re.IGNORECASE,
)
# In an object on a command line, as {api_key: value}.
_ENTRY = re.compile(
    rf"(?P<key>\b[\w.-]*?(?:{_WORDS}))(?P<between>\s*:\s*)(?P<value>\"[^\"]*\"|'[^']*'|[^\s,}}]+)", re.IGNORECASE
)
# What this process has been given as secrets, so that they are found in any text that comes of them.
_known: set[str] = set()


def is_secret(key: str) -> bool:
    """Whether a key of somebody else's making names a secret."""
    # authToken is auth_token.
    last = _HUMP.sub("_", key.rpartition(".")[2])
    return _KEY.search(last) is not None and _OF_TOKENIZER.search(last.lower()) is None


def config(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as it may be written down; what was redacted is known to `text` from now on."""
    return {key: _value(str(key), value) for key, value in plain.items()}


def _value(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _value(f"{name}.{key}", part) for key, part in value.items()}
    if isinstance(value, list):
        return [_value(name, part) for part in value]
    # A password of digits is a number to YAML; hf_token=true is none.
    if value in (None, "") or isinstance(value, bool):
        return value
    if name.startswith(FREE) and is_secret(name):
        _known.add(str(value))
        return REDACTED
    return _formed(value) if isinstance(value, str) else value


def word(setting: str) -> str:
    """A word of a command line as it may be written down."""
    key, mark, value = setting.partition("=")
    bare = key.lstrip("+~")
    if mark and value and bare.startswith(FREE) and is_secret(bare):
        _known.add(value.strip("'\""))
        return f"{key}={REDACTED}"
    # In a value that is an object, {api_key: ...}, keys are words too.
    return _ENTRY.sub(_of_pair, _formed(setting)) if "{" in value else _formed(setting)


def words(settings: Any) -> list[str]:
    return [word(setting) for setting in settings]


def text(said: str) -> str:
    """A message or a line of a log as it may be shown and written down."""
    for secret in sorted(_known, key=len, reverse=True):
        # A few letters would be found in words that have nothing to do with it.
        if len(secret) >= 6:
            said = said.replace(secret, REDACTED)
    return _PAIR.sub(_of_pair, _formed(said))


def _formed(value: str) -> str:
    """Without what has the form of a secret: of addresses user parts and queries, and tokens of well-known makers."""
    return _FORMS.sub(REDACTED, _ADDRESS.sub(_of_address, value))


def _of_address(found: re.Match[str]) -> str:
    user = f"{REDACTED}@" if found["user"] else ""
    place, mark, query = found["rest"].partition("?")
    place, hash_, _ = place.partition("#")
    if mark and not found["scheme"].startswith("sqlite"):
        query = re.sub(r"=[^&#]*", f"={REDACTED}", query.partition("#")[0]) if "=" in query else REDACTED
    return f"{found['scheme']}{user}{place}{f'{hash_}{REDACTED}' if hash_ else ''}{mark}{query}"


def _of_pair(found: re.Match[str]) -> str:
    plain = found["value"].lower() in ("true", "false", "none", "null") or found["value"].startswith(REDACTED)
    plain = plain or not is_secret(found["key"])
    if not plain:
        _known.add(found["value"].strip("'\""))
    return found[0] if plain else f"{found['key']}{found['between']}{REDACTED}"
