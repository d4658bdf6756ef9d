"""Parts of a configuration that bring their own settings: schedulers, connectors, engines, collectors and the like.

A part is what `_target_` names, a class or a function, by its exact dotted name and in any package: a configuration is
code. Its signature says what it takes. Of its parameters some are given by wp1 (`Kind.given`); the others are its
settings, with their types and defaults. A class whose `__init__` has `**more` also takes what its parent takes; if
there is no parent to say it, any key is taken as it is.

    class ShortestFirst(AggregatedScheduler):
        def __init__(self, *, at_once: Annotated[int, Within(1)] = 4, order: Literal["up", "down"] = "up", **more): ...

A class may keep its settings in a dataclass instead, as its attribute `Settings`; it is then made of one such object
and of what wp1 gives. Types are those of OmegaConf, and `Literal` and `Within` say which values do. Anything else has
to be checked by the part itself, which is made before an engine starts and may raise ConfigError.

What a run's folder names is no configuration but data: see `own`.
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
from wp1.core.outside import imported

# The highest value of any number: engines keep seeds in 32 bits, and nothing else comes near.
MOST = 2**31 - 1
NOTHING = inspect.Parameter.empty


@dataclass(frozen=True)
class Kind:
    """What the parts of one group have in common.

    word: what they are called, as "scheduler". protocol: a class whose public methods each of them has.
    given: the parameters that wp1 fills in when it makes one. beside: keys of the group that wp1 reads itself, by type.
    """

    word: str
    protocol: type
    given: tuple[str, ...] = ()
    beside: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Within:
    """The bounds of a setting's number, as in `Annotated[int, Within(1)]`."""

    least: float
    most: float = MOST


@dataclass(frozen=True)
class Setting:
    """One setting of a part. default: NOTHING if it has to be given."""

    name: str
    type: Any
    default: Any


def loaded(key: str, name: Any) -> Callable[..., Any]:
    """What a dotted name stands for. Raises ConfigError, in one line that names the key, if it cannot be imported."""
    if name is None or name == "???":
        raise ConfigError(f"{key} has no value: set {key}=...")
    module, _, attribute = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    if not module:
        raise ConfigError(f"{key}={name} is no name of a class: write it as package.module.Class")
    found = getattr(imported(f"{key}={name}", module), attribute, None)
    if found is None:
        raise ConfigError(f"{key}={name} cannot be imported ({module} has no {attribute}): correct the name")
    if not callable(found):
        raise ConfigError(f"{key}={name} is neither a class nor a function")
    return found


def part_of(key: str, name: Any, kind: Kind) -> Callable[..., Any]:
    """`loaded`, of a part of this kind. Raises ConfigError if it lacks a method that such parts have.

    key: that of the part, as "scheduler" or "arms.agg".
    """
    found = loaded(f"{key}._target_", name)
    made = found if isinstance(found, type) else _returned(found)
    lacks = sorted(
        method
        for method, one in inspect.getmembers(kind.protocol)
        if not method.startswith("_") and callable(one) and not callable(getattr(made, method, None))
    )
    if lacks:
        raise ConfigError(f"{key}._target_={name} is no {kind.word}: it has no {lacks[0]}()")
    return found


def _returned(function: Callable[..., Any]) -> Any:
    try:
        return get_type_hints(function).get("return")
    except (NameError, TypeError):
        return None


def settings_of(key: str, part: Callable[..., Any], kind: Kind) -> dict[str, Setting]:
    """What a part takes of the configuration, by name. Raises ConfigError for a type that cannot be looked up."""
    found = {}
    for name, (parameter, function) in _parameters(_told_by(part)).items():
        if name not in kind.given:
            found[name] = Setting(name, _annotation(key, parameter, function), parameter.default)
    return found | {name: Setting(name, of_type, None) for name, of_type in kind.beside.items()}


def _told_by(part: Callable[..., Any]) -> Callable[..., Any]:
    """What says which settings a part takes: its dataclass `Settings`, or it itself."""
    held = getattr(part, "Settings", None)
    return held if isinstance(held, type) and dataclasses.is_dataclass(held) else part


def _parameters(part: Callable[..., Any]) -> dict[str, tuple[inspect.Parameter, Any]]:
    """The parameters that can be given by name, with the function of each; a subclass's come before its parents'."""
    found: dict[str, tuple[inspect.Parameter, Any]] = {}
    for function, own in _signatures(part):
        for parameter in own:
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                found.setdefault(parameter.name, (parameter, function))
    return found


def _signatures(part: Callable[..., Any]) -> list[tuple[Any, list[inspect.Parameter]]]:
    """The functions whose parameters a part has: its own, and while one has `**more` the next parent's."""
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
        raise ConfigError(f"{key}.{parameter.name} has the type {parameter.annotation}, which is not known") from error


