"""Check what participants handed in: `python -m dlcourse.check FOLDER --csv results.csv`.

FOLDER is a notebook, a participant's folder, or a folder with one sub-folder a
participant; files named `anna__04_gradient_clipping.ipynb` work too. For each exercise
the answer is taken out of the notebook with the statements that it needs, is run in a
process of its own, and gets a verdict: pass, hint, not started, error or time-out.

The verdict is the package's own, and travels over a file that the notebook does not know:
printing "Right." or replacing EXERCISES changes nothing. This is no sandbox. A notebook
runs with your rights and could read or delete your files, or find a way to cheat. Check
only what people you know have written, or work in a container.

Exit codes: 0 where every exercise passes, 1 where one does not, 2 for misuse, 130 for
Ctrl-C.
"""

from __future__ import annotations
import __future__

import argparse
import ast
import builtins
import concurrent.futures
import contextlib
import csv
import functools
import importlib
import json
import linecache
import os
import re
import signal
import subprocess
import symtable
import sys
import tempfile
import threading
import time
import types
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PASS, HINT, BLANK, ERROR, TIME_OUT = "pass", "hint", "not started", "error", "time-out"
VERDICTS = (PASS, HINT, BLANK, ERROR, TIME_OUT)
COLUMNS = ("participant", "chapter", "exercise", "question", "verdict", "hint", "seconds")
GUIDES = ("start_here", "your_own_run")  # notebooks without exercises of the package
ROOT = Path(__file__).resolve().parents[1]
START_LIMIT = 120.0  # seconds that Python and torch may take to start
POLL = 0.05  # seconds between two looks at a process
LONGEST = 500  # characters of a hint
# how Exercise.hint_for begins where the answer raised
STOPPED = "Your code stopped with "
GONE = "Its cell is not in the notebook."


class Misuse(Exception):
    """The command cannot do what was asked; the message says what to do."""


class Unreadable(Exception):
    """A file is no notebook that can be checked; the message says why."""


class Stopped(Exception):
    """The check was stopped before this notebook was done."""


class CellError(Exception):
    """A statement that an answer needs has failed; the message names the cell and the
    error.
    """


# --- reading a notebook ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A cell: its number from 1, "code" or "markdown", its source, and what it printed."""

    number: int
    kind: str
    source: str
    printed: str = ""


def joined(text: object) -> str:
    """Return a text field of a notebook, which is a string or a list of lines."""
    parts = text if isinstance(text, list) else [text]
    return "".join(part for part in parts if isinstance(part, str))


