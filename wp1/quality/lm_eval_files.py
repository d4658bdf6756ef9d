"""Reads the wording and generation limits of tasks from the installed lm-eval package.

Task files are read as files: importing lm-eval would also import the dependencies of its models and metrics.
"""

import ast
import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from wp1.core.errors import ConfigError

PACKAGE, PIN = "lm_eval", "lm-eval==0.4.13"


@cache
def folder(benchmark: str) -> Path:
    """The folder of a benchmark's task files. Raises ConfigError if lm-eval or the folder is missing."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"tasks take their wording from the package {PIN}: run `make setup`, or pip install {PIN}")
    path = Path(spec.submodule_search_locations[0]) / "tasks" / benchmark
    if not path.is_dir():
        raise ConfigError(f"the installed lm-eval has no tasks/{benchmark}: wp1 was made with {PIN}, install that")
    return path


@cache
def task_file(benchmark: str, name: str) -> dict[str, Any]:
    """A task's YAML file merged with the file it includes; a `!function` tag becomes the function's name."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: str(node.value))
    path = folder(benchmark) / name
    try:
        settings: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise ConfigError(f"the installed lm-eval lacks {path.name}: wp1 was made with {PIN}, install that") from error
    included = settings.pop("include", None)
    return {**task_file(benchmark, included), **settings} if included else settings


def max_tokens(task: Mapping[str, Any]) -> int:
    """The largest number of tokens that a task lets a model generate."""
    return int(task["generation_kwargs"]["max_gen_toks"])


@cache
def _template(source: str) -> Any:
    import jinja2

    # As in lm-eval, a newline at the end is part of the prompt.
    return jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined).from_string(source)


def render(source: str, **values: Any) -> str:
    """A task file's template with its values filled in."""
    return _template(source).render(**values)


@cache
def module(benchmark: str, name: str) -> ModuleType:
    """Imports a task's Python file by itself; only for files that import little beyond the standard library."""
    qualified = f"wp1_lm_eval_{benchmark}_{name}"
    spec = importlib.util.spec_from_file_location(qualified, folder(benchmark) / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[qualified] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@cache
def _tree(benchmark: str, name: str) -> ast.Module:
    return ast.parse((folder(benchmark) / f"{name}.py").read_text(encoding="utf-8"))


@cache
def constant(benchmark: str, file: str, name: str) -> Any:
    """The first literal that a Python file assigns to a name, for files whose imports wp1 does not need.

    Raises ConfigError if there is none, for example in another version of lm-eval.
    """
    for node in ast.walk(_tree(benchmark, file)):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            try:
                return ast.literal_eval(node.value)  # type: ignore[attr-defined]
            except (ValueError, TypeError):
                continue
    raise ConfigError(
        f"the installed lm-eval has no {name} in {benchmark}/{file}.py: wp1 was made with {PIN}, install that"
    )


@cache
def expression(benchmark: str, file: str, key: str) -> Callable[..., Any]:
    """The expression that a file gives as the value of a dict's key, as a function of the names used in it."""
    for node in ast.walk(_tree(benchmark, file)):
        if isinstance(node, ast.Dict):
            for name, value in zip(node.keys, node.values, strict=True):
                if isinstance(name, ast.Constant) and name.value == key:
                    code: CodeType = compile(ast.Expression(value), f"{file}.py", "eval")
                    return lambda **names: eval(code, {"__builtins__": {}}, names)
    raise ConfigError(
        f"the installed lm-eval has no {key} in {benchmark}/{file}.py: wp1 was made with {PIN}, install that"
    )
