"""The rules of the house: each takes the project's folder and returns a list of problems."""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Iterator
from pathlib import Path

TECHNIQUES = (
    "data_splitting",
    "hyperparameter_tuning",
    "regularization",
    "gradient_clipping",
    "initialization",
    "activations",
    "batch_normalization",
    "learning_rate_decay",
    "model_compression",
    "data_augmentation",
    "gradient_accumulation",
    "parallelism",
    "warmup",
    "lr_schedulers",
    "mixed_precision",
    "data_loading",
)
CHAPTER = {
    name: f"{number:02d}_{name}.ipynb" for number, name in enumerate(TECHNIQUES, 1)
}
COMMANDS = (
    "check",
    "doctor",
    "handout",
    "predict",
    "train",
)
# around the chapters, none of them
GUIDES = {"00_start_here.ipynb", "17_your_own_run.ipynb"}
ROOMS = {"capstone", "exercises", "lab", "workshop"}
OTHER_MODULES = {"__init__", "__main__", *COMMANDS}
BUILDS_ON = {
    "warmup": {"dlcourse.learning_rate_decay"},
    "lr_schedulers": {"dlcourse.learning_rate_decay", "dlcourse.warmup"},
}
PLOTTING_MAY_NOT = {"torch", "torchvision", "accelerate", "scipy", "sklearn"}


# --- reading the project --------------------------------------------------------------------------

tree_of = functools.cache(ast.parse)  # several rules ask for the same file or cell


def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a Python file; the rules only read it."""
    return tree_of(path.read_text(encoding="utf-8"), filename=str(path))


def files_of(root: Path, name: str) -> list[Path]:
    """Return the files of a technique: one module, or a folder with one file an idea."""
    module = root / "dlcourse" / f"{name}.py"
    return (
        [module] if module.exists() else sorted((root / "dlcourse" / name).glob("*.py"))
    )


def techniques(root: Path) -> dict[Path, str]:
    """Return the files of the techniques that exist, each with its technique's name."""
    return {path: name for name in TECHNIQUES for path in files_of(root, name)}


def exercises(root: Path) -> list[Path]:
    """Return the modules of the exercises."""
    return sorted((root / "dlcourse" / "exercises").glob("*.py"))


def lab(root: Path) -> list[Path]:
    """Return the modules of the lab."""
    return sorted((root / "dlcourse" / "lab").rglob("*.py"))


def started(root: Path) -> bool:
    """Tell whether there is a chapter at all."""
    return any((root / "chapters").glob("*.ipynb"))


