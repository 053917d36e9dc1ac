"""The check of handed-in notebooks: it finds answers, judges them itself, and survives
anything.
"""

from __future__ import annotations

import ast
import asyncio
import csv
import functools
import importlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from processes import alive

from dlcourse.lab import warm
from dlcourse.workshop import check, kernels, reading, running, table
from dlcourse.workshop.judging import BLANK, ERROR, HINT, PASS
from dlcourse.workshop.reading import Cell, Task
from dlcourse.workshop.running import GONE, Limits

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "chapters").glob("[0-9][0-9]_*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.stem[3:] not in reading.GUIDES]
POSIX = pytest.mark.skipif(os.name == "nt", reason="forks and signals")


# --- one kernel for many notebooks ----------------------------------------------------------------


class Warm(running.Kernel):
    """A kernel that several notebooks use one after the other, each in empty names."""

    ready: Warm | None = None
    broken = False

    async def start(self) -> None:
        """Start it, unless it runs."""
        if not self.manager.has_kernel:
            await super().start()

    async def run(self, source: str, seconds: float, ours: bool = False) -> tuple:
        """Run a cell; note where that ends the kernel."""
        try:
            return await super().run(source, seconds, ours)
        except BaseException:
            self.broken = True
            raise

    async def end(self) -> None:
        """Empty its names and leave it running, but not where it has died or hangs."""
        if not self.broken:
            # frozen: the next %reset need not look for garbage among all that torch made
            empty = "%reset -f\n__import__('gc').freeze()"
            await self.run(empty, running.START_LIMIT, ours=True)
        if self.broken:
            await self.close()

    async def close(self) -> None:
        """End it."""
        Warm.ready = None
        await super().end()

    @classmethod
    def give(cls) -> Warm:
        """Return the kernel that runs, or a new one."""
        cls.ready = cls.ready or cls()
        return cls.ready


@pytest.fixture(scope="module")
def loop():
    """Give an event loop; the warm kernel ends with it."""
    loop = asyncio.new_event_loop()
    yield loop
    if Warm.ready:
        loop.run_until_complete(Warm.ready.close())
    loop.close()


def task_of(cells: list[Cell], technique="learning_rate_decay") -> Task:
    """Return a task of cells; it holds what `prepare` would find in a file."""
    task = Task(Path("anna.ipynb"), "anna", technique=technique, cells=cells)
    task.questions = reading.questions_of(technique)
    reading.find_answers(task, [])
    return task


@pytest.fixture
def judged(loop):
    """Give a function that returns (verdict, hint) of one exercise (by default: rescale a
    rate) in cells of these sources.
    """

    def judge(*sources: str, number: int = 2, full=False, cell=30) -> tuple[str, str]:
        cells = [Cell(n, source) for n, source in enumerate(sources, 2)]
        limits = Limits(cell=cell, full=full)
        done = running.judge_task(task_of(cells), limits, Warm.give)
        verdict, hint, _ = loop.run_until_complete(done)[number]
        return verdict, hint

    return judge


# --- notebooks ------------------------------------------------------------------------------------


def source_of(answer, name: str, module) -> tuple[str, str]:
    """Return (code that defines an answer of a module, expression for it)."""
    plain = (
        inspect.isfunction(answer)
        and answer.__name__ != "<lambda>"
        and not answer.__closure__
    )
    if not plain or answer.__module__ != module.__name__:  # a library's own, say
        return f"import {module.__name__} as own", f"own.{name}"
    text = inspect.getsource(answer)
    words = {part.id for part in ast.walk(ast.parse(text)) if isinstance(part, ast.Name)}
    used = sorted(word for word in words if hasattr(module, word))
    taken = f"from {module.__name__} import {', '.join(used)}\n" if used else ""
    return taken + text, answer.__name__


def with_answer(cells: list[Cell], index: int, text: str, expression: str) -> list[Cell]:
    """Return a chapter's cells with an answer put in place of the dots of one exercise."""
    calls = [
        name for cell in cells for at, name in reading.sites(cell.source) if at == index
    ]
    line = re.compile(rf"^{calls[0]}\s*=.*$", re.M)
    answer = f"{text}\n{calls[0]} = {expression}"
    changed, count = [], 0
    for cell in cells:
        source, found = line.subn(lambda _: answer, cell.source)
        changed.append(Cell(cell.number, source, cell.unchanged and not found))
        count += found
    assert count == 1, f"exercise {index + 1} has no stub of the usual kind"
    return changed


CHAPTER = ROOT / "chapters" / "08_learning_rate_decay.ipynb"
THRESHOLD = "def your_threshold(curvatures):\n    return 2 / max(curvatures)"
RESCALE = (
    "def your_rescale(lr, batch_size, new_batch_size, optimizer):\n"
    "    k = new_batch_size / batch_size\n"
    "    return lr * (k if optimizer == 'sgd' else k**0.5)"
)
TOTAL = (
    "def your_total(rows, epochs, micro, accumulation, processes):\n"
    "    return epochs * -(-rows // (micro * accumulation * processes))"
)
WRONG = "def your_rescale(lr, batch_size, new_batch_size, optimizer):\n    return lr"
ASK = "_ = EXERCISES[{}].check({})"
USE = "from dlcourse.exercises.learning_rate_decay import EXERCISES"


def answered(*answers: str, whole=True) -> dict:
    """Return chapter 8 as JSON, with these in place of the cells of its exercises; where
    it is not the whole chapter, no more code is left than the imports.
    """
    book = json.loads(CHAPTER.read_text(encoding="utf-8"))
    if not whole:
        book["cells"] = [
            cell
            for cell in book["cells"]
            if cell["cell_type"] != "code" or "EXERCISES" in "".join(cell["source"])
        ]
    cells = [cell for cell in book["cells"] if "EXERCISES[" in "".join(cell["source"])]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    names = ("your_threshold", "your_rescale", "your_total")
    for index, (cell, name) in enumerate(zip(cells, names, strict=True)):
        if index < len(answers) and answers[index] is not None:
            call = "" if "EXERCISES" in answers[index] else "\n" + ASK.format(index, name)
            cell["source"] = answers[index] + call
    return book


# --- every chapter --------------------------------------------------------------------------------


def no_kernel():
    """Stand for a kernel where none may start."""
    raise AssertionError("a kernel was started")


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_blank_right_and_wrong(path, loop):
    task = reading.prepare(path, "anna", notes := [])
    name = path.stem[3:]
    module = importlib.import_module(f"dlcourse.exercises.{name}")
    assert task.technique == name and not notes and not task.problem
    assert task.asked == set(range(1, len(module.EXERCISES) + 1))
    blank = asyncio.run(running.judge_task(task, Limits(), no_kernel))
    assert set(blank.values()) == {(BLANK, "", 0.0)}
    tried = {}  # of each exercise: (what, answer, words of its hint)
    for number, exercise in enumerate(module.EXERCISES, 1):
        tried[number] = [("solve", exercise.solve, None)]
        for label, wrong in exercise.wrong.items():
            tried[number].append((f"wrong[{label!r}].answer", wrong.answer, wrong.hint))
    # A solution and one mistake each go through a kernel, the mistakes without the cells
    # that are no exercise's. All mistakes are checked in this process, by
    # tests/lab/test_lab_exercises.py.
    for turn in range(2):
        cells = task.cells
        if turn:
            cells = [cell for cell in cells if "EXERCISES" in cell.source]
        expected = {number: ("", "none", "") for number in tried}
        for number, answers in tried.items():
            if turn < len(answers):
                expected[number] = label, answer, _ = answers[turn]
                where = f"EXERCISES[{number - 1}].{label}"
                cells = with_answer(cells, number - 1, *source_of(answer, where, module))
        job = running.judge_task(task_of(cells, name), Limits(), Warm.give)
        for number, got in loop.run_until_complete(job).items():
            label, _, hint = expected[number]
            where = (number, label, got)
            if hint is None:
                assert got[:2] == (PASS, ""), where
            elif label:
                assert got.verdict in (HINT, ERROR) and hint in got.hint, where
            else:
                assert got.verdict == BLANK, where


def write(path: Path, *sources: str) -> Path:
    """Write a notebook of these code cells and return its path."""
    cells = list(map(nbformat.v4.new_code_cell, sources))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


# --- finding an answer ----------------------------------------------------------------------------

CHECK2 = ASK.format(1, "your_rescale")


@pytest.mark.parametrize(
    "sources",
    [
        (RESCALE, USE, CHECK2),
        (RESCALE.replace("your_rescale", "mine"), USE, "your_rescale = mine\n" + CHECK2),
        (
            USE,
            "import math\nfrom math import sqrt as root",
            RESCALE.replace("k**0.5", "root(k)"),
        )
        + (CHECK2,),
        (USE, RESCALE.replace("k**0.5", "math.sqrt(k)"), CHECK2, "import os, math"),
        (USE, "half = 1\nhalf /= 2", RESCALE.replace("0.5", "half"), CHECK2),
        (USE, "POWERS = {}", "POWERS['adam'] = 0.5")
        + (RESCALE.replace("0.5", "POWERS[optimizer]"), CHECK2),
        (
            USE,
            "POWERS = []",
            "POWERS.append(0.5)",
            RESCALE.replace("0.5", "POWERS[0]"),
            CHECK2,
        ),
        (USE, "def power():\n    return POWER", "POWER = 0.5")
        + (RESCALE.replace("0.5", "power()"), CHECK2),
        (
            "import dlcourse.exercises.learning_rate_decay as l\n" + RESCALE,
            CHECK2.replace("EX", "l.EX"),
        ),
        ("import dlcourse.learning_rate_decay", RESCALE)
        + (CHECK2.replace("EX", "dlcourse.learning_rate_decay.EX"),),
        (USE + " as EX", RESCALE, "EX[1].check(your_rescale)"),
        (USE, RESCALE, "second = EXERCISES[1]", "second.check(answer=your_rescale)"),
        (USE, RESCALE, "print(EXERCISES[-2].hint_for(your_rescale))"),
        (
            USE,
            "%%time\n!pip install nothing\n" + RESCALE,
            "%matplotlib inline\n" + CHECK2,
        ),
        (USE, "from math import *", RESCALE.replace("k**0.5", "sqrt(k)"), CHECK2),
        (
            USE,
            "from __future__ import annotations\n" + RESCALE.replace("lr,", "lr: Rate,"),
            CHECK2,
        ),
        (USE, "your_rescale = ...\n" + RESCALE + "\n" + CHECK2),
        (USE, "your_rescale = ...\n" + CHECK2, RESCALE),  # below the check
        (USE, "def rescale(a, b, c, d): ...\nyour_rescale = rescale\n" + CHECK2)
        + (RESCALE.replace("your_", ""),),  # by the name in the question
        # fails, is not needed
        (USE, "with open(__file__) as f:\n    pass", RESCALE, CHECK2),
        (USE, "rescale = train_for_an_hour()", RESCALE.replace("your_", ""))
        + (CHECK2.replace("your_", ""),),  # a name in use before
        (
            USE,
            "try:\n    from nowhere import sqrt\nexcept ImportError:\n    from math import sqrt",
        )
        + (RESCALE.replace("k**0.5", "sqrt(k)"), CHECK2),
        # tests of their own
        (USE, RESCALE + "\nprint(your_rescale())\nassert False\n" + CHECK2),
        (USE, CHECK2, WRONG + "\n" + CHECK2, RESCALE + "\n" + CHECK2),  # several attempts
        (USE, RESCALE + "\n" + CHECK2, WRONG + "\n" + CHECK2),
        (RESCALE,),  # the check is gone
    ],
)
def test_a_right_answer_is_found(sources, judged):
    assert judged(*sources) == (PASS, "")


@pytest.mark.parametrize(
    ("sources", "verdict", "words"),
    [
        ((USE, "your_rescale = ...\n" + CHECK2), BLANK, ""),
        (
            (USE, "def your_rescale(a):\n    '''Say.'''\n    ...\n", CHECK2),
            BLANK,
            "",
        ),
        ((USE, "your_rescale = lambda *a: ...\n" + CHECK2), BLANK, ""),
        ((USE,), BLANK, GONE),
        ((USE, WRONG, CHECK2), HINT, "you kept the rate"),
        ((USE, "your_rescale = 3\n" + CHECK2), ERROR, "TypeError"),
        (
            (USE, "your_rescale = 3\n+\n" + CHECK2),
            ERROR,
            "cell 3, line 2: SyntaxError",
        ),
        (
            (USE, "def your_rescale(:\n  pass", CHECK2),
            ERROR,
            "cell 3, line 1: SyntaxError",
        ),
        ((USE, CHECK2), ERROR, "cell 3, line 1: NameError: name 'your_rescale'"),
        (
            (USE, RESCALE.replace("k**0.5", "helper(k)"), CHECK2),
            ERROR,
            "name 'helper'",
        ),
        (
            (
                USE,
                "import nowhere\n"
                + RESCALE.replace("k**0.5", "nowhere.f(k)")
                + "\n"
                + CHECK2,
            ),
        )
        + (ERROR, "cell 3, line 1: ModuleNotFoundError"),
        (
            ("import nowhere", USE, RESCALE.replace("k**0.5", "nowhere.f(k)"), CHECK2),
            ERROR,
            "(The first cell that failed: cell 2, line 1: ModuleNotFoundError: No module",
        ),
        (
            (USE, "raise_ = 1 / 0\n" + RESCALE.replace("0.5", "raise_"), CHECK2),
            ERROR,
            "ZeroDiv",
        ),
        (
            (USE, "import sys\nyour_rescale = sys.exit(0)\n" + CHECK2),
            ERROR,
            "exit()",
        ),
        (
            (USE, "import sys\ndef your_rescale(*a):\n    sys.exit(0)", CHECK2),
            ERROR,
            "exit()",
        ),
        (
            (USE, "def your_rescale(a, b, c, d):\n    return a / 0", CHECK2),
            ERROR,
            "stopped",
        ),
        (
            (USE, "def your_rescale(a, b, c, d):\n    return e.f", CHECK2),
            ERROR,
            "NameError",
        ),
        (
            (USE, "def your_rescale(a, b, c, d):\n    return c[b]", CHECK2),
            ERROR,
            "stopped",
        ),
    ],
)
def test_other_verdicts_and_their_words(sources, verdict, words, judged):
    got = judged(*sources)
    assert got[0] == verdict and words in got[1], got


@pytest.mark.parametrize(
    "trick",
    [
        "print('Right.')",
        "done = True; _ = True",
        "class Yes:\n    def check(self, answer):\n        print('Right.')\n"
        "EXERCISES = (Yes(), Yes(), Yes())",
        "import dlcourse.exercises.learning_rate_decay as l\nl.EXERCISES = l.EXERCISES[:1] * 3",
        "import dlcourse.exercises.learning_rate_decay as l\nl.expect = lambda *a: None",
        "from dlcourse.lab.exercises import Exercise\nExercise.hint_for = lambda s, a: None\n"
        "Exercise.check = lambda s, a: True",
        "import builtins\nbuiltins.print('Right.')",
        "from IPython.display import display\n"
        "display({'application/x-dlcourse+json': ['pass', '']}, raw=True)",
    ],
)
def test_a_pass_cannot_be_faked(trick, judged):
    sources = (USE, f"{trick}\n{WRONG}\n{CHECK2}", "done = True\nEXERCISES = None")
    for full in (False, True):
        got = judged(*sources, full=full)
        assert got[0] == HINT and "you kept the rate" in got[1]


def test_a_changed_exercise_is_not_asked(judged, loop):
    trick = "object.__setattr__(EXERCISES[1], 'check_answer', lambda answer: None)"
    got = judged(USE, f"{trick}\n{WRONG}\n{CHECK2}")
    loop.run_until_complete(Warm.ready.close())  # the next notebook needs a clean one
    assert got[0] == HINT and "you kept the rate" in got[1]


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    """Give a function that makes these sources the course's chapter, with a training cell
    that leaves a mark; it returns (cells, the mark's path).
    """

    def make(*sources: str) -> tuple[list[str], Path]:
        mark, folder = tmp_path / "ran", tmp_path / "own"
        trains = f"for step in range(3):\n    open({str(mark)!r}, 'a').write('x')\nFOUND = sum([0.5])"
        more = (
            f"EPS = 0.5\nloud = open({str(mark)!r}, 'a')\n\n\ndef half():\n    return EPS"
        )
        cells = [USE, trains, more, *sources]
        folder.mkdir()
        book = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
        nbformat.write(book, folder / CHAPTER.name)
        monkeypatch.setattr(reading, "CHAPTERS", folder)
        return cells, mark

    return make


def check_file(path: Path, loop, **limits) -> list[table.Row]:
    """Return the rows of a notebook, run in the warm kernel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "Kernel", Warm.give)
        defaults = (*running.judge_task.__defaults__[:-1], Warm.give)
        patch.setattr(running.judge_task, "__defaults__", defaults)
        job = check.rows_of(reading.prepare(path, "anna", []), Limits(**limits))
        return loop.run_until_complete(job)


STUB = "your_rescale = ...\n" + CHECK2


@pytest.mark.parametrize(
    ("power", "full", "runs"),
    [("0.5", False, 0), ("half()", False, 0), ("FOUND", False, 3), ("0.5", True, 3)],
)
def test_only_what_is_needed_runs(tmp_path, loop, chapter, power, full, runs):
    cells, mark = chapter(STUB)
    cells[-1] = RESCALE.replace("0.5", power) + "\n" + CHECK2
    path = write(tmp_path / CHAPTER.name, *cells)
    rows = check_file(path, loop, full=full)
    assert [row.verdict for row in rows] == [BLANK, PASS, BLANK]
    assert (len(mark.read_text()) if mark.exists() else 0) == runs


def test_a_name_that_no_cell_has_does_not_train_the_chapter(tmp_path, loop, chapter):
    cells, mark = chapter(STUB)
    cells[-1] = RESCALE.replace("0.5", "helper()") + "\n" + CHECK2
    row = check_file(write(tmp_path / CHAPTER.name, *cells), loop)[1]
    assert row.verdict == ERROR and "name 'helper'" in row.hint
    assert not mark.exists()


def test_the_chapters_own_function_is_no_answer(tmp_path, loop, chapter):
    cells, _ = chapter(RESCALE.replace("your_", ""), STUB)
    path = write(tmp_path / CHAPTER.name, *cells, "more = 1")
    assert [row.verdict for row in check_file(path, loop)] == [BLANK] * 3


def test_a_stub_and_its_check_in_two_cells_in_mid_chapter(tmp_path, loop, chapter):
    cells, mark = chapter("your_own = ...", CHECK2.replace("your_rescale", "your_own"))
    cells[-2] = RESCALE.replace("your_rescale", "your_own")
    path = write(tmp_path / CHAPTER.name, *cells, "other = 1")
    assert check_file(path, loop)[1].verdict == PASS
    assert not mark.exists()


def test_shell_lines_do_not_run(tmp_path, judged):
    mark = tmp_path / "ran"
    sources = (f"!touch {mark}", f"%%bash\ntouch {mark}", f"x = !touch {mark}")
    assert judged(USE, *sources, f"%system touch {mark}", RESCALE, CHECK2) == (PASS, "")
    assert not mark.exists()


@POSIX
def test_an_import_of_launch_starts_no_helper(judged):
    none = "from dlcourse.lab import launching, warm\nimport os\n"
    # nor may it borrow one, which has no bound of memory
    none += "assert not warm._helpers and warm._borrowed() is None\n"
    assert judged(USE, none + RESCALE, CHECK2) == (PASS, "")


def test_statements_that_change_a_needed_object_run_in_their_order(judged):
    sources = (
        USE,
        "A = [1]",
        "A.append(0.5)",
        "A[0] = A[1]",
        RESCALE.replace("0.5", "A[0]"),
        CHECK2,
    )
    assert judged(*sources)[0] == PASS
    swapped = (*sources[:2], "A[0] = A[-1]", "A.append(0.5)", *sources[4:])
    assert judged(*swapped)[0] == HINT


def test_the_answers_of_one_cell_do_not_mix(judged):
    cell = f"{THRESHOLD}\n{ASK.format(0, 'your_threshold')}\n{WRONG}\n{CHECK2}"
    assert judged(USE, cell, number=1)[0] == PASS
    assert judged(USE, cell, number=2)[0] == HINT
    assert judged(USE, cell, number=3) == (BLANK, GONE)


def test_a_chapter_in_the_opposite_order(tmp_path, loop):
    book = answered(THRESHOLD, RESCALE, TOTAL)
    path = tmp_path / CHAPTER.name
    path.write_text(json.dumps(book | {"cells": book["cells"][::-1]}), encoding="utf-8")
    assert [row.verdict for row in check_file(path, loop)] == [PASS] * 3


def test_a_chapter_without_its_exercises(tmp_path, loop):
    book = answered()
    left = [cell for cell in book["cells"] if "EXERCISES[" not in "".join(cell["source"])]
    path = tmp_path / CHAPTER.name
    path.write_text(json.dumps(book | {"cells": left}), encoding="utf-8")
    rows = check_file(path, loop)
    assert [(row.verdict, row.hint) for row in rows] == [(BLANK, GONE)] * 3
    cell = nbformat.v4.new_code_cell(RESCALE)
    path.write_text(json.dumps(book | {"cells": [cell, *left]}), encoding="utf-8")
    rows = check_file(path, loop)
    assert [row.verdict for row in rows] == [BLANK, PASS, BLANK]
    assert [row.hint for row in rows] == [GONE, "", GONE]


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("import a\nb = a.train()\nc = 3", "import a\nc = 3"),
        ("def f():\n    return g()\n\n\nf()", "def f():\n    return g()"),
        ("class C(B):\n    pass\nfor i in x: train()", "class C(B):\n    pass"),
        ("no python", ""),
        ("%%time\nx = 1", ""),
    ],
)
def test_what_is_kept_of_a_cell_of_the_chapter(source, kept):
    assert Cell(1, source, True).definitions() == kept


@pytest.mark.parametrize(
    ("source", "technique"),
    [
        (
            "from dlcourse.exercises import warmup, learning_rate_decay as d\nd.EXERCISES[0]",
            "learning_rate_decay",
        ),
        ("import numpy", ""),
        (
            "from dlcourse.exercises import warmup\nfrom dlcourse.lab import claims",
            "warmup",
        ),
        (USE, "learning_rate_decay"),
    ],
)
def test_the_chapter_is_found_from_its_code(source, technique):
    assert reading.technique_in(source) == technique


def test_the_chapter_is_found_from_its_name():
    assert reading.named(Path("x/anna__13_warmup (1).ipynb")) == "warmup"
    assert reading.named(Path("notes.ipynb")) == ""


# --- files ----------------------------------------------------------------------------------------


CONFLICT = b'{"cells": [\n<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> theirs\n]}'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty .0 bytes.*; ask for it again"),
        (CONFLICT, "has merge-conflict marks .<<<<<<<"),
        (b"{", "is no valid notebook"),
        (b"[]", "is no valid notebook"),
        (b'{"cells": 3}', "is no valid notebook"),
        (b'{"cells": [1], "nbformat": 4, "nbformat_minor": 5}', "is no valid notebook"),
        (b"\xff\xfe\x00", "is no valid notebook"),
        (b"[" * 100_000, "is no valid notebook"),
    ],
)
def test_an_unreadable_file_is_said_so(tmp_path, content, words):
    path = tmp_path / "04_gradient_clipping.ipynb"
    path.write_bytes(content)
    with pytest.raises(reading.Unreadable, match=words):
        reading.load_book(path)
    task = reading.prepare(path, "anna", [])
    (row,) = asyncio.run(check.rows_of(task, Limits()))
    assert row.verdict == ERROR and row.exercise == ""
    assert row.hint.startswith("04_gradient_clipping.ipynb ") and "\n" not in row.hint


@pytest.mark.parametrize(
    "source",
    [
        "x = " + " + ".join(["1"] * 900),
        "x = " + "(" * 150 + ")" * 150,
        "x = '\x00'",
        "f" * 10**6,
    ]
    + [
        "-" * 3000 + "1",
        "x = [" * 90 + "]" * 90,
        "return 1",
        "await f()",
        "\ud800",
        "f" + "\n" * 10**5 + "(",
    ],
)
def test_a_strange_cell_stops_nothing(tmp_path, source, judged):
    path = tmp_path / CHAPTER.name
    book = answered()
    cell = {"cell_type": "code", "source": source, "outputs": [], "metadata": {}}
    book["cells"].insert(3, cell | {"execution_count": None, "id": "strange"})
    path.write_text(json.dumps(book), encoding="utf-8")
    task = reading.prepare(path, "anna", [])
    assert not task.problem and len(task.questions) == 3
    # one of them gets no answer from the kernel: its time has to pass
    assert judged(USE, source, RESCALE, CHECK2, cell=6) == (PASS, "")


def test_an_error_of_the_check_itself_is_one_row(tmp_path, monkeypatch):
    path = tmp_path / CHAPTER.name
    path.write_text(json.dumps(answered()), encoding="utf-8")
    told = f"{CHAPTER.name} cannot be checked (ZeroDivisionError: division by zero)"
    with monkeypatch.context() as patch:
        patch.setattr(running, "judge_task", lambda *a: 1 / 0)
        task = reading.prepare(path, "anna", [])
        (row,) = asyncio.run(check.rows_of(task, Limits()))
        assert (row.verdict, row.hint) == (ERROR, told)
    monkeypatch.setattr(reading, "find_answers", lambda *a: 1 / 0)
    task = reading.prepare(path, "anna", [])
    (row,) = asyncio.run(check.rows_of(task, Limits()))
    assert (row.verdict, row.hint) == (ERROR, told)


def test_a_kernel_that_does_not_start_is_one_row(tmp_path, monkeypatch):
    path = tmp_path / CHAPTER.name
    path.write_text(json.dumps(answered(RESCALE)), encoding="utf-8")
    nowhere = running.KernelSpec(argv=["/nowhere/python"])
    monkeypatch.setattr(running.OwnPython, "get_kernel_spec", lambda *a: nowhere)
    (row,) = asyncio.run(check.rows_of(reading.prepare(path, "anna", []), Limits()))
    assert row.verdict == ERROR and "cannot be checked" in row.hint


def test_whose_notebook_it_is(tmp_path):
    def put(name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        return path

    put("class/anna/04_gradient_clipping.ipynb")
    put("class/anna/.ipynb_checkpoints/04_gradient_clipping-checkpoint.ipynb")
    put("class/李雷/chapters/13_warmup.ipynb")
    put("class/notes/readme.txt")
    put("flat/ben__04_gradient_clipping.ipynb")
    put("flat/c__d__homework.ipynb")
    put("flat/backup/04_gradient_clipping.ipynb")
    notes = []

    def names(*paths):
        found = reading.collect([tmp_path / path for path in paths], notes)
        return [(owner, path.name) for path, owner in found]

    anna = ("anna", "04_gradient_clipping.ipynb")
    assert names("class") == [anna, ("李雷", "13_warmup.ipynb")]
    assert notes == ["notes has no notebooks."]
    assert names("class/anna") == names("class/anna/04_gradient_clipping.ipynb") == [anna]
    assert names("class/anna", "class") == names("class")
    assert names("flat") == [
        ("ben", "ben__04_gradient_clipping.ipynb"),
        ("flat", "c__d__homework.ipynb"),
        ("flat/backup", "04_gradient_clipping.ipynb"),
    ]
    (tmp_path / "empty").mkdir()
    for path, words in (
        ("empty", "holds no"),
        ("gone", "not exist"),
        ("class/notes/readme.txt", ".ip"),
    ):
        with pytest.raises(reading.Misuse, match=words):
            names(path)


def test_an_old_copy_and_a_wrong_name_are_noted(tmp_path):
    notes = []
    old = answered(THRESHOLD + "\nEXERCISES[7].check(your_threshold)")
    for name, book in (
        ("08_learning_rate_decay.ipynb", old),
        ("13_warmup.ipynb", answered()),
    ):
        path = tmp_path / name
        path.write_text(json.dumps(book), encoding="utf-8")
        task = reading.prepare(path, "anna", notes)
        assert task.chapter == "08_learning_rate_decay" and not task.problem
    assert "another version of the chapter" in notes[0]
    assert "named after warmup, but it holds learning_rate_decay" in notes[1]
    changed = json.dumps(answered()).replace("Write rescale(", "Write rescale_it(")
    path.write_text(changed, encoding="utf-8")
    reading.prepare(path, "anna", notes)
    assert "another version of the chapter" in notes[-1]


@pytest.mark.parametrize("name", reading.GUIDES)
def test_a_guide_has_nothing_to_check(tmp_path, name):
    real = [path for path in NOTEBOOKS if path.stem[3:] == name]
    path = tmp_path / f"00_{name}.ipynb"
    path.write_text(real[0].read_text(encoding="utf-8") if real else json.dumps(FOREIGN))
    notes = []
    task = reading.prepare(path, "anna", notes)
    assert not task.problem and asyncio.run(check.rows_of(task, Limits())) == []
    assert notes == [f"{path}: a guide; it has no exercises to check."]
    assert table.report([[]]) == "participant  chapter"


# --- telling --------------------------------------------------------------------------------------


def test_a_spreadsheet_sees_no_formula():
    for text in (
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r\n=1",
        "\uff1d1",
        " =1",
        "\x00=1",
    ):
        assert table.safe(text).startswith("'")
    assert (
        table.safe("李雷") == "李雷"
        and table.safe(0.25) == "0.2"
        and table.safe(3) == "3"
    )
    assert table.safe("a\nb\x1b[31m\ud800") == "a b [31m"
    assert len(table.safe("x" * 10_000)) == table.LONGEST


def test_the_report():
    def rows(person, *verdicts):
        return [
            table.Row(
                person,
                "04_x",
                n,
                f"Write f{n}(x)",
                v,
                "Think." if v == HINT else "",
            )
            for n, v in enumerate(verdicts, 1)
        ]

    unread = [table.Row("carl", "05_y", "", "", ERROR, "05_y.ipynb is no notebook")]
    text = table.report(
        [
            rows("anna", "pass", "hint"),
            rows("李雷", "pass", "time-out"),
            rows("ben", "pass", "hint"),
        ]
        + [unread]
    )
    assert text.splitlines() == [
        "participant  chapter  1      2",
        "anna         04_x     pass   hint",
        "李雷         04_x     pass   time-out",
        "ben          04_x     pass   hint",
        "carl         05_y     error",
        "",
        "What the checks say",
        "anna  04_x  2  hint   Think.",
        "ben   04_x  2  hint   Think.",
        "carl  05_y     error  05_y.ipynb is no notebook",
        "",
        "By participant",
        "anna  1 of 2 passed (1 hint)",
        "李雷  1 of 2 passed (1 time-out)",
        "ben   1 of 2 passed (1 hint)",
        "carl  0 of 0 passed; 1 notebook could not be checked",
        "",
        "By exercise",
        f"04_x 1  {'3 of 3 passed':34}  Write f1(x)",
        "04_x 2  0 of 3 passed (2 hint, 1 time-out)  Write f2(x)  most often: Think.",
    ]


# --- processes ------------------------------------------------------------------------------------


def command(*arguments) -> subprocess.CompletedProcess:
    """Run the command in a fresh Python, from start to end."""
    return subprocess.run(
        [sys.executable, "-m", "dlcourse.check", *map(str, arguments)],
        cwd=ROOT,
        env=own_environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=100,
    )


def own_environment() -> dict[str, str]:
    """Return the environment of a process that works on the files of this project."""
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}


COMMAND = "import runpy; runpy.run_module('dlcourse.check', run_name='__main__')"


class Lent:
    """A process whose kernels are forks of this process's helper, as it is itself: it
    starts no helper of its own, which takes five seconds.
    """

    def __init__(self, folder: Path, code: str, *arguments):
        env = running.Kernel().environment(folder) | own_environment() | warm.lend()
        self.files = folder / "out", folder / "errors"
        with open(self.files[0], "wb") as out, open(self.files[1], "wb") as errors:
            self.process = warm.start(
                [sys.executable, "-P", "-c", code, *map(str, arguments)],
                {"MPLBACKEND": kernels.BACKEND} | env,
                str(folder),
                kernels.IMPORTS,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
            )

    def end(self, seconds: float) -> tuple[int, str, str]:
        """Wait; return the exit code and what the process has printed."""
        try:
            code = self.process.wait(seconds)
        finally:
            self.process.kill()
        out, errors = (file.read_text(encoding="utf-8") for file in self.files)
        return code, out, errors


def gone(pids, seconds=5.0) -> bool:
    """Tell whether all these processes end within so many seconds."""
    end = time.monotonic() + seconds
    while any(map(alive, pids)):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def rows_of(path: Path) -> list[dict]:
    """Return the rows of a CSV."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


FOREIGN = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import numpy")])
FORK = """
import os, subprocess, sys, time
for start in (False, True) if FIRST else ():
    other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],
                             start_new_session=start)
    open(PIDS, 'a').write(f'{other.pid}\\n')
pid = os.fork() if FIRST else 1
if FIRST:
    open(PIDS, 'a').write(f'{os.getpid()}\\n')
    time.sleep(1.5 if pid else 600)
    FIRST.clear()
"""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """Check a workshop of 22 participants, most with a trouble of their own; return what
    came.
    """
    folder = tmp_path_factory.mktemp("workshop")
    hold, pids = folder / "in", folder / "pids"
    note = f"import os; open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
    forever = "def your_threshold(c):\n    " + note.replace("\n", "\n    ")
    fork = FORK.replace("PIDS", repr(str(pids))).replace("\n", "\n    ")
    last = RESCALE.splitlines()
    first, rest = last[0] + "\n    ", "\n" + "\n".join(last[1:])
    flood = [
        "import os",
        "for _ in range(20):",
        "    print('x' * 2**20); os.write(1, b'y' * 2**20)",
    ]
    crash = "def your_threshold(c):\n    import ctypes; ctypes.string_at(0)"
    short = functools.partial(answered, whole=False)  # its kernel has less to run
    people = {
        "anna": answered(THRESHOLD, first + "\n    ".join(flood) + rest, TOTAL),
        "loop": short(
            forever + "while True: pass", "FIRST = [1]\n" + first + fork + rest, TOTAL
        ),
        "ends": short(crash, RESCALE + "\nimport os; os._exit(0)", TOTAL),
        "syntax": short(
            "def your_threshold(c):\n    raise ValueError('of my own')",
            "def your_rescale(:\n" + ASK.format(1, "your_rescale"),
            TOTAL,
        ),
        "fake": short(
            "def your_threshold(c):\n    print('Right.')\n    return 1 / max(c)\nprint('Right.')",
            WRONG + "\nclass Y:\n    check = print\nEXERCISES = [Y()] * 3",
        ),
        "李雷": answered(),
        "memory": short(
            "open('left behind', 'w').write('x')\n" + THRESHOLD,
            first + "return bytearray(50 * 2**30)",
            "def your_total(*a):\n    return int(input())",
        ),
        "foreign": FOREIGN,
        "misnamed": answered(),
        "=cmd()": answered(),
        **{f"-{number}": answered() for number in range(11)},
    }
    for name, book in people.items():
        file = {"misnamed": "05_initialization", "foreign": "my notes"}.get(
            name, CHAPTER.stem
        )
        path = hold / name / f"{file}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(book), encoding="utf-8")
    (hold / "invalid").mkdir()
    (hold / "invalid" / CHAPTER.name).write_text('{"cells": [')
    (hold / "nobody").mkdir()
    table = folder / "results.csv"
    options = ("--csv", table, "--timeout", 4, "--jobs", 2, "--memory", 4)
    code, out, errors = Lent(folder, COMMAND, hold, *options).end(400)
    started = [int(line) for line in pids.read_text().split()] if pids.exists() else []
    by = {}
    for row in rows_of(table):
        by.setdefault(row["participant"], []).append(row)
    assert not errors, errors
    return {"out": out, "code": code, "by": by, "pids": started, "in": hold}


def verdicts(workshop, name: str) -> list[str]:
    """Return the verdicts of one participant."""
    return [row["verdict"] for row in workshop["by"][name]]


P, H, B, E, T = table.VERDICTS


ENDS = {
    1: "The process was ended by SIGSEGV.",
    2: "The notebook ended its process (exit code 0).",
}


@POSIX
@pytest.mark.parametrize(
    ("name", "expected", "hints"),
    [
        ("anna", [P, P, P], {}),
        ("loop", [T, P, P], {1: "Not done in 4 s."}),
        ("ends", [E, E, P], ENDS),
        ("syntax", [E, E, P], {2: "SyntaxError"}),
        ("fake", [H, H, B], {2: "you kept the rate"}),
        ("李雷", [B, B, B], {}),
        ("memory", [P, E, E], {2: "MemoryError"}),
        ("foreign", [E], {1: "not a chapter of this course"}),
        ("misnamed", [B, B, B], {}),
        ("'=cmd()", [B, B, B], {}),
        ("'-3", [B, B, B], {}),
        ("invalid", [E], {1: "is no valid notebook"}),
    ],
)
def test_each_participant_gets_the_verdict_they_deserve(workshop, name, expected, hints):
    if name == "memory" and sys.platform != "linux":
        pytest.skip("this system offers no limit on memory")
    assert verdicts(workshop, name) == expected, workshop["by"][name]
    for row, hint in hints.items():
        assert hint in workshop["by"][name][row - 1]["hint"]


@POSIX
def test_no_process_and_no_file_is_left(workshop):
    assert len(workshop["pids"]) == 5  # the loop; two children and two sides of a fork
    assert gone(workshop["pids"])
    assert not [path for path in workshop["in"].rglob("left behind*")]
    assert not Path(ROOT / "left behind").exists()


@POSIX
def test_the_report_and_the_exit_code_of_a_workshop(workshop):
    assert workshop["code"] == 1
    rows = [row for group in workshop["by"].values() for row in group]
    assert len(workshop["by"]) == 22 and len(rows) == 20 * 3 + 2
    assert list(rows[0]) == list(table.COLUMNS)
    assert all(re.fullmatch(r"\d+\.\d", row["seconds"]) for row in rows)
    out = workshop["out"]
    passed = sum(row["verdict"] == P for row in rows if row["exercise"] == "2")
    assert f"\n08_learning_rate_decay 2  {passed} of 20 passed (" in out
    assert "most often: " in out and "\nnote: nobody has no notebooks." in out
    assert "note: " + str(workshop["in"] / "misnamed") in out
    assert re.search(r"^anna +3 of 3 passed$", out, re.M)


@POSIX
def test_control_c_leaves_no_process_and_keeps_the_rows(tmp_path):
    pids, table = tmp_path / "pids", tmp_path / "rows.csv"
    loop = WRONG.replace(
        "return lr",
        f"import os; open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\n    while True: pass",
    )
    for name, book in (
        ("a", answered(THRESHOLD, whole=False)),
        ("b", answered(None, loop, whole=False)),
        ("c", answered()),
    ):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / CHAPTER.name).write_text(
            json.dumps(book), encoding="utf-8"
        )
    command = Lent(tmp_path, COMMAND, tmp_path / "in", "--csv", table, "--jobs", 1)
    end = time.monotonic() + 100
    while not pids.exists() and time.monotonic() < end:
        time.sleep(0.05)
    command.process.send_signal(signal.SIGINT)
    code, _, errors = command.end(120)
    assert code == 130, errors
    assert errors == f"Stopped: 1 of 3 notebooks checked; their rows are in {table}.\n"
    assert [(row["participant"], row["verdict"]) for row in rows_of(table)] == [
        ("a", P),
        ("a", B),
        ("a", B),
    ]
    assert gone([int(pid) for pid in pids.read_text().split()])