def load_book(path: Path) -> dict:
    """Return the notebook at `path` as JSON; raise Unreadable where it is none."""
    try:
        book = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise Unreadable(f"is no valid notebook ({reason}); ask for it again.") from None
    cells = book.get("cells") if isinstance(book, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise Unreadable("has no list of cells; open it in JupyterLab and save it again.")
    return book


def cells_of(book: dict) -> list[Cell]:
    """Return the cells of a notebook that `load_book` has read."""
    cells = []
    for number, cell in enumerate(book["cells"], 1):
        outputs = [out for out in cell.get("outputs") or () if isinstance(out, dict)]
        printed = "".join(joined(out.get("text", "")) for out in outputs)
        kind, source = str(cell.get("cell_type")), joined(cell.get("source", ""))
        cells.append(Cell(number, kind, source, printed))
    return cells


def section(cells: list[Cell], title: str) -> set[int]:
    """Return the numbers of the cells from the H2 heading `title` up to the next H2
    heading.
    """
    inside, found = False, set()
    for cell in cells:
        if cell.kind == "markdown":
            text = re.sub(r"^(```|~~~).*?^\1", "", cell.source, flags=re.M | re.S)
            headings = re.findall(r"^##[ \t]+(.*?)[ \t]*$", text, re.M)
            inside = headings[-1] == title if headings else inside
        if inside:
            found.add(cell.number)
    return found


CELL_MAGIC = re.compile(r"\s*%%(\w*)[^\n]*")
LINE_MAGIC = re.compile(
    r"^([ \t]*)(?:(?:[\w, ]+=[ \t]*)?[%!].*|\?{1,2}[\w.]+[ \t]*|[\w.]+\?{1,2}[ \t]*)$",
    re.M,
)
RUNS_ITS_CELL = {"time", "timeit", "capture", "prun"}


def plain(source: str) -> str:
    """Return a cell as plain Python: magics and shell lines become `pass`, line by line."""
    magic = CELL_MAGIC.match(source)
    if magic:
        if magic[1] not in RUNS_ITS_CELL:
            return ""
        source = "\n" * magic[0].count("\n") + source[magic.end() :]
    try:
        ast.parse(source)
    except SyntaxError:
        return LINE_MAGIC.sub(r"\1pass", source)
    except (ValueError, RecursionError, MemoryError):
        pass
    return source


# --- statements and the names they use ------------------------------------------------------------

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
BINDERS = (
    ast.Assign,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.ImportFrom,
)
IMPORTS = (ast.Import, ast.ImportFrom)
COMPREHENSION = "genexpr"


@dataclass(frozen=True)
class Step:
    """A statement at the top level of a cell, with the global names that it uses.

    `now` are the names it reads when it runs, `later` those that its functions read when
    called; it gives a value to `binds` and changes the objects of `touches`. `sure` means
    that it always binds. `sites` are its calls EXERCISES[index].check(answer).
    """

    cell: int
    node: ast.stmt
    now: frozenset[str]
    later: frozenset[str]
    binds: frozenset[str]
    touches: frozenset[str]
    sure: bool
    sites: tuple[tuple[int, ast.expr], ...]


def walk_now(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run with a statement, not those in the bodies of its
    functions.
    """
    stack = [node]
    while stack:
        part = stack.pop()
        yield part
        if not isinstance(part, FUNCTIONS):
            stack += reversed(list(ast.iter_child_nodes(part)))


def root_of(node: ast.AST) -> str:
    """Return the name that an expression such as `a.b[0].c` starts from, or ""."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


class Generators(ast.NodeTransformer):
    """Put generators in place of comprehensions, whose variables some Pythons count as
    global.
    """

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp) -> ast.AST:
        """Return a generator of the same elements."""
        self.generic_visit(node)
        return ast.GeneratorExp(node.elt, node.generators)

    visit_SetComp = visit_ListComp

    def visit_DictComp(self, node: ast.DictComp) -> ast.AST:
        """Return a generator of pairs."""
        self.generic_visit(node)
        return ast.GeneratorExp(
            ast.Tuple([node.key, node.value], ast.Load()), node.generators
        )


@functools.lru_cache(maxsize=10_000)
def names_in(text: str) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Return what `names` returns, for a statement as text; raise SyntaxError where it is
    none.
    """
    now, later, binds = set(), set(), set()

    def look(table: symtable.SymbolTable, top: bool, deferred: bool) -> None:
        for symbol in table.get_symbols():
            if not top and not symbol.is_global():
                continue
            if symbol.is_referenced():
                (later if deferred else now).add(symbol.get_name())
            if symbol.is_assigned() or symbol.is_imported():
                binds.add(symbol.get_name())
        for child in table.get_children():
            runs_later = (
                child.get_type() == "function" and child.get_name() != COMPREHENSION
            )
            look(child, False, deferred or runs_later)

    plainer = ast.unparse(Generators().visit(ast.parse(text)))
    look(symtable.symtable(plainer, "cell", "exec"), True, False)
    return frozenset(now), frozenset(later), frozenset(binds)


def names(node: ast.stmt) -> tuple[set[str], set[str], set[str]]:
    """Return the global names that a statement reads now, reads later, and binds."""
    try:
        now, later, binds = map(set, names_in(ast.unparse(node)))
    except (SyntaxError, ValueError, RecursionError):
        now, later, binds = set(), set(), set()
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                (now if isinstance(part.ctx, ast.Load) else binds).add(part.id)
    if isinstance(node, ast.AugAssign):
        now |= binds
    if isinstance(node, ast.Delete) or (
        isinstance(node, ast.AnnAssign) and node.value is None
    ):
        binds = set()
    return now, later, binds


def touched(node: ast.stmt) -> set[str]:
    """Return the names whose objects a statement changes: `a.b = 1`, `a[0] = 1`,
    `a.append(1)`.
    """
    found = set()
    for part in walk_now(node):
        stores = isinstance(getattr(part, "ctx", None), (ast.Store, ast.Del))
        if stores and isinstance(part, (ast.Attribute, ast.Subscript)):
            found.add(root_of(part))
        elif isinstance(part, ast.Expr) and isinstance(part.value, ast.Call):
            if isinstance(part.value.func, ast.Attribute):
                found.add(root_of(part.value.func))
    return found - {""}


def says_nothing(node: ast.stmt) -> bool:
    """Tell whether a statement is `...` or a docstring; `pass` is an answer, if a lazy
    one.
    """
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


class Neutral(ast.NodeTransformer):
    """Put True in place of the calls of exercises: check, hint_for and solution."""

    def __init__(self, book: Book):
        self.book = book

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Replace this call, or look inside it."""
        if self.book.exercise_called(node) is not None:
            return ast.copy_location(ast.Constant(True), node)
        return self.generic_visit(node)


# --- from a notebook to the programs of its answers -----------------------------------------------


@dataclass(frozen=True)
class Program:
    """What gives an answer: statements in their order, the names in use, and an
    expression.
    """

    steps: tuple[Step, ...]
    needed: frozenset[str]
    answer: ast.expr
    cell: int
    stop: int  # the number of the last statement that counts as before the answer


class Book:
    """The code of a notebook, statement by statement.

    `broken` holds (cell number, source, error) of each cell that is no Python.
    """

    def __init__(self, cells: list[Cell]):
        self.cells = cells
        self.asked = section(cells, "Exercises")
        self.broken: list[tuple[int, str, str]] = []
        self.flags = 0
        self.lists, self.single = {"EXERCISES"}, {}
        self.modules: dict[str, str] = {}
        parsed = []
        for cell in cells:
            if cell.kind == "code":
                parsed += [(cell.number, node) for node in self._parse(cell)]
        for _, node in parsed:
            self._note(node)
        self.steps = [self._step(number, node) for number, node in parsed]
        self.imported = {
            n for s in self.steps if isinstance(s.node, IMPORTS) for n in s.binds
        }

    def _parse(self, cell: Cell) -> list[ast.stmt]:
        """Return the statements of a cell; note a cell that is no Python."""
        try:
            body = ast.parse(plain(cell.source)).body
        except SyntaxError as error:
            told = f"cell {cell.number}, line {error.lineno}: SyntaxError: {error.msg}"
            self.broken.append((cell.number, cell.source, told))
            return []
        except (ValueError, RecursionError, MemoryError) as error:
            told = f"cell {cell.number}: {type(error).__name__}: {error}"
            self.broken.append((cell.number, cell.source, told))
            return []
        rest = []
        for node in body:
            if isinstance(node, ast.ImportFrom) and node.module == "__future__":
                for alias in node.names:
                    feature = getattr(__future__, alias.name, None)
                    self.flags |= getattr(feature, "compiler_flag", 0)
            else:
                rest.append(node)
        return rest

    def _note(self, node: ast.stmt) -> None:
        """Note the names of EXERCISES, of single exercises, and of the package's modules."""
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "dlcourse"
        ):
            for alias in node.names:
                name = alias.asname or alias.name
                if alias.name == "EXERCISES":
                    self.lists.add(name)
                inner = (
                    node.module.partition(".")[2].removeprefix("exercises").lstrip(".")
                )
                self.modules[name] = inner or alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("dlcourse."):
                    inner = alias.name.partition(".")[2].removeprefix("exercises.")
                    self.modules[alias.asname or alias.name] = inner
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            index = self._index(node.value)
            if index is not None:
                self.single[node.targets[0].id] = index

    def _index(self, node: ast.AST) -> int | None:
        """Return the index of an expression `EXERCISES[index]`, or None."""
        if isinstance(node, ast.Name):
            return self.single.get(node.id)
        if not isinstance(node, ast.Subscript):
            return None
        owner = node.value
        name = getattr(owner, "attr", None) or getattr(owner, "id", None)
        try:
            index = ast.literal_eval(node.slice)
        except (ValueError, TypeError, SyntaxError):
            return None
        return index if name in self.lists and type(index) is int else None

    def exercise_called(self, node: ast.AST) -> int | None:
        """Return the index of the exercise whose check, hint_for or solution a node
        calls.
        """
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("check", "hint_for", "solution"):
                return self._index(node.func.value)
        return None

    def _step(self, number: int, node: ast.stmt) -> Step:
        """Return a statement as a step."""
        sites = []
        for part in walk_now(node):
            index = self.exercise_called(part)
            if index is not None and part.func.attr != "solution":
                answers = [*part.args, *(word.value for word in part.keywords)]
                sites += [(index, answer) for answer in answers[:1]]
        now, later, binds = names(node)
        sure = isinstance(node, BINDERS) or (
            isinstance(node, ast.AnnAssign) and bool(node.value)
        )
        if isinstance(node, ast.Import):
            sure = all("." not in alias.name or alias.asname for alias in node.names)
        whole = [number, node, now, later, binds, touched(node)]
        return Step(*whole[:2], *map(frozenset, whole[2:]), sure, tuple(sites))

    def module(self) -> str | None:
        """Return the module whose exercises the notebook checks, as far as its code
        tells.
        """
        found = Counter()
        for cell in self.cells:
            if cell.kind == "code":
                for use in re.finditer(r"EXERCISES *\[", cell.source):
                    before = cell.source[max(0, use.start() - 100) : use.start()]
                    owner = re.search(r"[\w.]*$", before)[0].rstrip(".")
                    found[self.modules.get(owner or "EXERCISES")] += 1
        found.pop(None, None)
        if found:
            return found.most_common(1)[0][0]
        imported = {name for name in self.modules.values() if name in techniques()}
        return imported.pop() if len(imported) == 1 else None

    # --- programs ---

    def reaching(self, name: str, stop: int) -> list[int]:
        """Return the steps that make the value which `name` has after the step `stop`."""
        found, bound = [], False
        for at in range(min(stop, len(self.steps) - 1), -1, -1):
            step = self.steps[at]
            if name in step.binds:
                found.append(at)
                bound = True
                if step.sure:
                    return found
            elif name in step.touches and self._may_touch(step, name):
                found.append(at)
        if not bound:  # cells out of order: the first one after it
            after = range(stop + 1, len(self.steps))
            found += [at for at in after if name in self.steps[at].binds][:1]
        return found

    def _may_touch(self, step: Step, name: str) -> bool:
        """Tell whether to run a statement that changes an object: settings of libraries
        are not.
        """
        return name not in self.imported or step.cell in self.asked

    def program(self, answer: ast.expr, cell: int, stop: int) -> Program:
        """Return what must run before the expression `answer` after the step `stop`."""
        read_now, read_later, _ = names(ast.copy_location(ast.Expr(answer), answer))
        queue = [(name, stop) for name in read_now | read_later]
        seen, chosen, unknown = set(queue), set(), False
        while queue:
            name, at = queue.pop()
            hits = self.reaching(name, at)
            unknown |= not hits and not hasattr(builtins, name)
            for hit in hits:
                if hit in chosen:
                    continue
                chosen.add(hit)
                step = self.steps[hit]
                wanted = {(other, hit - 1) for other in step.now}
                wanted |= {(other, at) for other in step.later for at in (hit, stop)}
                queue += wanted - seen
                seen |= wanted
        if unknown:
            chosen |= {
                at
                for at, step in enumerate(self.steps)
                if isinstance(step.node, ast.ImportFrom)
                and step.node.names[0].name == "*"
            }
        steps = tuple(self.steps[at] for at in sorted(chosen))
        return Program(steps, frozenset(name for name, _ in seen), answer, cell, stop)

    def programs(self, number: int, question: str, count: int) -> Iterator[list[Program]]:
        """Yield groups of programs for exercise `number`; a later group is for blank
        answers.

        First the answers where they are checked, the last one first. Then the same
        expressions at the end of the notebook, and the function that the question names.
        """
        last, sites = len(self.steps) - 1, []
        for at, step in enumerate(self.steps):
            for index, answer in step.sites:
                if -count <= index < count and index % count == number - 1:
                    sites.append(self.program(answer, step.cell, at))
        yield sites[::-1]
        known = {(program.steps, ast.dump(program.answer)) for program in sites}
        ends = [(program.answer, program.cell) for program in sites]
        named = re.match(r"Write (\w+)\(", question)
        for at in range(last, -1, -1) if named else ():
            step = self.steps[at]
            for name in (named[1], f"your_{named[1]}"):
                if name in step.binds and (
                    step.cell in self.asked or name.startswith("your_")
                ):
                    ends.append((ast.parse(name, mode="eval").body, step.cell))
        more = []
        for answer, cell in ends:
            program = self.program(answer, cell, last)
            key = (program.steps, ast.dump(program.answer))
            if key not in known:
                known.add(key)
                more.append(program)
        yield more

    def broken_for(self, number: int, programs: list[Program]) -> str:
        """Return the error of a broken cell that checks this exercise or names its
        answer.
        """
        wanted = {p.answer.id for p in programs if isinstance(p.answer, ast.Name)}
        for _, source, error in self.broken:
            checks = re.search(rf"\[\s*{number - 1}\s*\]\s*\.\s*check\b", source)
            if checks or wanted & set(re.findall(r"\w+", source)):
                return error
        return ""

    def untouched(self, program: Program) -> bool:
        """Tell, without running anything, whether an answer is still the dots of the
        chapter.
        """
        answer, stop = program.answer, program.stop
        for _ in range(10):  # names of names
            if isinstance(answer, ast.Lambda):
                answer = answer.body
            if isinstance(answer, ast.Constant):
                return answer.value is ...
            hits = self.reaching(answer.id, stop) if isinstance(answer, ast.Name) else []
            if len(hits) != 1:
                return False
            node, stop = self.steps[hits[0]].node, hits[0] - 1
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                return not node.decorator_list and all(map(says_nothing, node.body))
            if not isinstance(node, ast.Assign) or not isinstance(
                node.targets[0], ast.Name
            ):
                return False
            answer = node.value
        return False

    def blank(self, number: int, question: str, count: int) -> tuple[str, str] | None:
        """Return the verdict of an exercise that nobody has touched, or None where it
        must run.
        """
        found = [p for group in self.programs(number, question, count) for p in group]
        if not all(self.untouched(program) for program in found):
            return None
        error = self.broken_for(number, found)
        if error:
            return ERROR, error
        return BLANK, "" if found else GONE


