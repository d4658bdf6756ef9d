"""Redacts secrets in a configuration: they are used for the run but never written anywhere.

Other people see a run's folder, its MLflow page and its logs. Whatever looks like a secret there, by its key or its
form, is replaced by REDACTED: tokens, keys and passwords of engines and their environment, and the user part and query
values of URLs.
"""

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "REDACTED"
# Groups with keys that wp1 does not define, so there may be secrets. wp1's own keys (scheduler.first_token) have none.
FREE = ("backend.engine", "transfer.environment", "transfer.extra", "tags", "collectors")
_WORDS = (
    r"api[_-]?keys?|access[_-]?key(?:[_-]?id)?|secret(?:[_-]?(?:access[_-]?)?key)?|private[_-]?key|token|password|"
    r"passwd|passphrase|(?<=_)pass|pwd|credentials?|auth|authorization|bearer|cookie|signature"
)
# Does not match a tokenizer's own names (`_OF_TOKENIZER`).
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
# In a message or a log: key=value, "key": "value" and a request's authorization header.
_PAIR = re.compile(
    rf"(?P<key>\b[\w.-]*?(?:{_WORDS}))(?P<between>=[\"']?|[\"']\s*:\s*[\"']|:\s*(?:bearer|basic)\s+)"
    r"(?P<value>[^\s\"',;&}\]]+)",
    re.IGNORECASE,
)
# In an object on a command line, such as {api_key: value}.
_ENTRY = re.compile(
    rf"(?P<key>\b[\w.-]*?(?:{_WORDS}))(?P<between>\s*:\s*)(?P<value>\"[^\"]*\"|'[^']*'|[^\s,}}]+)", re.IGNORECASE
)
# Secrets that this process has seen, so that they are found in any later text.
_known: set[str] = set()


def is_secret(key: str) -> bool:
    """Whether a key that wp1 does not define names a secret."""
    # Treats authToken as auth_token.
    last = _HUMP.sub("_", key.rpartition(".")[2])
    return _KEY.search(last) is not None and _OF_TOKENIZER.search(last.lower()) is None


def config(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without its secrets; `text` redacts these too from now on."""
    return {key: _value(str(key), value) for key, value in plain.items()}


def _value(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _value(f"{name}.{key}", part) for key, part in value.items()}
    if isinstance(value, list):
        return [_value(name, part) for part in value]
    # Numbers count, as YAML reads a password of digits as a number. Booleans do not: hf_token=true is not a secret.
    if value in (None, "") or isinstance(value, bool):
        return value
    if name.startswith(FREE) and is_secret(name):
        _known.add(str(value))
        return REDACTED
    return _formed(value) if isinstance(value, str) else value


def word(setting: str) -> str:
    """An argument of a command line, without secrets."""
    key, mark, value = setting.partition("=")
    bare = key.lstrip("+~")
    if mark and value and bare.startswith(FREE) and is_secret(bare):
        _known.add(value.strip("'\""))
        return f"{key}={REDACTED}"
    # In a value that is an object, {api_key: ...}, keys are words too.
    return _ENTRY.sub(_of_pair, _formed(setting)) if "{" in value else _formed(setting)


def words(settings: Any) -> list[str]:
    return [word(setting) for setting in settings]


def text(message: str) -> str:
    """A message or a line of a log, without secrets."""
    for secret in sorted(_known, key=len, reverse=True):
        # A very short secret would also match parts of unrelated words.
        if len(secret) >= 6:
            message = message.replace(secret, REDACTED)
    return _PAIR.sub(_of_pair, _formed(message))


def _formed(value: str) -> str:
    """Redacts by form: user parts and queries of URLs, and tokens of well-known services."""
    return _FORMS.sub(REDACTED, _ADDRESS.sub(_of_address, value))


def _of_address(match: re.Match[str]) -> str:
    user = f"{REDACTED}@" if match["user"] else ""
    place, mark, query = match["rest"].partition("?")
    place, hash_, _ = place.partition("#")
    if mark and not match["scheme"].startswith("sqlite"):
        query = re.sub(r"=[^&#]*", f"={REDACTED}", query.partition("#")[0]) if "=" in query else REDACTED
    return f"{match['scheme']}{user}{place}{f'{hash_}{REDACTED}' if hash_ else ''}{mark}{query}"


def _of_pair(match: re.Match[str]) -> str:
    plain = match["value"].lower() in ("true", "false", "none", "null") or match["value"].startswith(REDACTED)
    plain = plain or not is_secret(match["key"])
    if not plain:
        _known.add(match["value"].strip("'\""))
    return match[0] if plain else f"{match['key']}{match['between']}{REDACTED}"
