"""Parts of a configuration that define their own settings: schedulers, connectors, engines, collectors and so on.

A part is the class or function that `_target_` names by its full dotted name, in any package: a configuration is code.
wp1 passes some of its parameters (`Kind.given`); the others are its settings, with their types and defaults. A class
whose `__init__` has `**more` also accepts its parent's settings; if no parent defines any, it accepts any key.

    class ShortestFirst(AggregatedScheduler):
        def __init__(self, *, at_once: Annotated[int, Within(1)] = 4, order: Literal["up", "down"] = "up", **more): ...

A class may instead define its settings in a dataclass, as its attribute `Settings`; it is then called with one such
object and the parameters from wp1. Types are those of OmegaConf; `Literal` and `Within` restrict the values. The part
itself must check anything else: it is made before an engine starts and may raise ConfigError.

A run's folder, however, is data, and names in it are restricted: see `own`.
"""

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wp1.core.errors import ConfigError
from wp1.core.outside import named

# Upper bound for every numeric setting: engines keep 32-bit seeds, and no other setting needs more.
MOST = 2**31 - 1
NOTHING = inspect.Parameter.empty


@dataclass(frozen=True)
class Kind:
    """What the parts of one group have in common.

    word: their name in messages, such as "scheduler". protocol: a class whose public methods and annotated attributes
    every part must have.
    given: parameters that wp1 passes. beside: keys of the group that wp1 reads itself, with their types.
    """

    word: str
    protocol: type
    given: tuple[str, ...] = ()
    beside: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Within:
    """The bounds of a numeric setting, as in `Annotated[int, Within(1)]`."""

    least: float
    most: float = MOST


@dataclass(frozen=True)
class Setting:
    """One setting of a part. default: NOTHING if the setting is required."""

    name: str
    type: Any
    default: Any


def loaded(key: str, name: Any) -> Callable[..., Any]:
    """The class or function with this dotted name. Raises ConfigError, naming the key, if it cannot be imported."""
    if name is None or name == "???":
        raise ConfigError(f"{key} has no value: set {key}=...")
    found = named(f"{key}={name}", name, "is not the name of a class: write it as package.module.Class")
    if found is None:
        module, _, attribute = name.rpartition(".")
        raise ConfigError(f"{key}={name} cannot be imported ({module} has no {attribute}): correct the name")
    if not callable(found):
        raise ConfigError(f"{key}={name} is neither a class nor a function")
    return found


def part_of(key: str, name: Any, kind: Kind) -> Callable[..., Any]:
    """`loaded` for a part of this kind. Also raises ConfigError if it lacks a method that such parts must have.

    key: the key of the part, such as "scheduler" or "arms.agg".
    """
    found = loaded(f"{key}._target_", name)
    made = found if isinstance(found, type) else _returned(found)
    lacks = sorted(
        method
        for method, one in inspect.getmembers(kind.protocol)
        if not method.startswith("_") and callable(one) and not callable(getattr(made, method, None))
    )
    if lacks:
        raise ConfigError(f"{key}._target_={name} is not a {kind.word}: it has no {lacks[0]}()")
    return found


def _returned(function: Callable[..., Any]) -> Any:
    try:
        return get_type_hints(function).get("return")
    except (NameError, TypeError):
        return None


def settings_of(key: str, part: Callable[..., Any], kind: Kind) -> dict[str, Setting]:
    """The settings of a part, by name. Raises ConfigError for a type that cannot be resolved."""
    settings = {}
    for name, (parameter, function) in _parameters(_settings_holder(part)).items():
        if name not in kind.given:
            settings[name] = Setting(name, _annotation(key, parameter, function), parameter.default)
    return settings | {name: Setting(name, of_type, None) for name, of_type in kind.beside.items()}


def _settings_holder(part: Callable[..., Any]) -> Callable[..., Any]:
    """The callable whose signature defines a part's settings: its dataclass `Settings`, or the part itself."""
    held = getattr(part, "Settings", None)
    return held if isinstance(held, type) and dataclasses.is_dataclass(held) else part