def imported(root: Path, path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of each import of a file, relative ones resolved, stars
    as ".*".
    """
    package = path.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += [node.module] if node.module else []
            yield from (
                (node.lineno, ".".join([*base, alias.name])) for alias in node.names
            )


def inside(name: str, modules: set[str]) -> bool:
    """Tell whether a dotted name is one of the modules or lies in one."""
    return any(name == module or name.startswith(module + ".") for module in modules)


def definitions(path: Path) -> list[ast.AST]:
    """Return the public functions and classes at the top level of a module."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    body = parse(path).body
    return [
        node for node in body if isinstance(node, kinds) and not node.name.startswith("_")
    ]


def mentioned(tree: ast.AST) -> set[str]:
    """Return each name and attribute that a syntax tree uses; imports alone do not count."""
    return {
        getattr(node, "id", None) or getattr(node, "attr", "")
        for node in ast.walk(tree)
        if isinstance(node, (ast.Name, ast.Attribute))
    }


def mentioned_in_notebook(path: Path) -> set[str]:
    """Return each name and attribute in the code cells of a notebook."""
    names: set[str] = set()
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            try:
                names |= mentioned(tree_of("".join(cell["source"])))
            except SyntaxError:
                continue  # chapter_rules.plain_python reports it
    return names


# --- the rules ------------------------------------------------------------------------------------


def one_name_everywhere(root: Path) -> list[str]:
    """A technique is a module, a chapter with its number, a test file, and a row of the
    README.
    """
    if not started(root):
        return []
    problems = []
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else None
    for name in TECHNIQUES:
        module = (
            f"dlcourse/{name}"
            if (root / "dlcourse" / name).is_dir()
            else f"dlcourse/{name}.py"
        )
        places = [
            module,
            f"dlcourse/exercises/{name}.py",
            f"chapters/{CHAPTER[name]}",
            f"tests/test_{name}.py",
        ]
        there = [place for place in places if (root / place).exists()]
        if not there:
            continue
        problems += [f"{name} has no {place}" for place in places if place not in there]
        rows = [line for line in (text or "").splitlines() if line.startswith("|")]
        if text is not None and not any(name in row for row in rows):
            problems.append(f"{name} has no row in the README")
    return problems


def no_strangers(root: Path) -> list[str]:
    """dlcourse/ holds the sixteen techniques, the commands and the lab; chapters/ theirs
    only.
    """
    inside = [
        path for path in (root / "dlcourse").iterdir() if path.name != "__pycache__"
    ]
    modules = {path.stem for path in inside if path.is_dir() or path.suffix == ".py"}
    strangers = sorted(modules - set(TECHNIQUES) - OTHER_MODULES - ROOMS)
    problems = [f"dlcourse/{name} is no technique of the list" for name in strangers]
    chapters = {path.name for path in (root / "chapters").glob("*.ipynb")}
    extra = sorted(chapters - set(CHAPTER.values()) - GUIDES)
    return problems + [
        f"chapters/{name} has no such technique or number" for name in extra
    ]


def imports_point_one_way(root: Path) -> list[str]:
    """A technique imports nothing of dlcourse; its exercises the technique; the lab the lab."""
    problems = []
    for path, technique in techniques(root).items():
        allowed = BUILDS_ON.get(technique, set())
        if path.stem != technique:  # a technique in a folder: its own other files
            allowed = allowed | {f"dlcourse.{technique}"}
        for line, name in imported(root, path):
            if inside(name, {"dlcourse"}) and not inside(name, allowed):
                problems.append(
                    f"{path.name}:{line} imports {name}; allowed: {sorted(allowed)}"
                )
    for path in exercises(root):
        allowed = {"dlcourse.lab.exercises", f"dlcourse.{path.stem}"}
        for line, name in imported(root, path):
            if inside(name, {"dlcourse"}) and not inside(name, allowed):
                problems.append(
                    f"exercises/{path.name}:{line} imports {name}; allowed: {sorted(allowed)}"
                )
    for path in lab(root):
        for line, name in imported(root, path):
            if inside(name, {"dlcourse"}) and not inside(name, {"dlcourse.lab"}):
                problems.append(
                    f"lab/{path.name}:{line} imports {name}; the lab imports only the lab"
                )
    return problems


def recipes_stand_alone(root: Path) -> list[str]:
    """A recipe has its chapter's name and imports nothing of dlcourse; each lesson has one."""
    names = {Path(chapter).stem: name for name, chapter in CHAPTER.items()}
    problems = []
    for path in sorted((root / "recipes").glob("*.py")):
        if path.stem not in names and f"{path.stem}.ipynb" not in GUIDES:
            problems.append(f"recipes/{path.name} belongs to no chapter")
        for line, name in imported(root, path):
            if inside(name, {"dlcourse"}):
                problems.append(
                    f"recipes/{path.name}:{line} imports {name}; a recipe stands alone"
                )
    for stem, name in names.items():
        chapter = root / "chapters" / f"{stem}.ipynb"
        if chapter.exists() and not (root / "recipes" / f"{stem}.py").exists():
            problems.append(f"{name} has no recipes/{stem}.py")
    return problems


def no_stars_no_utils(root: Path) -> list[str]:
    """No star import, and no module called utils."""
    problems = []
    for folder in ("dlcourse", "recipes", "tests", "tools", "benchmarks"):
        for path in sorted((root / folder).rglob("*")):
            where = path.relative_to(root)
            if path.stem == "utils":
                problems.append(f"{where}: name a module after what it does")
            if path.suffix == ".py":
                names = imported(root, path)
                stars = [line for line, name in names if name.endswith("*")]
                problems += [f"{where}:{line} has a star import" for line in stars]
    return problems


def every_public_name_is_used(root: Path) -> list[str]:
    """Each public function or class of a technique is used in its chapter, in a test or in
    another file of its folder; one of the lab in any chapter, in a test, or in the package.
    """
    if not started(root):
        return []
    tests = set().union(
        *(mentioned(parse(path)) for path in (root / "tests").rglob("*.py"))
    )
    books = {
        path.name: mentioned_in_notebook(path)
        for path in (root / "chapters").glob("*.ipynb")
    }
    package = [mentioned(parse(path)) for path in (root / "dlcourse").rglob("*.py")]
    problems = []
    owners = techniques(root)
    for path in [*owners, *lab(root)]:
        own = owners.get(path)
        if own:
            siblings = [other for other in files_of(root, own) if other != path]
            seen = books.get(CHAPTER[own], set()).union(
                *(
                    mentioned(parse(other))
                    for other in siblings
                    if other.stem != "__init__"
                )
            )
        else:
            seen = set().union(*books.values(), *package)
        problems += [
            f"{path.name}: {node.name} is used in no chapter and no test"
            for node in definitions(path)
            if node.name not in tests | seen
        ]
    return problems


def every_public_name_has_a_docstring(root: Path) -> list[str]:
    """Each public function or class at the top level of a module has a docstring."""
    paths = [root / "dlcourse" / f"{name}.py" for name in COMMANDS]
    paths += sorted((root / "dlcourse" / "capstone").glob("*.py"))
    commands = [path for path in paths if path.exists()]
    commands += sorted((root / "dlcourse" / "workshop").glob("*.py"))
    return [
        f"{path.name}:{node.lineno} {node.name} has no docstring"
        for path in [*techniques(root), *lab(root), *commands]
        for node in definitions(path)
        if not (ast.get_docstring(node) or "").strip()
    ]


def plotting_computes_nothing(root: Path) -> list[str]:
    """lab/plotting.py imports nothing that computes."""
    path = root / "dlcourse" / "lab" / "plotting.py"
    found = imported(root, path) if path.exists() else ()
    return [
        f"lab/plotting.py:{line} imports {name}; compute in the cell and pass the values"
        for line, name in found
        if inside(name, PLOTTING_MAY_NOT)
    ]


RULES = (
    one_name_everywhere,
    no_strangers,
    imports_point_one_way,
    recipes_stand_alone,
    no_stars_no_utils,
    every_public_name_is_used,
    every_public_name_has_a_docstring,
    plotting_computes_nothing,
)
