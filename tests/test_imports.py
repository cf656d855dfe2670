"""The direction of imports: a room may import from the rooms below it, never from one beside or above it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "splatlearn"
FLOORS = (
    ("cli", "arguments", "verbs", "__main__"),
    ("recipes", "tasks"),
    ("engine",),
    ("heads", "teachers", "losses"),
    ("encoders",),
    ("splatting", "data"),
    ("ops",),
    ("structures", "errors", "registry", "config", "ply", "__init__"),
)
"""Top down. The registry names built-in modules as strings, which are no imports."""
SAME_FLOOR = {
    ("cli", "arguments"),
    ("cli", "verbs"),
    ("__main__", "cli"),
    ("structures", "errors"),
    ("registry", "config"),
    ("registry", "errors"),
    ("config", "errors"),
    ("ply", "errors"),
}
"""Who may import whom on the same floor: the command line its verbs, and the ground itself."""


def floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(source: str) -> Iterator[str]:
    """Rooms of splatlearn that a source imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "splatlearn":
            names = [f"splatlearn.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        parts = [name.split(".") for name in names if name.split(".")[0] == "splatlearn"]
        yield from (part[1] if len(part) > 1 and not part[1].startswith("__") else "__init__" for part in parts)


def allowed(importer: str, imported: str) -> bool:
    return importer == imported or floor(importer) < floor(imported) or (importer, imported) in SAME_FLOOR


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
"""All but the package itself, whose functions are the verbs, imported when they are first used."""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downward(path):
    importer = room_of(path)
    wrong = [room for room in imported_rooms(path.read_text()) if not allowed(importer, room)]
    assert not wrong, f"{path.relative_to(PACKAGE)} (room {importer}) imports from {wrong}"


def test_every_room_is_on_a_floor():
    rooms = {room_of(path) for path in SOURCES}
    assert rooms <= {room for rooms in FLOORS for room in rooms}


def test_a_wrong_import_is_noticed():
    source = "def f():\n    from splatlearn.recipes.gs3 import GS3\n    from splatlearn import registry\n"
    rooms = list(imported_rooms(source))
    assert rooms == ["recipes", "registry"]
    assert not allowed("engine", "recipes")
    assert not allowed("recipes", "tasks")
    assert allowed("engine", "registry")


def test_relative_imports_are_not_used():
    for path in SOURCES:
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        assert not [n for n in nodes if n.level], f"{path} uses a relative import"
