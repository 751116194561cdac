"""Dependencies point one way: what each folder of the package may import, read from the source with `ast`."""

import ast
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
# These work with tensors from their first line on, so whoever wants a quick start imports them inside a function.
HEAVY_AREAS = {"stages", "experts", "training", "backbones", "inference", "profiling", "routing"}
LIGHT_FILES = [path for path in FILES if path.relative_to(PACKAGE).parts[0] not in HEAVY_AREAS]
SHELVES = {"methods", "metrics", "formats"}
# What files of a shelf share: the contract, private helpers, and the one list that two formats must not disagree on.
SHARED_ON_SHELF = {"base", "emoji_items"}

# area -> areas that it never imports; every area but `commands` also never imports `commands`.
NEVER = {
    "stages": {"stages"},
    "methods": {"stages", "reports"},
    "reports": {"stages", "experts", "training", "backbones"},
    **{
        area: {"stages", "methods", "reports"}
        for area in ("experts", "training", "backbones", "metrics", "formats", "tasks")
    },
}


def imported(path: Path, *, at_start: bool = False) -> Iterator[str]:
    """Yield the full names of a file's imports; with `at_start` only those that run when the module is imported."""
    yield from _names(ast.parse(path.read_text(encoding="utf-8")), at_start=at_start, package=_package(path))


def _package(path: Path) -> tuple[str, ...]:
    return ("dmole_cli", *path.relative_to(PACKAGE).parts[:-1])


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


def area_of(path: Path) -> str:
    """The folder directly under the package, or the module's own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def own_parts(name: str) -> tuple[str, ...]:
    """Parts of an imported name below the package; empty for other packages' names."""
    first, *rest = name.split(".")
    return tuple(rest) if first == "dmole_cli" else ()


def show(path: Path, name: str) -> str:
    return f"{path.relative_to(PACKAGE)} imports {name}"


def test_the_package_is_found_and_the_linter_holds_the_same_areas() -> None:
    assert PACKAGE / "errors.py" in FILES
    free = {pattern for pattern, rules in RUFF["per-file-ignores"].items() if "TID253" in rules}
    assert free == {f"dmole_cli/{area}/*" for area in HEAVY_AREAS} | {"tests/*", "pipelines/*"}


def test_areas_import_only_to_the_right() -> None:
    wrong = []
    for path in FILES:
        area = area_of(path)
        forbidden = NEVER.get(area, set()) | ({"commands"} if area not in {"commands", "__main__"} else set())
        wrong += [show(path, name) for name in imported(path) if set(own_parts(name)[:1]) & forbidden]
    assert wrong == []


def test_artifacts_know_nothing_of_the_rest() -> None:
    allowed = {"artifacts", "errors", "__version__"}
    files = [path for path in FILES if area_of(path) == "artifacts"]
    assert [show(p, name) for p in files for name in imported(p) if not set(own_parts(name)[:1]) <= allowed] == []


def test_tasks_formats_and_metrics_never_import_torch() -> None:
    files = [path for path in FILES if area_of(path) in {"tasks", "formats", "metrics"}]
    assert [show(p, name) for p in files for name in imported(p) if name.split(".")[0] == "torch"] == []


def test_light_files_import_nothing_heavy_when_they_are_imported() -> None:
    def heavy(name: str) -> bool:
        return name.split(".")[0] in HEAVY or bool(set(own_parts(name)[:1]) & HEAVY_AREAS)

    assert [show(p, name) for p in LIGHT_FILES for name in imported(p, at_start=True) if heavy(name)] == []


def test_files_on_a_shelf_do_not_import_their_siblings() -> None:
    wrong = []
    for path in FILES:
        shelf = area_of(path)
        if shelf in SHELVES and not path.stem.startswith("_") and path.stem not in SHARED_ON_SHELF:
            siblings = {p.stem for p in path.parent.glob("*.py") if not p.stem.startswith("_")} - SHARED_ON_SHELF
            for name in imported(path):
                if own_parts(name)[:1] == (shelf,) and set(own_parts(name)[1:2]) & siblings:
                    wrong.append(show(path, name))
    assert wrong == []


def test_the_commands_start_without_the_heavy_libraries() -> None:
    program = f"import sys, dmole_cli.commands.app; print(*sorted(set({sorted(HEAVY)!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


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