def typed(key: str, node: Any, kind: Kind, told: Callable[[str, list[str]], str] | None = None) -> dict[str, Any]:
    """A part of the configuration, complete: `_target_` and all its settings, converted to their types.

    key: where it is, as "scheduler" or "arms.agg". told: the message for an unknown key; None: `unknown_key`.
    Raises ConfigError, in one line that names the key, for `_target_` that is no such part, and for a setting that is
    unknown, missing or of the wrong type.
    """
    given = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(given, dict):
        raise ConfigError(f"{key}={given} is no {kind.word}: it has to be an object with a _target_")
    part = part_of(key, given.get("_target_"), kind)
    known = settings_of(key, part, kind)
    strange = sorted(str(name) for name in given if name != "_target_" and name not in known)
    if not _takes_any(_told_by(part)):
        for name in strange[:1]:
            if not known:
                raise ConfigError(f"unknown key {key}.{name}: this {kind.word} has no settings")
            raise ConfigError((told or unknown_key)(f"{key}.{name}", [f"{key}.{one}" for one in sorted(known)]))
    found = {"_target_": given["_target_"], **{name: given[name] for name in strange}}
    for name, setting in known.items():
        value = given.get(name, setting.default)
        if value is NOTHING or value == "???":
            raise ConfigError(f"{key}.{name} has no value: set {key}.{name}=...")
        if name in given or is_plain(value):
            found[name] = converted(f"{key}.{name}", value, setting.type)
    return found


def is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | list | tuple | dict)


def converted(key: str, value: Any, to: Any) -> Any:
    """A value as its type has it: plain values, lists and dicts. Raises ConfigError that names the key if it is none.

    to: a type of OmegaConf's, Literal, or either in Annotated with `Within`; what it is not, is taken as it is.
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
        raise ConfigError(f"{key}=null is no value: set {key}=...")
    if get_origin(to) is Literal:
        if value not in get_args(to):
            raise ConfigError(f"{key}={value} is not known: set {key} to {' or '.join(map(str, get_args(to)))}")
        return value
    if to is bool:
        # Of any number OmegaConf would make true.
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
    """Raises ConfigError if a number is out of its bounds, or is not one (nan). None is in any."""
    if value is not None and not value >= bounds.least:
        raise ConfigError(f"{key}={value} is too small: set {key} to {bounds.least} or more")
    if value is not None and value > bounds.most:
        raise ConfigError(f"{key}={value} is too large: set {key} to {bounds.most} or less")


def make(key: str, settings: Mapping[str, Any], kind: Kind, **given: Any) -> Any:
    """The part itself, of its settings (`typed`) and of what it takes of that which wp1 gives.

    Raises ConfigError, naming the key, if the part refuses its settings by ValueError.
    """
    part = loaded(f"{key}._target_", settings["_target_"])
    taken = {name: value for name, value in given.items() if _takes_any(part) or name in _parameters(part)}
    own = {name: value for name, value in settings.items() if name != "_target_" and name not in kind.beside}
    held = _told_by(part)
    try:
        return part(**own, **taken) if held is part else part(held(**own), **taken)
    except ValueError as error:
        raise ConfigError(f"{key} cannot be made ({' '.join(str(error).split())}): change its settings") from error


def own(name: Any, package: str) -> type | None:
    """The class that a name from a run's folder stands for, if wp1 itself has it in a module of this package.

    A folder is data and may come from anybody. So nothing is imported but modules of that package, and of these only
    a class counts that is defined there: whatever else a module has imported can be reached by a name like its own.
    """
    module, _, attribute = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    parent, _, leaf = module.rpartition(".")
    if parent != package or leaf not in {one.name for one in pkgutil.iter_modules(_paths(package))}:
        return None
    found = getattr(importlib.import_module(module), attribute, None)
    return found if isinstance(found, type) and found.__module__ == module else None


def _paths(package: str) -> Iterable[str]:
    return importlib.import_module(package).__path__


def unknown_key(key: str, known: list[str]) -> str:
    """One line for a key that does not exist: the nearest that do, if there are any.

    known: the keys beside it, whole.
    """
    group, _, name = key.rpartition(".")
    within = f"{group}." if group else ""
    near = difflib.get_close_matches(name, [one.removeprefix(within) for one in known], n=3, cutoff=0.6)
    if near:
        return f"unknown key {key}: did you mean {' or '.join(f'{within}{one}' for one in near)}?"
    if known:
        return f"unknown key {key}: {group or 'the top level'} has {', '.join(known)}"
    return f"unknown key {key}: see `python -m wp1 --cfg job` for those there are"


def one_line(message: str) -> str:
    """A library's message of several lines as one."""
    return "; ".join(part.strip() for part in message.splitlines() if part.strip())
