"""The rules of the tree: imports only go down, files and functions stay small, tests mirror the code.

The floors and what a file in wp1/ may be are in docs/architecture.md.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tests import REPO

# From the top. A folder imports itself and what is below it; the files in wp1/ are the commands.
FLOORS = (
    "commands", "sweep", "runner", "tracking", "config", "collectors", "analysis", "quality", "serving", "workload",
    "model", "machine", "stats", "core",
)  # fmt: skip
COMMANDS = {"main", "report", "compare", "track", "packet", "score", "peaks"}
MAX_FILE, MAX_FUNCTION = 400, 60
# A longer file says why before its first line of code.
REASON = "Longer than 400 lines because"

Graph = dict[str, set[str]]


def name_of(path: Path, root: Path) -> str:
    """The dotted name of a module's file; a package has the name of its folder."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(root: Path) -> Graph:
    """Which modules of root/wp1 each one imports: at its top, within functions and under TYPE_CHECKING alike."""
    files = {name_of(path, root): path for path in sorted((root / "wp1").rglob("*.py"))}
    return {name: set(_imports(path, files)) - {name} for name, path in files.items()}


def _imports(path: Path, known: Iterable[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole name"
            package = node.module or ""
            for alias in node.names:
                if (submodule := f"{package}.{alias.name}") in known:
                    yield submodule
                elif package in known:
                    yield package


def floor_of(module: str) -> str:
    """The folder directly in wp1/ that a module is in; "commands" for a file in wp1/ itself."""
    parts = module.split(".")
    return "commands" if len(parts) == 1 or (len(parts) == 2 and parts[1] not in FLOORS) else parts[1]


def within_analysis(module: str) -> str:
    """The subfolder of wp1/analysis that a module is in; "" for a file in wp1/analysis itself."""
    parts = module.split(".")
    return parts[2] if len(parts) > 3 or (REPO / "wp1" / "analysis" / parts[-1]).is_dir() else ""


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of nodes that all reach each other."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for node in graph.get(todo.pop(), ()):
                if node not in seen:
                    seen.add(node)
                    todo.append(node)
        return seen

    reach = {node: reached(node) for node in graph}
    groups = {tuple(sorted(other for other in reach[node] if node in reach.get(other, ()))) for node in graph}
    return sorted(list(group) for group in groups if group)


def upward(graph: Graph) -> list[str]:
    """Imports of a folder that lies above the importer's."""
    return [
        f"{module} imports {imported}"
        for module, found in graph.items()
        for imported in sorted(found - {"wp1"})
        if FLOORS.index(floor_of(imported)) < FLOORS.index(floor_of(module))
    ]


GRAPH = import_graph(REPO)
MODULES = sorted((REPO / "wp1").rglob("*.py"))


def test_no_module_imports_itself_through_others() -> None:
    assert circles(GRAPH) == []


def test_folders_import_only_what_is_below_them() -> None:
    assert {floor_of(module) for module in GRAPH} <= set(FLOORS)
    assert upward(GRAPH) == []


def test_within_analysis_imports_go_down_too() -> None:
    between: dict[str, set[str]] = {}
    for module, imported in GRAPH.items():
        if floor_of(module) == "analysis":
            below = {within_analysis(name) for name in imported if floor_of(name) == "analysis"}
            between.setdefault(within_analysis(module), set()).update(below - {within_analysis(module)})
    # Files in wp1/analysis itself put together what the subfolders make.
    assert [folder for folder, found in between.items() if "" in found] == []
    assert circles(between) == []


def test_a_file_in_wp1_is_a_command_and_commands_import_no_command() -> None:
    files = {path.stem for path in (REPO / "wp1").glob("*.py")}
    assert files == COMMANDS | {"__init__", "__main__"}
    commands = {f"wp1.{name}" for name in COMMANDS}
    assert {name: GRAPH[name] & commands for name in commands if GRAPH[name] & commands} == {}


def test_the_rules_find_what_breaks_them(tmp_path: Path) -> None:
    files = {
        "__init__": "",
        "core/a": "def f():\n    from wp1.stats import b",
        "stats/b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import wp1.core.a",
        "stats/c": "from wp1 import report",
        "report": "",
    }
    for name, content in files.items():
        path = tmp_path / "wp1" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    graph = import_graph(tmp_path)
    assert circles(graph) == [["wp1.core.a", "wp1.stats.b"]]
    assert upward(graph) == ["wp1.core.a imports wp1.stats.b", "wp1.stats.c imports wp1.report"]


def test_files_are_short_or_say_why() -> None:
    long = {}
    for path in MODULES:
        text = path.read_text()
        before_code = re.split(r"^(?:import|from) ", text, maxsplit=1, flags=re.MULTILINE)[0]
        if text.count("\n") > MAX_FILE and REASON not in " ".join(before_code.replace("#", " ").split()):
            long[name_of(path, REPO)] = text.count("\n")
    assert long == {}


def test_functions_are_short() -> None:
    assert {
        f"{name_of(path, REPO)}.{node.name}": lines
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION
    } == {}


def test_tests_mirror_the_code() -> None:
    """tests/unit/a/test_b.py is of wp1/a/b.py, or of the package wp1/a/b; flows/ is of several at once."""
    unit = REPO / "tests" / "unit"
    paths = [path.relative_to(unit) for path in sorted(unit.rglob("test_*.py")) if path != Path(__file__)]
    modules = [(path.parent / path.stem.removeprefix("test_")) for path in paths if path.parts[0] != "flows"]
    assert [
        str(module)
        for module in modules
        if not (REPO / "wp1" / module).with_suffix(".py").is_file()
        and not (REPO / "wp1" / module / "__init__.py").is_file()
    ] == []