# --- running answers: this part runs in the notebook's process ------------------------------------


def told(error: BaseException, cell: int | None = None) -> str:
    """Return an error in one line, with the line of the cell in which it arose."""
    where = [] if cell is None else [f"cell {cell}"]
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith("<cell "):
            where = [name.strip("<>"), f"line {trace.tb_lineno}"]
        trace = trace.tb_next
    if isinstance(error, SystemExit):
        text = "it calls exit()"
    else:
        try:
            lines = str(error).strip().splitlines()
        except Exception:  # an error of the participant's own that cannot be printed
            lines = []
        text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return ": ".join([", ".join(where), text]) if where else text


class Runner:
    """Runs the programs of one notebook, and asks the package for its verdict.

    The exercises and the functions behind them are kept from before the notebook runs.
    """

    def __init__(self, book: Book, technique: str):
        from dlcourse.lab import exercises

        self.book = book
        module = importlib.import_module(f"dlcourse.exercises.{technique}")
        self.exercises = tuple(module.EXERCISES)
        self.hint_for = exercises.Exercise.hint_for
        self.blank_hint = exercises.BLANK
        self.kept = [(vars(m), dict(vars(m))) for m in (module, exercises)]
        self.neutral = Neutral(book)
        for cell in book.cells:  # for inspect.getsource and for tracebacks
            lines = plain(cell.source).splitlines(True)
            name = f"<cell {cell.number}>"
            linecache.cache[name] = (len(cell.source), None, lines, name)

    def restore(self) -> None:
        """Give the modules of the exercises the names back that a notebook has rebound."""
        for now, before in self.kept:
            now.clear()
            now.update(before)

    def code(self, step: Step, needed: frozenset[str] | None) -> types.CodeType:
        """Return a statement compiled; of an import only what is needed."""
        node = step.node
        if needed is not None and isinstance(node, IMPORTS):
            wanted = [
                alias
                for alias in node.names
                if alias.name == "*"
                or (alias.asname or alias.name).split(".")[0] in needed
            ]
            changed = {**dict(ast.iter_fields(node)), "names": wanted or node.names}
            node = ast.copy_location(type(node)(**changed), node)
        elif any(self.book.exercise_called(part) is not None for part in ast.walk(node)):
            node = ast.fix_missing_locations(self.neutral.visit(node))
        whole = ast.Module([node], type_ignores=[])
        return compile(
            whole, f"<cell {step.cell}>", "exec", self.book.flags, dont_inherit=True
        )

    def run(self, program: Program, space: dict) -> None:
        """Run the statements of a program; raise CellError where one that is needed
        fails.

        A statement that misses a name is tried again after the others: cells may be out
        of order. An expression may fail.
        """
        pending = list(program.steps)
        while pending:
            failed = []
            for step in pending:
                try:
                    exec(self.code(step, program.needed), space)
                except NameError as error:
                    failed.append((step, error))
                except BaseException as error:
                    if not isinstance(step.node, ast.Expr):
                        raise CellError(told(error, step.cell)) from None
            if len(failed) == len(pending):
                needed = [
                    pair for pair in failed if not isinstance(pair[0].node, ast.Expr)
                ]
                if needed:
                    raise CellError(told(needed[0][1], needed[0][0].cell))
                return
            pending = [step for step, _ in failed]

    def judge_answer(self, number: int, program: Program, space: dict) -> tuple[str, str]:
        """Evaluate a program's answer, and return (verdict, hint)."""
        try:
            whole = ast.fix_missing_locations(ast.Expression(program.answer))
            answer = eval(compile(whole, f"<cell {program.cell}>", "eval"), space)
        except BaseException as error:
            return ERROR, told(error, program.cell) + self.skipped()
        self.restore()
        try:
            hint = self.hint_for(self.exercises[number - 1], answer)
        except BaseException as error:
            return ERROR, told(error, program.cell)
        if hint is None:
            return PASS, ""
        if answer is ... or self.book.untouched(program):
            return BLANK, ""
        # `pass`, or one line that looks like a stub and raises
        if hint == self.blank_hint:
            return ERROR, STOPPED + "an error; call it with values of your own."
        if hint.startswith(STOPPED):
            return ERROR, hint + (self.skipped() if "NameError" in hint else "")
        return HINT, hint

    def skipped(self) -> str:
        """Return what to add to the error of a missing name."""
        return f" (Left out: {self.book.broken[0][2]})" if self.book.broken else ""

    def judge(self, number: int) -> tuple[str, str]:
        """Return (verdict, hint) of one exercise: a pass, else what its last answer gets."""
        question, best, seen = self.exercises[number - 1].question, None, []
        for group in self.book.programs(number, question, len(self.exercises)):
            for program in group:
                seen.append(program)
                space = new_main()
                try:
                    self.run(program, space)
                except CellError as error:
                    got = ERROR, str(error)
                else:
                    got = self.judge_answer(number, program, space)
                best = better(best, got)
                if got[0] == PASS:
                    return got
            if best is not None and best[0] != BLANK:
                return best
        return self.if_blank(number, best, seen)

    def if_blank(self, number: int, best: tuple[str, str] | None, seen: list[Program]):
        """Return the verdict of an exercise without an answer: its cell may be broken or
        gone.
        """
        error = self.book.broken_for(number, seen)
        return (ERROR, error) if error else best or (BLANK, GONE)

    def judge_all(self) -> Iterator[tuple[int, str, str]]:
        """Run the whole notebook once, and yield (number, verdict, hint) of each
        exercise.
        """
        space, count = new_main(), len(self.exercises)
        best: dict[int, tuple[str, str]] = {}
        seen: dict[int, list[Program]] = {number: [] for number in range(1, count + 1)}
        first = ""
        for at, step in enumerate(self.book.steps):
            try:
                exec(self.code(step, None), space)
            except BaseException as error:
                first = first or told(error, step.cell)
            for index, answer in step.sites:
                if -count <= index < count:
                    number = index % count + 1
                    program = Program((), frozenset(), answer, step.cell, at)
                    seen[number].append(program)
                    got = self.judge_answer(number, program, space)
                    best[number] = better(got, best.get(number))
        for number, exercise in enumerate(self.exercises, 1):
            got = best.get(number)
            if got is None or got[0] == BLANK:
                for group in self.book.programs(number, exercise.question, count):
                    for program in group:
                        got = better(got, self.judge_answer(number, program, space))
            if got is None or got[0] == BLANK:
                got = self.if_blank(number, got, seen[number])
            verdict, hint = got
            if verdict == ERROR and first and first not in hint:
                hint += f" (The first cell that failed: {first})"
            yield number, verdict, hint


