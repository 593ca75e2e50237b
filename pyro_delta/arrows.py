"""The picture of the house, drawn from its imports: `python -m pyro_delta.arrows`.

A room is a folder of the package, or a module that stands beside them. `FLOORS` says on which floor each stands; an
import inside a function counts, one for type checkers alone does not. An arrow may go down or along its floor to
another room, never up.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli", "arrows", "__main__"),
    ("share",),
    ("report", "api", "sweep"),
    ("twin",),
    ("inference",),
    ("build",),
    ("diagnostics", "describe"),
    ("config",),
    ("models", "guides"),
    ("commitment", "data", "vae", "svi", "call", "trust"),
    ("rate", "families", "nn", "programs"),
    ("distributions", "validation", "inverse"),
    (
        "protocol",
        "files",
        "hub",
        "lock",
        "signals",
        "errors",
        "limits",
        "cores",
        "ranks",
        "presets",
        "sweeps",
        "curves",
        "",
    ),
)
"""From the roof to the cellar; the last name is the package itself, which loads everything lazily."""

PACKAGE = "pyro_delta"


def arrows(root: Path | None = None) -> dict[str, dict[str, list[str]]]:
    """Room → room that it imports → the modules that do.

    Args:
        root: of the package; this one if None.
    """
    root = root or Path(__file__).parent
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(
        (*root.glob("*.py"), *(p for folder in root.iterdir() if folder.is_dir() for p in _files(folder)))
    ):
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        room = module.partition(".")[0]
        for imported in _imports(path.read_text(encoding="utf-8")):
            other = imported.partition(".")[0]
            if room and other != room:
                found[room][other].append(module)
    return {room: {other: sorted(set(modules)) for other, modules in to.items()} for room, to in found.items()}


def upward(found: dict[str, dict[str, list[str]]] | None = None) -> list[str]:
    """Every arrow that runs up, or between two rooms of a floor that import each other, in words."""
    found = arrows() if found is None else found
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    wrong = []
    for room, others in found.items():
        for other, modules in others.items():
            up = floor[other] < floor[room]
            if up or (floor[other] == floor[room] and room in found.get(other, {})):
                wrong.append(f"{room} → {other} ({', '.join(modules)})")
    return wrong


def picture() -> str:
    """Every floor, and below it the arrows of its rooms."""
    found = arrows()
    lines = []
    for rooms in FLOORS:
        lines.append(" · ".join(room for room in rooms if room))
        lines += [f"    {room} → {', '.join(sorted(filter(None, found[room])))}" for room in rooms if room in found]
    return "\n".join(lines)


def _files(folder: Path) -> Iterator[Path]:
    """Python files of a folder, links followed."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name != "__pycache__":
            yield from _files(path)
        elif path.suffix == ".py":
            yield path


def _imports(text: str) -> Iterator[str]:
    """Modules of the package that a module imports, below the package's own name; "" for the package itself."""
    tree = ast.parse(text)
    checked = {id(node) for block in ast.walk(tree) if _for_type_checkers(block) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in checked:
            continue
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module == PACKAGE:
                yield from (alias.name if _is_room(alias.name) else "" for alias in node.names)
            elif node.module.startswith(f"{PACKAGE}."):
                yield node.module.removeprefix(f"{PACKAGE}.")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(f"{PACKAGE}."):
                    yield alias.name.removeprefix(f"{PACKAGE}.")


def _is_room(name: str) -> bool:
    return any(name in rooms for rooms in FLOORS)


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


if __name__ == "__main__":
    print(picture())
    raise SystemExit("\n".join(upward()) or 0)
