"""What was handed in: whose notebooks they are, their chapters, and their exercises."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dlcourse.lab.source import COURSE

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = COURSE / "chapters"
GUIDES = ("start_here", "your_own_run")  # notebooks without exercises of the package
SITE = re.compile(
    r"EXERCISES\s*\[\s*(-?\d+)\s*\]\s*\.\s*(?:check|hint_for)\("
    r"\s*(?:answer\s*=\s*)?(\w+)\s*\)"
)
KEPT = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Misuse(Exception):
    """The command cannot do what was asked; the message says what to do."""


class Unreadable(Exception):
    """A file is no notebook that can be checked; the message says why."""


@dataclass(frozen=True)
class Cell:
    """A code cell: its number from 1, its source, and whether the chapter has it too."""

    number: int
    source: str
    unchanged: bool = False

    def definitions(self) -> str:
        """Return imports, functions, classes and plain constants: what takes no time."""
        try:
            body = ast.parse(self.source).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return ""
        return "\n".join(ast.unparse(node) for node in body if takes_no_time(node))


def takes_no_time(node: ast.stmt) -> bool:
    """Tell whether a statement only imports, defines, or names a value without a call."""
    if isinstance(node, ast.Assign):
        return not any(isinstance(part, ast.Call) for part in ast.walk(node))
    return isinstance(node, KEPT)


@dataclass
class Task:
    """One notebook to check: whose it is, and what is known of it before anything runs.

    `names` holds, for each exercise from 1, the names under which an answer may stand;
    `asked` the exercises that a cell of the notebook checks.
    """

    path: Path
    participant: str
    chapter: str = ""
    technique: str = ""
    cells: list[Cell] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    names: dict[int, list[str]] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)
    problem: str = ""  # a task without a problem and without questions is a guide


# --- a notebook and its exercises ---


def load_book(path: Path):
    """Return the notebook at `path` as nbformat has it; raise Unreadable where it is none."""
    import nbformat

    try:
        data = path.read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror}).") from None
    if not data:
        raise Unreadable("is empty (0 bytes), so it is no notebook; ask for it again.")
    if re.search(rb"^<<<<<<< ", data, re.M):
        raise Unreadable(
            "has merge-conflict marks (<<<<<<<); ask for it without the conflict."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ids that are missing, say
            book = nbformat.reads(data.decode("utf-8-sig"), as_version=4)
        [str(cell.source) + cell.cell_type for cell in book.cells]
    except Exception as error:  # whatever is wrong with it, it is one line
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise Unreadable(f"is no valid notebook ({reason}); ask for it again.") from None
    return book


def sites(source: str) -> list[tuple[int, str]]:
    """Return (index, name) of each call EXERCISES[index].check(name) in a cell."""
    return [(int(index), name) for index, name in SITE.findall(source)]


def exercise_cells(book) -> set[int]:
    """Return the positions of the code cells that check an exercise or hold its stub."""
    code = {n: c.source for n, c in enumerate(book.cells) if c.cell_type == "code"}
    names = {name for source in code.values() for _, name in sites(source)}
    return {
        position
        for position, source in code.items()
        if sites(source) or any(binds(source, name) for name in names)
    }


def binds(source: str, name: str) -> bool:
    """Tell whether a line of a cell gives a value to `name`."""
    # spaces, not \s: over 100,000 empty lines that would look at each pair of them
    line = rf"^[ \t]*((def|class) {name}\b|{name}[ \t]*=)"
    return bool(re.search(line, source, re.M))


@functools.cache
def techniques() -> set[str]:
    """Return the names of the techniques that have exercises, without importing them."""
    folder = Path(__file__).parents[1] / "exercises"
    return {path.stem for path in folder.glob("*.py")} - {"__init__"}


def named(path: Path) -> str:
    """Return the technique that a file name holds, or ""."""
    fitting = [name for name in techniques() if name in path.stem]
    return max(fitting, key=len, default="")


def technique_in(source: str) -> str:
    """Return the technique whose exercises the code uses, as far as it tells, or ""."""
    found = Counter(re.findall(r"dlcourse\.exercises\.(\w+)", source))
    for line in re.findall(r"from dlcourse\.exercises import (.+)", source):
        for module, alias in re.findall(r"(\w+)(?: as (\w+))?", line):
            found[module] += len(re.findall(rf"\b{alias or module}\.EXERCISES", source))
    known = [name for name, _ in found.most_common() if name in techniques()]
    return known[0] if known else ""


def own_chapter(technique: str) -> Path | None:
    """Return the course's own chapter, or None where the package stands alone."""
    return next(CHAPTERS.glob(f"[0-9][0-9]_{technique}.ipynb"), None)


def questions_of(technique: str) -> list[str]:
    """Return the questions of a technique; raise Unreadable where it has none here."""
    try:
        module = importlib.import_module(f"dlcourse.exercises.{technique}")
        return [exercise.question for exercise in module.EXERCISES]
    except Exception as error:
        told = f"dlcourse.exercises.{technique}: {type(error).__name__}: {error}"
        raise Unreadable(
            f"belongs to a chapter that this install lacks ({told})."
        ) from None