def better(
    first: tuple[str, str] | None, second: tuple[str, str] | None
) -> tuple[str, str]:
    """Return the verdict that counts: a pass, else the first that is not blank."""
    pairs = [pair for pair in (first, second) if pair is not None]
    ranked = sorted(pairs, key=lambda pair: (pair[0] != PASS, pair[0] == BLANK))
    return ranked[0]


def new_main() -> dict:
    """Return the namespace of a new module __main__, in which a notebook's code can run."""
    module = types.ModuleType("__main__")
    module.__dict__.update(__builtins__=builtins, display=print)
    sys.modules["__main__"] = module
    return module.__dict__


def limit_resources(memory: float, seconds: float) -> None:
    """Bound memory (GB), CPU time, file sizes and core dumps, where the system offers it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    cpu = int(seconds * (os.cpu_count() or 1)) + 60
    bounds = {"RLIMIT_CORE": 0, "RLIMIT_CPU": cpu, "RLIMIT_FSIZE": 2**30}
    if memory > 0:
        bounds["RLIMIT_DATA"] = int(memory * 2**30)
    for name, bound in bounds.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            kind = getattr(resource, name)
            hard = resource.getrlimit(kind)[1]
            bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
            resource.setrlimit(kind, (bound, bound))


def child() -> None:
    """Run the answers of the notebook that stands on standard input, and leave the
    process.
    """
    job = json.loads(sys.stdin.buffer.read())
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    channel, own = open(job["channel"], "a", encoding="utf-8"), os.getpid()
    get_pid, leave, clock, dump = os.getpid, os._exit, time.perf_counter, json.dumps

    def send(**event) -> None:
        if get_pid() != own:  # a fork made by the notebook
            leave(1)
        channel.write(dump(event) + "\n")
        channel.flush()

    try:
        warnings.simplefilter("ignore")
        cells = [Cell(*cell) for cell in job["cells"]]
        runner = Runner(Book(cells), job["technique"])
        limit_resources(job["memory"], job["seconds"])
        sys.path.append(job["folder"])  # modules of the participant's own
        sys.argv = [""]
        if job["full"]:
            send(begin=0)
            start = clock()
            for number, verdict, hint in runner.judge_all():
                send(
                    done=number,
                    verdict=verdict,
                    hint=hint[:5000],
                    seconds=clock() - start,
                )
                start = clock()
        else:
            for number in job["numbers"]:
                send(begin=number)
                start = clock()
                verdict, hint = runner.judge(number)
                send(
                    done=number,
                    verdict=verdict,
                    hint=hint[:5000],
                    seconds=clock() - start,
                )
        leave(0)
    except BaseException as error:
        send(failed=told(error))
        leave(3)


# --- one process a notebook -----------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """How a notebook is run: seconds an exercise, memory in GB, and whether as a whole."""

    timeout: float = 60.0
    memory: float = 4.0
    full: bool = False


class Process:
    """A child process in a group of its own, without a terminal, which can be killed
    whole.
    """

    def __init__(self, job: dict, folder: Path):
        paths = [
            str(ROOT),
            *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
        ]
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in paths),
            "PYTHONIOENCODING": "utf-8",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "DLCOURSE_PROGRESS": "0",
            "MPLBACKEND": "Agg",
            "CUDA_VISIBLE_DEVICES": "",  # the checks compare numbers made on a CPU
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)),
        }
        group: dict = {"start_new_session": True}
        if os.name == "nt":
            group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from dlcourse.check import child; child()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=env,
            **group,
        )
        self.family: dict[int, object] = {}
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(job).encode())
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def look_round(self) -> None:
        """Note the processes that this one has started, also those that left its group."""
        try:
            import psutil

            for other in psutil.Process(self.process.pid).children(recursive=True):
                self.family.setdefault(other.pid, other)
        except Exception:  # not installed, or the process has just ended
            pass

    def end(self) -> int:
        """Kill whatever is left of it and of its children, and return its exit code."""
        if self.process.poll() is None:
            self.look_round()
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        elif self.process.poll() is None:
            tree = ["taskkill", "/F", "/T", "/PID", str(self.process.pid)]
            subprocess.run(tree, capture_output=True)
        if self.process.poll() is None:
            self.process.kill()
        for other in self.family.values():
            with contextlib.suppress(Exception):  # gone already
                other.kill()
        return self.process.wait()


def attempt(
    job: dict, timeout: float, stop: threading.Event
) -> tuple[dict, int | None, str]:
    """Run one process; return (its verdicts, the exercise at which it ended, why it
    ended).

    The reason TIME_OUT means that it was killed. Raises Stopped where `stop` is set.
    """
    done: dict[int, tuple[str, str, float]] = {}
    current, failed, reason = None, "", None
    with tempfile.TemporaryDirectory(
        prefix="dlcourse", ignore_cleanup_errors=True
    ) as name:
        work = Path(name) / "work"
        work.mkdir()
        channel = Path(name) / "verdicts"
        channel.touch()
        with open(channel, encoding="utf-8") as events:
            process = Process(job | {"channel": str(channel)}, work)
            try:
                deadline, rest, look = time.monotonic() + START_LIMIT, "", 0.0
                while reason is None:
                    ended = process.process.poll() is not None
                    *lines, rest = (rest + events.read()).split("\n")
                    for event in map(json.loads, lines):
                        deadline = time.monotonic() + timeout
                        if "begin" in event:
                            current = event["begin"]
                        elif "done" in event:
                            done[event["done"]] = (
                                event["verdict"],
                                event["hint"],
                                event["seconds"],
                            )
                            current = None
                        else:
                            failed = event["failed"]
                    if ended:
                        reason = failed
                    elif time.monotonic() > deadline:
                        reason = TIME_OUT
                    elif stop.is_set():
                        raise Stopped
                    else:
                        if time.monotonic() > look:
                            process.look_round()
                            look = time.monotonic() + 0.5
                        stop.wait(POLL)
            finally:
                code = process.end()
    return done, current, reason or ending(code)


def ending(code: int) -> str:
    """Return how a process ended, from its exit code."""
    if code >= 0:
        return f"The notebook ended its process (exit code {code})."
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
        more = ", perhaps for too much memory" if name == "SIGKILL" else ""
        return f"The process was ended by {name}{more}."
    return f"The process was ended by signal {-code}."


def run_answers(job: dict, limits: Limits, stop: threading.Event) -> dict:
    """Return {exercise: (verdict, hint, seconds)}; after a time-out or a crash the rest
    goes on.
    """
    left, results = list(job["numbers"]), {}
    while left:
        seconds = limits.timeout * (1 if limits.full else len(left))
        whole = job | {"numbers": left, "seconds": seconds}
        done, current, reason = attempt(whole, limits.timeout, stop)
        results |= done
        left = [number for number in left if number not in done]
        if not left:
            break
        if reason == TIME_OUT:
            hint, spent = f"Not done in {limits.timeout:g} s.", limits.timeout
            if current is None:
                reason, hint = ERROR, f"Python was not ready in {START_LIMIT:g} s."
        else:
            hint, reason, spent = reason, ERROR, 0.0
        now = left if limits.full or current not in left else [current]
        results |= {number: (reason, hint, spent) for number in now}
        left = [number for number in left if number not in now]
    return results


# --- from files to rows ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One exercise of one participant."""

    participant: str
    chapter: str
    exercise: int | str
    question: str
    verdict: str
    hint: str = ""
    seconds: float = 0.0