def _parameters(part: Callable[..., Any]) -> dict[str, tuple[inspect.Parameter, Any]]:
    """The parameters that can be passed by name, each with its function; a subclass overrides its parents."""
    found: dict[str, tuple[inspect.Parameter, Any]] = {}
    for function, own in _signatures(part):
        for parameter in own:
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                found.setdefault(parameter.name, (parameter, function))
    return found


def _signatures(part: Callable[..., Any]) -> list[tuple[Any, list[inspect.Parameter]]]:
    """The functions that define a part's parameters: its own and, as long as one has `**more`, the next parent's."""
    functions: list[Any] = [part]
    if isinstance(part, type):
        functions = [vars(one)["__init__"] for one in part.__mro__ if "__init__" in vars(one) and one is not object]
    found = []
    for function in functions:
        own = list(inspect.signature(function).parameters.values())[1 if isinstance(part, type) else 0 :]
        found.append((function, own))
        if not _has_more(own):
            break
    return found


def _has_more(parameters: list[inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _takes_any(part: Callable[..., Any]) -> bool:
    signatures = _signatures(part)
    return bool(signatures) and _has_more(signatures[-1][1])


def _annotation(key: str, parameter: inspect.Parameter, function: Any) -> Any:
    if parameter.annotation is NOTHING:
        return Any
    holder = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        return get_type_hints(holder, getattr(function, "__globals__", {}), include_extras=True)[parameter.name]
    except (NameError, TypeError, SyntaxError) as error:
        raise ConfigError(
            f"{key}.{parameter.name} has the unknown type {parameter.annotation}: import the type in its module"
        ) from error


def typed(key: str, node: Any, kind: Kind, message: Callable[[str, list[str]], str] | None = None) -> dict[str, Any]:
    """A part's complete configuration: `_target_` and all its settings, converted to their types.

    key: the part's key, such as "scheduler" or "arms.agg". message: makes the message for an unknown key; None:
    `unknown_key`. Raises ConfigError, on one line that names the key, if `_target_` is not such a part, or a setting is
    unknown, missing or of the wrong type.
    """
    given = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(given, dict):
        raise ConfigError(f"{key}={given} is not a {kind.word}: it must be an object with a _target_")
    part = part_of(key, given.get("_target_"), kind)
    known = settings_of(key, part, kind)
    strange = sorted(str(name) for name in given if name != "_target_" and name not in known)
    if not _takes_any(_settings_holder(part)):
        for name in strange[:1]:
            if not known:
                raise ConfigError(f"unknown key {key}.{name}: this {kind.word} has no settings")
            raise ConfigError((message or unknown_key)(f"{key}.{name}", [f"{key}.{one}" for one in sorted(known)]))
    complete = {"_target_": given["_target_"], **{name: given[name] for name in strange}}
    for name, setting in known.items():
        value = given.get(name, setting.default)
        if value is NOTHING or value == "???":
            raise ConfigError(f"{key}.{name} has no value: set {key}.{name}=...")
        if name in given or is_plain(value):
            complete[name] = converted(f"{key}.{name}", value, setting.type)
    return complete


def is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | list | tuple | dict)


def converted(key: str, value: Any, to: Any) -> Any:
    """A value converted to a type: plain values, lists and dicts. Raises ConfigError, naming the key, if it cannot be.

    to: a type of OmegaConf's, Literal, or either in Annotated with `Within`. For any other type, the value is returned
    unchanged.
    """
    rules: tuple[Any, ...] = ()
    if get_origin(to) is Annotated:
        to, *rest = get_args(to)
        rules = tuple(rest)
    options = get_args(to) if get_origin(to) in (Union, types.UnionType) else (to,)
    if type(None) in options:
        if value is None:
            return None
        options = tuple(one for one in options if one is not type(None))
    to = options[0] if len(options) == 1 else Any
    if get_origin(to) is Annotated:
        return converted(key, value, to)
    if value is None and to is not Any:
        raise ConfigError(f"{key} must not be null: set {key}=...")
    if get_origin(to) is Literal:
        if value not in get_args(to):
            raise ConfigError(f"{key}={value} is not known: set {key} to {' or '.join(map(str, get_args(to)))}")
        return value
    if to is bool:
        # OmegaConf would turn any number into true.
        if not isinstance(value, bool):
            raise ConfigError(f"{key}={value} is neither true nor false: set {key}=true or {key}=false")
        return value
    made = _by_omegaconf(key, value, to)
    for rule in rules:
        if isinstance(rule, Within):
            check_within(key, made, rule)
    return made


def _by_omegaconf(key: str, value: Any, to: Any) -> Any:
    *groups, name = key.split(".")
    node: Any = OmegaConf.structured(dataclasses.make_dataclass("Part", [(name, to, field(default="???"))]))
    for group in reversed(groups):
        node = {group: node}  # so that an error has the whole key
    root = OmegaConf.create(node)
    try:
        OmegaConf.update(root, key, value, merge=True)
        made = OmegaConf.select(root, key)
        missing = sorted(OmegaConf.missing_keys(root))
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(str(error))) from error
    if missing:
        raise ConfigError(f"{missing[0]} has no value: set {missing[0]}=...")
    return OmegaConf.to_container(made) if OmegaConf.is_config(made) else made


