"""The folder listing tells the architecture: imports point downwards, no cycles, quick starts, small functions and files."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dmole_cli"
FILES = sorted(PACKAGE.rglob("*.py"))
RUFF = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
HEAVY = set(RUFF["flake8-tidy-imports"]["banned-module-level-imports"])

# A room imports rooms to its right only.
ROOMS = (
    "api", "commands", "cli", "serving", "stages", "planning", "verification", "pages", "figures", "reports", "methods",
    "training", "inference", "profiling", "routing", "experts", "allocation", "backbones", "data", "metrics", "artifacts",
    "settings",
)  # fmt: skip
# Beside the rooms: what every room may use.
ROOT = {"__init__", "__main__", "catalog", "errors", "processes", "progress"}
# These compute with tensors; other rooms import them inside functions, so that `dmole --help` answers at once.
HEAVY_ROOMS = {"serving", "stages", "planning", "training", "inference", "profiling", "routing", "experts", "backbones"}
# Of the heavy rooms: identifies a backbone without loading it.
LIGHT_FILES = {"backbones/lazy_model.py"}
SHELVES = {"figures", "methods", "metrics", "data/formats", "data/synthetic", "backbones/families"}


def imported(path: Path, *, at_start: bool = False) -> Iterator[str]:
    """Yield the full names of a file's imports; with `at_start` only those that run when the module is imported."""
    package = ("dmole_cli", *path.relative_to(PACKAGE).parts[:-1])
    yield from _names(ast.parse(path.read_text(encoding="utf-8")), at_start=at_start, package=package)


def _names(node: ast.AST, *, at_start: bool, package: tuple[str, ...]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = ".".join((*package[: len(package) + 1 - node.level], node.module or "")) if node.level else node.module
        # "from a import b" may import the module a.b or a name in a; both readings are judged.
        yield from (f"{str(base).rstrip('.')}.{alias.name}" for alias in node.names)
    elif at_start and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return
    elif at_start and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for child in node.orelse:
            yield from _names(child, at_start=at_start, package=package)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _names(child, at_start=at_start, package=package)


def room_of(path: Path) -> str:
    """The folder directly under the package, or the module's own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def own_room(name: str) -> str:
    """The room that an imported name lies in; empty for other packages' names."""
    first, *rest = name.split(".")
    return rest[0] if first == "dmole_cli" and rest else ""


def test_the_rooms_are_the_folders() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == ROOT


def test_the_readme_describes_every_room() -> None:
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)/` \|", readme, re.MULTILINE)
    assert listed == [room for room in ROOMS if room in listed] and set(listed) == set(ROOMS)


def test_the_linter_knows_the_heavy_rooms() -> None:
    free = {pattern for pattern, rules in RUFF["per-file-ignores"].items() if "TID253" in rules}
    assert free == {f"dmole_cli/{room}/*" for room in HEAVY_ROOMS} | {"tests/*", "pipelines/*"}


def test_imports_point_downwards() -> None:
    wrong = []
    for path in FILES:
        room = room_of(path)
        allowed = ROOT | set(ROOMS[ROOMS.index(room) :] if room in ROOMS else ROOMS if room == "__main__" else ())
        wrong += [
            f"{name_of(path)} imports {name}"
            for name in imported(path)
            if own_room(name)
            and own_room(name) not in allowed | {"__version__", *(["api"] if room == "__init__" else [])}
        ]
    assert wrong == []


def test_no_stage_imports_another_stage() -> None:
    stages = [path for path in FILES if room_of(path) == "stages"]
    assert [f"{name_of(p)} imports {n}" for p in stages for n in imported(p) if own_room(n) == "stages"] == []


def test_no_file_takes_part_in_a_cycle_of_imports() -> None:
    modules = {name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in FILES}
    graph = {}
    for module, path in modules.items():
        names = [name.removeprefix("dmole_cli.") for name in imported(path) if name.startswith("dmole_cli.")]
        targets = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module] = (targets & modules.keys()) - {module}
    while free := {module for module, targets in graph.items() if not targets}:
        graph = {module: targets - free for module, targets in graph.items() if module not in free}
    assert graph == {}, "what is left imports itself around some corners"


def test_data_and_metrics_never_import_torch() -> None:
    files = [path for path in FILES if room_of(path) in {"data", "metrics"}]
    assert [f"{name_of(p)} imports {n}" for p in files for n in imported(p) if n.split(".")[0] == "torch"] == []


def test_light_files_import_nothing_heavy_when_they_are_imported() -> None:
    light = [path for path in FILES if room_of(path) not in HEAVY_ROOMS or name_of(path) in LIGHT_FILES]

    def heavy(name: str) -> bool:
        file = "/".join(name.split(".")[1:3]) + ".py"
        return name.split(".")[0] in HEAVY or (own_room(name) in HEAVY_ROOMS and file not in LIGHT_FILES)

    assert [f"{name_of(p)} imports {n}" for p in light for n in imported(p, at_start=True) if heavy(n)] == []


def test_files_on_a_shelf_do_not_import_their_siblings() -> None:
    wrong = []
    for path in FILES:
        shelf = path.parent.relative_to(PACKAGE).as_posix()
        if shelf in SHELVES and not path.stem.startswith("_") and path.stem != "base":
            siblings = {p.stem for p in path.parent.glob("*.py") if not p.stem.startswith("_") and p.stem != "base"}
            package = f"dmole_cli.{shelf.replace('/', '.')}."
            wrong += [
                f"{name_of(path)} imports {name}"
                for name in imported(path)
                if name.startswith(package) and name.removeprefix(package).split(".")[0] in siblings
            ]
    assert wrong == []


def test_the_commands_start_without_the_heavy_libraries() -> None:
    heavy = sorted(HEAVY | {"pydantic"})
    program = f"import sys, dmole_cli.commands.app; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def functions_of(path: Path) -> Iterator[ast.FunctionDef]:
    yield from (n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef))


def test_files_and_functions_stay_small_enough_to_read() -> None:
    """At most 350 lines a file, 60 lines a function (but a stage's main function), 8 parameters a function."""
    long_files = [name_of(path) for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 350]
    long_functions, wide = [], []
    for path in FILES:
        for function in functions_of(path):
            lines = (function.end_lineno or 0) - function.lineno + 1
            main = room_of(path) == "stages" and not function.name.startswith("_")
            arguments = function.args
            count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
            if lines > 60 and not main:
                long_functions.append(f"{name_of(path)}:{function.name} {lines}")
            # The parameters of a subcommand are its options.
            if count > 8 and room_of(path) != "commands":
                wide.append(f"{name_of(path)}:{function.name} {count}")
    assert (long_files, long_functions, wide) == ([], [], [])


@pytest.mark.parametrize(
    ("source", "at_start", "everywhere"),
    [
        ("import torch", ["torch"], ["torch"]),
        ("def f():\n    import torch", [], ["torch"]),
        ("try:\n    import torch\nexcept ImportError:\n    pass", ["torch"], ["torch"]),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy", ["numpy"], ["torch", "numpy"]),
        ("class A:\n    from ..stages import x", ["dmole_cli.stages.x"], ["dmole_cli.stages.x"]),
    ],
)
def test_the_reading_itself(source: str, at_start: list[str], everywhere: list[str]) -> None:
    tree, package = ast.parse(source), ("dmole_cli", "reports")
    assert list(_names(tree, at_start=True, package=package)) == at_start
    assert list(_names(tree, at_start=False, package=package)) == everywhere