@dataclass
class Task:
    """One notebook to check: whose it is, and what is known of it before anything runs."""

    path: Path
    participant: str
    chapter: str = ""
    technique: str = ""
    book: Book | None = None
    questions: list[str] = field(default_factory=list)
    known: dict[int, tuple[str, str, float]] = field(default_factory=dict)
    problem: str = ""  # a task without a problem and without questions is a guide


@functools.cache
def techniques() -> set[str]:
    """Return the names of the techniques that have exercises, without importing them."""
    folder = Path(__file__).parent / "exercises"
    return {path.stem for path in folder.glob("*.py")} - {"__init__"}


def named(path: Path) -> str:
    """Return the technique that a file name holds, or ""."""
    fitting = [name for name in techniques() if name in path.stem]
    return max(fitting, key=len, default="")


def chapter_name(technique: str, path: Path) -> str:
    """Return a chapter's name with its number, from the file or from the course's own
    folder.
    """
    number = re.search(rf"\d\d_{technique}", path.stem)
    if number:
        return number[0]
    own = sorted((ROOT / "chapters").glob(f"[0-9][0-9]_{technique}.ipynb"))
    return own[0].stem if own else technique


def questions_of(technique: str) -> list[str]:
    """Return the questions of a module's exercises; raise Unreadable where it has none."""
    try:
        module = importlib.import_module(f"dlcourse.exercises.{technique}")
        questions = [exercise.question for exercise in module.EXERCISES]
    except Exception as error:
        what = f"dlcourse.exercises.{technique} has no exercises here ({type(error).__name__}: {error})"
        raise Unreadable(
            f"belongs to a chapter that this install lacks: {what}"
        ) from None
    return questions