def check_within(key: str, value: float | None, bounds: Within) -> None:
    """Raises ConfigError if a number is out of bounds or NaN. None is always accepted."""
    if value is not None and not value >= bounds.least:
        raise ConfigError(f"{key}={value} is too small: set {key} to {bounds.least} or more")
    if value is not None and value > bounds.most:
        raise ConfigError(f"{key}={value} is too large: set {key} to {bounds.most} or less")


def make(key: str, settings: Mapping[str, Any], kind: Kind, **given: Any) -> Any:
    """Makes the part from its settings (`typed`) and those of the given values that it has parameters for.

    Raises ConfigError, naming the key, if the part raises ValueError or lacks an attribute of the protocol.
    """
    part = loaded(f"{key}._target_", settings["_target_"])
    taken = {name: value for name, value in given.items() if _takes_any(part) or name in _parameters(part)}
    own = {name: value for name, value in settings.items() if name != "_target_" and name not in kind.beside}
    holder = _settings_holder(part)
    try:
        made = part(**own, **taken) if holder is part else part(holder(**own), **taken)
    except ValueError as error:
        raise ConfigError(f"{key} cannot be made ({' '.join(str(error).split())}): change its settings") from error
    for name in _attributes(kind.protocol):
        if not hasattr(made, name):
            raise ConfigError(f"{key}._target_={settings['_target_']} is not a {kind.word}: it has no attribute {name}")
    return made


def _attributes(protocol: type) -> list[str]:
    """The public attributes that a protocol and its parents annotate without a default."""
    annotated = {name for one in protocol.__mro__ for name in inspect.get_annotations(one)}
    return sorted(name for name in annotated if not name.startswith("_") and not hasattr(protocol, name))


def own(name: Any, package: str) -> type | None:
    """The class with this dotted name from a run's folder, if it is defined in a module of this wp1 package; else None.

    A folder is data and may not be trustworthy. So only modules of that package are imported, and only classes defined
    in them are returned, because anything that a module imports can also be named as its attribute.
    """
    module, _, attribute = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    parent, _, leaf = module.rpartition(".")
    if parent != package or leaf not in {one.name for one in pkgutil.iter_modules(_paths(package))}:
        return None
    value = getattr(importlib.import_module(module), attribute, None)
    return value if isinstance(value, type) and value.__module__ == module else None


def _paths(package: str) -> Iterable[str]:
    return importlib.import_module(package).__path__


def unknown_key(key: str, known: list[str]) -> str:
    """A one-line message for an unknown key, suggesting the closest known ones.

    known: the full names of the keys in the same group.
    """
    group, _, name = key.rpartition(".")
    within = f"{group}." if group else ""
    near = difflib.get_close_matches(name, [one.removeprefix(within) for one in known], n=3, cutoff=0.6)
    if near:
        return f"unknown key {key}: did you mean {' or '.join(f'{within}{one}' for one in near)}?"
    if known:
        return f"unknown key {key}: {group or 'the top level'} has {', '.join(known)}"
    return f"unknown key {key}: `python -m wp1 --cfg job` lists the known ones"


def one_line(message: str) -> str:
    """A library's multi-line message on one line."""
    return "; ".join(part.strip() for part in message.splitlines() if part.strip())
