"""The plan of the house: imports go one way, files and folders stay small."""

import ast
from collections import defaultdict
from pathlib import Path

from tests.tiny_run import ROOT

MOST_LINES = 400
MOST_FILES = 12  # beside __init__.py
FILES = sorted((ROOT / "geopose").rglob("*.py"))


def module_of(path: Path) -> str:
    """`geopose/data/rgb.py` -> `geopose.data.rgb`; a package's `__init__` -> the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports_of(path: Path) -> set[str]:
    """Modules of the project that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("geopose"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found


def room_of(module: str) -> str:
    """The folder of a module; a file at the top of the package is a room of its own."""
    folder = MODULES[module].parent
    return module if folder == ROOT / "geopose" else module_of(folder)


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """One circle in a graph, or an empty list."""
    done: set[str] = set()

    def walk(node: str, above: list[str]) -> list[str]:
        if node in above:
            return [*above[above.index(node) :], node]
        if node in done:
            return []
        for target in sorted(arrows.get(node, ())):
            if found := walk(target, [*above, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(arrows) if (found := walk(node, []))), [])


def test_no_circle_of_files() -> None:
    assert circle({module: imports_of(path) for module, path in MODULES.items()}) == []


def test_no_circle_of_rooms() -> None:
    arrows: dict[str, set[str]] = defaultdict(set)
    for module, path in MODULES.items():
        rooms = {room_of(target) for target in imports_of(path) if target != "geopose"}
        arrows[room_of(module)] |= rooms - {room_of(module), "geopose"}
    assert circle(arrows) == []


def test_files_are_short() -> None:
    lines = {str(p): len(p.read_text(encoding="utf-8").splitlines()) for p in FILES}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_rooms_hold_few_files() -> None:
    counts: dict[Path, int] = defaultdict(int)
    for path in FILES:
        counts[path.parent] += path.name != "__init__.py"
    assert {str(folder): n for folder, n in counts.items() if n > MOST_FILES} == {}


def test_the_library_does_not_print() -> None:
    calls = [
        (path, node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert [f"{path}:{node.lineno}" for path, node in calls if node.func.id == "print"] == []