def prepare(path: Path, participant: str, notes: list[str]) -> Task:
    """Read a notebook and find its chapter; no code of it runs."""
    task = Task(path, participant)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            look_into(task, notes)
    except Unreadable as error:
        task.problem = f"{path.name} {error}"
    except Exception as error:  # one strange notebook must not stop the others
        task.problem = f"{path.name} cannot be checked ({told(error)})"
    task.chapter = task.chapter or path.stem
    return task


def look_into(task: Task, notes: list[str]) -> None:
    """Fill a task with what its notebook holds; raise Unreadable where that cannot be
    checked.
    """
    path, cells = task.path, cells_of(load_book(task.path))
    book = Book(cells)
    inside, outside = book.module(), named(path)
    task.technique = inside if inside in techniques() else outside
    if not outside and any(guide in path.stem for guide in GUIDES):
        notes.append(f"{path}: a guide; it has no exercises to check.")
        return
    if not task.technique:
        raise Unreadable(
            "is not a chapter of this course: no name and no exercise says so."
        )
    task.chapter = chapter_name(task.technique, path)
    if outside and outside != task.technique:
        notes.append(f"{path}: named after {outside}, but it holds {task.technique}.")
    task.questions = questions_of(task.technique)
    count = len(task.questions)
    for number, question in enumerate(task.questions, 1):
        got = book.blank(number, question, count)
        if got is not None:
            task.known[number] = (*got, 0.0)
    beyond = any(index >= count for step in book.steps for index, _ in step.sites)
    printed = "".join(cell.printed for cell in cells if cell.number in book.asked)
    before, now = (
        set(re.findall(r"Write (\w+)\(", text))
        for text in (printed, " ".join(task.questions))
    )
    if beyond or before - now:
        notes.append(
            f"{path}: another version of the chapter; its exercises are not all the same."
        )
    task.book = book