def test_exit_code_zero_with_the_whole_notebook(tmp_path):
    sources = ["x = 0.5\n1 / 0", USE]
    late = RESCALE.replace("0.5", "x")
    for index, text in enumerate((THRESHOLD, late, TOTAL)):
        name = re.match(r"def (\w+)", text)[1]
        sources.append(text + "\n" + ASK.format(index, name))
    path = write(tmp_path / "anna__08_learning_rate_decay.ipynb", *sources)
    done = command(path, "--full")
    assert done.returncode == 0 and not done.stderr, done
    assert "anna         08_learning_rate_decay  pass  pass  pass" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: path"),
        (["nowhere"], "nowhere does not exist"),
        (["."], "holds no notebooks"),
        (["book.ipynb", "--timeout", "0"], "'0' is no number above 0"),
        (["book.ipynb", "--jobs", "many"], "'many' is no number above 0"),
        (["book.ipynb", "--csv", "other.ipynb"], "would not be a table"),
        (["book.ipynb", "--csv", "missing/a.csv"], "cannot write missing"),
    ],
)
def test_misuse_is_one_line_and_exit_code_two(
    arguments, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    if arguments[:1] == ["book.ipynb"]:
        Path("book.ipynb").write_text(json.dumps(FOREIGN))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        code = check.main(arguments)
    except SystemExit as left:
        code = left.code
    finally:
        signal.signal(signal.SIGTERM, handler)
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert words in captured.err and captured.err.count("\n") == 1


def test_importing_the_check_imports_nothing_heavy():
    program = (
        "import sys, dlcourse.check\n"
        "sys.exit(bool({'torch', 'numpy', 'nbformat', 'nbclient', 'psutil'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_a_missing_library_is_one_line(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / CHAPTER.name, USE)
    monkeypatch.setitem(sys.modules, "nbclient", None)
    handler = signal.getsignal(signal.SIGTERM)
    assert check.main([str(path)]) == 2
    signal.signal(signal.SIGTERM, handler)
    told = "dlcourse-check: needs nbclient, which is not installed: "
    assert capsys.readouterr().err == told + "pip install 'dlcourse[notebooks]'\n"


@POSIX
def test_a_kernel_ends_with_the_process_that_started_it(tmp_path):
    program = """
import os
from jupyter_client.manager import KernelManager
from dlcourse.workshop.kernels import ForkedProvisioner
manager = KernelManager()
manager.provisioner = ForkedProvisioner(kernel_spec=manager.kernel_spec, parent=manager)
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=60)
print(manager.provisioner.pid, flush=True)
os._exit(0)
"""
    _, out, _ = Lent(tmp_path, program).end(100)
    assert gone([int(out)], seconds=20)
