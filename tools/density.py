"""How dense the code is, beside code that is known to read well: `python tools/density.py`.

Nodes of the syntax tree a line, long lines, and comprehensions a hundred lines, for each
room of the package and for the cells of each chapter. A mirror, not a gate: nothing fails.
"""

from __future__ import annotations

import ast
import json
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONG = 90
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# Measured in the same way on all code of each (cells: all code cells).
FILES = {"timm's schedulers": 6.4, "nanochat": 7.4, "Equinox": 4.6}
CELLS = {"LLMs-from-scratch": (7.8, 1.5, 1.3), "miniai": (11.4, 2.7, 2.0)}


@dataclass
class Density:
    """Counts over some source code; blank lines are left out."""

    nodes: int = 0
    lines: int = 0
    long: int = 0
    comprehensions: int = 0

    def add(self, source: str) -> None:
        """Count one file or cell; what is no Python counts nothing."""
        try:
            tree = ast.parse(source)
        except SyntaxError:
            return
        lines = [line for line in source.splitlines() if line.strip()]
        self.lines += len(lines)
        self.long += sum(len(line) > LONG for line in lines)
        for node in ast.walk(tree):
            self.nodes += 1
            self.comprehensions += isinstance(node, COMPREHENSIONS)

    def row(self) -> tuple[float, float, float]:
        """Return nodes a line, long lines in a hundred, comprehensions in a hundred lines."""
        lines = max(self.lines, 1)
        hundred = 100 / lines
        return self.nodes / lines, self.long * hundred, self.comprehensions * hundred


def of_files(paths: list[Path]) -> Density:
    """Return the density of Python files."""
    density = Density()
    for path in paths:
        density.add(path.read_text(encoding="utf-8"))
    return density


def of_cells(path: Path) -> Density:
    """Return the density of a notebook's code cells."""
    density = Density()
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            density.add("".join(cell["source"]))
    return density


def show(name: str, row: tuple[float, ...], lines: int | None = None) -> None:
    """Print one line of the table."""
    nodes, *rest = row
    shares = "".join(f"{share:>16.1f}" for share in rest)
    counted = "" if lines is None else f"{lines:>10,}"
    print(f"{name:<34}{nodes:>8.1f}{shares}{counted}")


def main() -> int:
    """Print the package's rooms and the chapters' cells, with the models beside them."""
    head = f"{'nodes a line':>42}{'% over 90':>16}{'comprehensions':>16}{'lines':>10}"
    print(head)
    package = ROOT / "dlcourse"
    everything = sorted(package.rglob("*.py"))
    rooms = {"dlcourse, all": everything}
    rooms["  techniques"] = [
        path
        for path in everything
        if path.relative_to(package).parts[0]
        not in ("exercises", "lab", "capstone", "workshop")
    ]
    for room in ("exercises", "lab", "capstone", "workshop"):
        rooms[f"  {room}"] = sorted((package / room).rglob("*.py"))
    rooms["recipes"] = sorted((ROOT / "recipes").glob("*.py"))
    for name, paths in rooms.items():
        if paths:
            density = of_files(paths)
            show(name, density.row(), density.lines)
    for name, nodes in FILES.items():
        show(f"  ({name})", (nodes,))
    for path in sorted((ROOT / "chapters").glob("[0-9][0-9]_*.ipynb")):
        density = of_cells(path)
        show(path.stem, density.row(), density.lines)
    for name, row in CELLS.items():
        show(f"  ({name})", row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