def check_task(task: Task, limits: Limits, stop: threading.Event) -> list[Row]:
    """Return the rows of one notebook; raise Stopped where `stop` is set."""
    if task.problem:
        return [Row(task.participant, task.chapter, "", "", ERROR, task.problem)]
    results = dict(task.known)
    numbers = [n for n in range(1, len(task.questions) + 1) if n not in results]
    if numbers:
        if limits.full:
            numbers = list(range(1, len(task.questions) + 1))
        if stop.is_set():
            raise Stopped
        job = {
            "cells": [(c.number, c.kind, c.source) for c in task.book.cells],
            "technique": task.technique,
            "folder": str(task.path.resolve().parent),
            "numbers": numbers,
            "full": limits.full,
            "memory": limits.memory,
        }
        results |= run_answers(job, limits, stop)
    return [
        Row(
            task.participant,
            task.chapter,
            number,
            short(question),
            verdict,
            hint,
            seconds,
        )
        for number, question in enumerate(task.questions, 1)
        for verdict, hint, seconds in [results[number]]
    ]


def notebooks_in(folder: Path, deep: bool) -> list[Path]:
    """Return the notebooks of a folder in the order of their names, without hidden ones."""
    found = folder.rglob("*.ipynb") if deep else folder.glob("*.ipynb")
    seen = [path.relative_to(folder).parts for path in found if path.is_file()]
    return [
        folder.joinpath(*p) for p in sorted(seen) if not any(s.startswith(".") for s in p)
    ]


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
        if path.is_file():
            if path.suffix != ".ipynb":
                raise Misuse(f"{path} is no notebook; give an .ipynb file or a folder")
            add(path, path.resolve().parent.name)
            continue
        own, name = notebooks_in(path, deep=False), path.resolve().name
        for notebook in own:
            add(notebook, name)
        plainly = any(found[notebook] == name for notebook in own)
        before = len(found)
        for folder in sorted(path.iterdir()):
            if folder.is_dir() and not folder.name.startswith((".", "__")):
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


# --- telling --------------------------------------------------------------------------------------


def short(question: str) -> str:
    """Return the first words of a question: `Write f(x): ...` gives `Write f(x)`."""
    head = question.split(":")[0]
    return head if len(head) <= 70 else head[:69].rstrip() + "…"


def one_line(text: str, longest: int = LONGEST) -> str:
    """Return a text in one line, without control characters, cut at `longest`."""
    clean = "".join(c if c.isprintable() else " " for c in str(text))
    clean = " ".join(clean.split())
    return clean if len(clean) <= longest else clean[: longest - 1].rstrip() + "…"


def safe(value: object) -> str:
    """Return a cell of the CSV that no spreadsheet takes for a formula."""
    text = f"{value:.1f}" if isinstance(value, float) else one_line(value)
    return f"'{text}" if text.startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20")) else text