def prepare(path: Path, participant: str, notes: list[str]) -> Task:
    """Read a notebook and find its chapter; no code of it runs."""
    task = Task(path, participant)
    try:
        look_into(task, notes)
    except Unreadable as error:
        task.problem = f"{path.name} {error}"
    except Exception as error:  # one strange notebook must not stop the others
        told = f"{type(error).__name__}: {error}"
        task.problem = f"{path.name} cannot be checked ({told})"
    task.chapter = task.chapter or path.stem
    return task


def look_into(task: Task, notes: list[str]) -> None:
    """Fill a task with what its notebook holds; raise Unreadable where it is no chapter."""
    path, book = task.path, load_book(task.path)
    code = [(n, c) for n, c in enumerate(book.cells, 1) if c.cell_type == "code"]
    outside = named(path)
    if not outside and any(guide in path.stem for guide in GUIDES):
        notes.append(f"{path}: a guide; it has no exercises to check.")
        return
    inside = technique_in("\n".join(cell.source for _, cell in code))
    task.technique = inside or outside
    if not task.technique:
        raise Unreadable(
            "is not a chapter of this course: no name and no exercise says so."
        )
    if outside and outside != task.technique:
        notes.append(f"{path}: named after {outside}, but it holds {task.technique}.")
    task.questions = questions_of(task.technique)
    own = own_chapter(task.technique)
    numbered = re.search(rf"\d\d_{task.technique}", path.stem)
    task.chapter = numbered[0] if numbered else own.stem if own else task.technique
    theirs = [c.source for c in load_book(own).cells] if own else []
    known = {source.strip() for source in theirs}
    task.cells = [Cell(n, c.source, c.source.strip() in known) for n, c in code]
    if find_answers(task, theirs) or is_old(task, [cell for _, cell in code]):
        notes.append(
            f"{path}: another version of the chapter; its exercises are not all the same."
        )


def find_answers(task: Task, theirs: list[str]) -> bool:
    """Fill `names` and `asked`; tell whether the notebook has exercises that are none."""
    count, beyond = len(task.questions), False
    for number, question in enumerate(task.questions, 1):
        asks = re.match(r"Write (\w+)\(", question)
        task.names[number] = [f"your_{asks[1]}"] if asks else []
        # A plain name counts where the participant binds it: a chapter may import it.
        own = [cell.source for cell in task.cells if not cell.unchanged]
        if asks and any(binds(source, asks[1]) for source in own):
            task.names[number].append(asks[1])
    for source in [cell.source for cell in task.cells] + theirs:
        for index, name in sites(source):
            if -count <= index < count:
                names = task.names[index % count + 1]
                names += [name] if name not in names else []
    for cell in task.cells:
        indices = [
            int(found) for found in re.findall(r"EXERCISES\[(-?\d+)\]", cell.source)
        ]
        beyond |= any(index >= count for index in indices)
        task.asked |= {index % count + 1 for index in indices if index < count}
    return beyond


def is_old(task: Task, code: list) -> bool:
    """Tell whether the questions printed in the notebook are not those of today."""
    asking = [cell for cell in code if "EXERCISES[" in cell.source]
    printed = [out.get("text", "") for cell in asking for out in cell.get("outputs", [])]
    before = set(re.findall(r"Write (\w+)\(", " ".join(map(str, printed))))
    return bool(before - set(re.findall(r"Write (\w+)\(", " ".join(task.questions))))


# --- folders ---


def notebooks_in(folder: Path, deep: bool) -> list[Path]:
    """Return the notebooks of a folder in the order of their names, without hidden ones."""
    found = folder.rglob("*.ipynb") if deep else folder.glob("*.ipynb")
    inside = sorted(path.relative_to(folder).parts for path in found if path.is_file())
    shown = [parts for parts in inside if not any(p.startswith(".") for p in parts)]
    return [folder.joinpath(*parts) for parts in shown]


def collect(paths: Iterable[Path], notes: list[str]) -> list[tuple[Path, str]]:
    """Return (notebook, participant) of each notebook at these paths.

    Raises Misuse where a path does not exist, is no notebook, or holds none.
    """
    found: dict[Path, str] = {}

    def add(path: Path, owner: str) -> None:
        flat, _, rest = path.stem.rpartition("__")
        ours = flat and (re.match(r"\d\d_", rest) or named(Path(rest)))
        found.setdefault(path, flat if ours else owner)

    for path in paths:
        if not path.exists():
            raise Misuse(
                f"{path} does not exist; give a notebook or a folder of notebooks"
            )
        if path.is_file() and path.suffix != ".ipynb":
            raise Misuse(f"{path} is no notebook; give an .ipynb file or a folder")
        if path.is_file():
            add(path, path.resolve().parent.name)
            continue
        own, name = notebooks_in(path, deep=False), path.resolve().name
        for notebook in own:
            add(notebook, name)
        plainly = any(found[notebook] == name for notebook in own)
        before = len(found)
        for folder in sorted(path.iterdir()):
            if not folder.is_dir() or folder.name.startswith((".", "__")):
                continue
            theirs = notebooks_in(folder, deep=True)
            for notebook in theirs:
                add(notebook, f"{name}/{folder.name}" if plainly else folder.name)
            if not theirs and not own:
                notes.append(f"{folder.name} has no notebooks.")
        if not own and len(found) == before:
            raise Misuse(
                f"{path} holds no notebooks; give the folder into which they were put"
            )
    return list(found.items())
