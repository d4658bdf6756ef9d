"""The wording and generation limits that define a task, read from the installed lm-eval package and not retyped.

Its task files are read as files: importing lm-eval itself would bring in what only its own models and metrics need.
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
    """The folder of a benchmark's task files. Raises ConfigError where lm-eval is not installed or has none."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"tasks take their wording from the package {PIN}: run `make setup`, or pip install {PIN}")
    path = Path(spec.submodule_search_locations[0]) / "tasks" / benchmark
    if not path.is_dir():
        raise ConfigError(f"the installed lm-eval has no tasks/{benchmark}: wp1 was made with {PIN}, install that")
    return path


@cache
def task_file(benchmark: str, name: str) -> dict[str, Any]:
    """A task's YAML file with what it includes; `!function` tags are left as the function's name."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: str(node.value))
    path = folder(benchmark) / name
    try:
        found: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise ConfigError(f"the installed lm-eval lacks {path.name}: wp1 was made with {PIN}, install that") from error
    included = found.pop("include", None)
    return {**task_file(benchmark, included), **found} if included else found


def max_tokens(task: Mapping[str, Any]) -> int:
    """Tokens that a task lets a model generate at most."""
    return int(task["generation_kwargs"]["max_gen_toks"])


@cache
def _template(source: str) -> Any:
    import jinja2

    # As lm-eval renders it: a newline at the end is part of the prompt.
    return jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined).from_string(source)


def render(source: str, **values: Any) -> str:
    """A template of a task file with its values filled in."""
    return _template(source).render(**values)


@cache
def module(benchmark: str, name: str) -> ModuleType:
    """A Python file of a task, loaded alone; only for files that need the standard library and little else."""
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
    """The first literal that a Python file assigns to a name, for files whose imports we do not want.

    Raises ConfigError where there is none, as another version of lm-eval may have it.
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
    """What a file puts under a key of a dict, as a function of the names that it uses there."""
    for node in ast.walk(_tree(benchmark, file)):
        if isinstance(node, ast.Dict):
            for name, value in zip(node.keys, node.values, strict=True):
                if isinstance(name, ast.Constant) and name.value == key:
                    code: CodeType = compile(ast.Expression(value), f"{file}.py", "eval")
                    return lambda **names: eval(code, {"__builtins__": {}}, names)
    raise ConfigError(
        f"the installed lm-eval has no {key} in {benchmark}/{file}.py: wp1 was made with {PIN}, install that"
    )