def width(text: str) -> int:
    """Return the columns that a text takes in a terminal."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def table(rows: list[list[str]]) -> list[str]:
    """Return rows of text as lines with aligned columns."""
    columns = max(map(len, rows), default=0)
    rows = [[*row, *[""] * (columns - len(row))] for row in rows]
    wide = [max(width(row[column]) for row in rows) for column in range(columns)]
    padded = [
        [t + " " * (w - width(t)) for t, w in zip(row, wide, strict=True)] for row in rows
    ]
    return ["  ".join(row).rstrip() for row in padded]


def counted(rows: list[Row]) -> str:
    """Return how many exercises passed, what became of the others, and what was
    unreadable.
    """
    by = Counter(row.verdict for row in rows if row.exercise)
    others = [f"{by[verdict]} {verdict}" for verdict in VERDICTS[1:] if by[verdict]]
    text = f"{by[PASS]} of {by.total()} passed" + (
        f" ({', '.join(others)})" if others else ""
    )
    unread = len(rows) - by.total()
    return text + f"; {unread} notebook{'s' * (unread > 1)} could not be checked" * (
        unread > 0
    )


def report(batches: list[list[Row]]) -> str:
    """Return the report: a line a notebook, the hints, totals by participant and by
    exercise.
    """
    rows = [row for batch in batches for row in batch]
    most = max((row.exercise for row in rows if row.exercise), default=0)
    name = {
        row: (one_line(row.participant, 40), one_line(row.chapter, 40)) for row in rows
    }
    lines = [["participant", "chapter", *map(str, range(1, most + 1))]]
    lines += [
        [*name[batch[0]], *(row.verdict for row in batch)] for batch in batches if batch
    ]
    hints = [
        [*name[row], str(row.exercise), row.verdict, one_line(row.hint, 110)]
        for row in rows
        if row.hint
    ]
    people: dict[str, list[Row]] = {}
    exercises: dict[tuple, list[Row]] = {}
    for row in rows:
        people.setdefault(row.participant, []).append(row)
        if row.exercise:
            exercises.setdefault((row.chapter, row.exercise, row.question), []).append(
                row
            )
    totals = [[one_line(person, 40), counted(group)] for person, group in people.items()]
    by_exercise = []
    for chapter, number, question in sorted(exercises):
        group = exercises[chapter, number, question]
        said = Counter(row.hint for row in group if row.verdict == HINT).most_common(1)
        often = f"most often: {one_line(said[0][0], 70)}" if said else ""
        by_exercise.append(
            [f"{chapter} {number}", counted(group), one_line(question, 50), often]
        )
    text = table(lines)
    for title, part in (
        ("What the checks say", hints),
        ("By participant", totals),
        ("By exercise", by_exercise),
    ):
        text += ["", title, *table(part)] if part else []
    return "\n".join(text)


# --- the command ----------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str):
        """Print what is wrong and what to do; exit with 2."""
        self.exit(2, f"{self.prog}: {message}; --help shows what can be given\n")


def positive(text: str) -> float:
    """Return a number above 0; raise ArgumentTypeError otherwise."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line; leave with 2 where they are wrong."""
    parser = Parser(
        prog="python -m dlcourse.check",
        description="Check the exercises of participants' notebooks. This is no sandbox.",
    )
    parser.add_argument(
        "path", nargs="+", type=Path, help="a notebook, or a folder of them"
    )
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="write one row an exercise"
    )
    parser.add_argument(
        "--timeout",
        type=positive,
        metavar="S",
        help="seconds an exercise (60), with --full in all (300)",
    )
    parser.add_argument(
        "--memory", type=positive, default=4.0, metavar="GB", help="at most (4)"
    )
    parser.add_argument(
        "--jobs", type=positive, metavar="N", help="notebooks at a time (cores)"
    )
    parser.add_argument(
        "--full", action="store_true", help="run the whole notebook, every cell"
    )
    return parser.parse_args(arguments)


def cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def rows_in_order(tasks: list[Task], limits: Limits, jobs: int) -> Iterator[list[Row]]:
    """Yield the rows of each task in order; when closed or stopped, no process is left."""
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(check_task, task, limits, stop) for task in tasks]
        given = 0
        try:
            for future in futures:
                while not future.done():
                    concurrent.futures.wait([future], timeout=0.2)
                given += 1
                yield future.result()
        except KeyboardInterrupt:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            for future in futures[given:]:
                if not future.cancelled() and future.exception() is None:
                    yield future.result()
            raise
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def writer(path: Path | None) -> Iterator:
    """Give a function that appends rows to the CSV at `path`, or does nothing without
    one.
    """
    if path is None:
        yield lambda rows: None
        return
    if path.suffix == ".ipynb" or path.is_dir():
        raise Misuse(
            f"--csv {path} would not be a table; give a name such as results.csv"
        )
    try:
        file = open(path, "w", encoding="utf-8-sig", newline="")
    except OSError as error:
        raise Misuse(
            f"cannot write {path} ({error.strerror}); choose another --csv"
        ) from None
    with file:
        out = csv.writer(file)
        out.writerow(COLUMNS)

        def write(rows: list[Row]) -> None:
            out.writerows([safe(getattr(row, name)) for name in COLUMNS] for row in rows)
            file.flush()

        yield write


def progress(batches: Iterable, total: int) -> Iterable:
    """Show a bar over notebooks where standard error is a terminal."""
    if not sys.stderr.isatty():
        return batches
    from tqdm import tqdm

    return tqdm(batches, total=total, unit="notebook", leave=False)


def run(options: argparse.Namespace) -> int:
    """Check, print the report, and return the exit code; raise Misuse for wrong paths."""
    limits = Limits(
        options.timeout or (300.0 if options.full else 60.0), options.memory, options.full
    )
    notes: list[str] = []
    found = collect(options.path, notes)
    batches: list[list[Row]] = []
    with writer(options.csv) as write:
        try:
            tasks = [prepare(path, owner, notes) for path, owner in found]
            jobs = min(int(options.jobs or cores()) or 1, len(tasks))
            with contextlib.closing(rows_in_order(tasks, limits, jobs)) as done:
                for batch in progress(done, len(tasks)):
                    write(batch)
                    batches.append(batch)
        except KeyboardInterrupt:
            kept = f"; their rows are in {options.csv}" if options.csv else ""
            text = f"Stopped: {len(batches)} of {len(found)} notebooks checked{kept}."
            print(text, file=sys.stderr)
            return 130
    print(report(batches))
    for note in notes:
        print(f"note: {one_line(note)}")
    return 0 if all(row.verdict == PASS for batch in batches for row in batch) else 1


def interrupt(number, frame) -> None:
    """Treat a request to end like Ctrl-C, so that no process is left."""
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0 where all pass, 1 where not, 2 for misuse, 130 for
    Ctrl-C.
    """
    options = parse(arguments)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(errors="replace")
    try:
        return run(options)
    except Misuse as error:
        print(f"python -m dlcourse.check: {error}", file=sys.stderr)
    except BrokenPipeError:  # the reader of the report has left: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(
            f"python -m dlcourse.check: {error}; free the disk or choose another place",
            file=sys.stderr,
        )
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
