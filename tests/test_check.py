"""The check of handed-in notebooks: it finds answers, judges them itself, and survives
anything.
"""

from __future__ import annotations

import ast
import copy
import csv
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

import pytest
from processes import alive

from dlcourse import check

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "chapters").glob("[0-9][0-9]_*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.stem[3:] not in check.GUIDES]
POSIX = pytest.mark.skipif(os.name == "nt", reason="forks and signals")


# --- notebooks ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def own_main():
    """Leave __main__ and the path as they were: answers run in this process in some
    tests.
    """
    main, path = sys.modules["__main__"], sys.path[:]
    yield
    sys.modules["__main__"], sys.path[:] = main, path


def code(*sources: str) -> list[check.Cell]:
    """Return code cells under the heading Exercises."""
    cells = [check.Cell(1, "markdown", "## Exercises")]
    return cells + [check.Cell(n, "code", source) for n, source in enumerate(sources, 2)]


def judged(*sources: str, number: int = 2, technique="learning_rate_decay", full=False):
    """Return the verdict of one exercise (by default: rescale a rate) in cells of these
    sources.
    """
    book = check.Book(code(*sources))
    runner = check.Runner(book, technique)
    if full:
        return next((v, h) for n, v, h in runner.judge_all() if n == number)
    return runner.judge(number)


def source_of(answer, name: str, module) -> tuple[str, str]:
    """Return (code that defines an answer of a module, expression for it)."""
    plain = (
        inspect.isfunction(answer)
        and answer.__name__ != "<lambda>"
        and not answer.__closure__
    )
    if not plain or answer.__module__ != module.__name__:  # a library's own, say
        return f"import dlcourse.{module.__name__[9:]}", f"{module.__name__}.{name}"
    text = inspect.getsource(answer)
    now, later, binds = check.names(ast.parse(text).body[0])
    used = [
        name
        for name in sorted(now | later)
        if hasattr(module, name) and name not in binds
    ]
    taken = f"from {module.__name__} import {', '.join(used)}\n" if used else ""
    return taken + text, answer.__name__


def with_answer(cells: list[check.Cell], index: int, text: str, expression: str):
    """Return a chapter's cells with an answer put in place of the dots of one exercise."""
    changed, count = [], 0
    for cell in cells:
        source = cell.source
        call = re.search(rf"EXERCISES\[{index}\]\.check\((\w+)\)", source)
        if cell.kind == "code" and call:
            line = re.compile(rf"^{call[1]}\s*=.*$", re.M)
            source, count = line.subn(
                lambda _, c=call: f"{text}\n{c[1]} = {expression}", source
            )
        changed.append(check.Cell(cell.number, cell.kind, source))
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


def answered(*answers: str) -> dict:
    """Return chapter 8 as JSON, with these in place of the cells of its exercises."""
    book = json.loads(CHAPTER.read_text(encoding="utf-8"))
    cells = [cell for cell in book["cells"] if "EXERCISES[" in "".join(cell["source"])]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    names = ("your_threshold", "your_rescale", "your_total")
    for index, (cell, name) in enumerate(zip(cells, names, strict=True)):
        if index < len(answers) and answers[index] is not None:
            call = "" if "EXERCISES" in answers[index] else "\n" + ASK.format(index, name)
            cell["source"] = answers[index] + call
    return book


# --- every chapter --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_blank_right_and_wrong(path):
    name = path.stem[3:]
    module = importlib.import_module(f"dlcourse.exercises.{name}")
    cells = check.cells_of(check.load_book(path))
    book, count = check.Book(cells), len(module.EXERCISES)
    assert book.module() == name and not book.broken
    assert {index for step in book.steps for index, _ in step.sites} == set(range(count))
    for number, exercise in enumerate(module.EXERCISES, 1):
        assert book.blank(number, exercise.question, count) == (check.BLANK, "")
        assert check.Runner(book, name).judge(number) == (check.BLANK, "")
        tried = [("solve", exercise.solve, None)]
        for label, wrong in exercise.wrong.items():
            tried.append((f"wrong[{label!r}].answer", wrong.answer, wrong.hint))
        for label, answer, hint in tried:
            text, expression = source_of(
                answer, f"EXERCISES[{number - 1}].{label}", module
            )
            changed = with_answer(cells, number - 1, text, expression)
            got = check.Runner(check.Book(changed), name).judge(number)
            if hint is None:
                assert got == (check.PASS, ""), (number, label)
            else:
                assert got[0] in (check.HINT, check.ERROR) and hint in got[1], (
                    number,
                    label,
                    got,
                )


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_no_cell_of_a_chapter_trains_for_an_answer(path):
    book = check.Book(check.cells_of(check.load_book(path)))
    module = importlib.import_module(f"dlcourse.exercises.{path.stem[3:]}")
    for number, exercise in enumerate(module.EXERCISES, 1):
        for group in book.programs(number, exercise.question, len(module.EXERCISES)):
            for program in group:
                assert {step.cell for step in program.steps} <= book.asked


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
        ("import nowhere, math", USE, RESCALE.replace("k**0.5", "math.sqrt(k)"), CHECK2),
        (RESCALE,),  # the check is gone
    ],
)
def test_a_right_answer_is_found(sources):
    assert judged(*sources) == (check.PASS, "")
    names_at_run_time = "from nowhere" in str(sources) or "__file__" in str(sources)
    late = "import os, math" in str(sources) or "hour()" in str(sources)
    if not names_at_run_time and not late and "import nowhere" not in str(sources):
        assert judged(*sources, full=True) == (check.PASS, "")


@pytest.mark.parametrize(
    ("sources", "verdict", "words"),
    [
        ((USE, "your_rescale = ...\n" + CHECK2), check.BLANK, ""),
        (
            (USE, "def your_rescale(a):\n    '''Say.'''\n    ...\n", CHECK2),
            check.BLANK,
            "",
        ),
        ((USE, "your_rescale = lambda *a: ...\n" + CHECK2), check.BLANK, ""),
        ((USE,), check.BLANK, check.GONE),
        ((USE, WRONG, CHECK2), check.HINT, "you kept the rate"),
        ((USE, "your_rescale = 3\n" + CHECK2), check.ERROR, "TypeError"),
        (
            (USE, "your_rescale = 3\n+\n" + CHECK2),
            check.ERROR,
            "cell 3, line 2: SyntaxError",
        ),
        (
            (USE, "def your_rescale(:\n  pass", CHECK2),
            check.ERROR,
            "cell 3, line 1: SyntaxError",
        ),
        ((USE, CHECK2), check.ERROR, "cell 3, line 1: NameError: name 'your_rescale'"),
        (
            (USE, RESCALE.replace("k**0.5", "helper(k)"), CHECK2),
            check.ERROR,
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
        + (check.ERROR, "cell 3, line 1: ModuleNotFoundError"),
        (
            (USE, "raise_ = 1 / 0\n" + RESCALE.replace("0.5", "raise_"), CHECK2),
            check.ERROR,
            "ZeroDiv",
        ),
        (
            (USE, "import sys\nyour_rescale = sys.exit(0)\n" + CHECK2),
            check.ERROR,
            "exit()",
        ),
        (
            (USE, "import sys\ndef your_rescale(*a):\n    sys.exit(0)", CHECK2),
            check.ERROR,
            "exit()",
        ),
        (
            (USE, "def your_rescale(a, b, c, d):\n    return a / 0", CHECK2),
            check.ERROR,
            "stopped",
        ),
        (
            (USE, "def your_rescale(a, b, c, d):\n    return e.f", CHECK2),
            check.ERROR,
            "NameError",
        ),
        (
            (USE, "def your_rescale(a, b, c, d):\n    return c[b]", CHECK2),
            check.ERROR,
            "stopped",
        ),
    ],
)
def test_other_verdicts_and_their_words(sources, verdict, words):
    got = judged(*sources)
    assert got[0] == verdict and words in got[1], got
    if "import nowhere" not in str(sources) and "raise_" not in str(sources):
        assert judged(*sources, full=True)[0] == verdict


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
    ],
)
def test_a_pass_cannot_be_faked(trick, monkeypatch):
    from dlcourse.exercises import learning_rate_decay
    from dlcourse.lab.exercises import Exercise

    for owner, name in (
        (Exercise, "hint_for"),
        (Exercise, "check"),
        (learning_rate_decay, "expect"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(learning_rate_decay, "EXERCISES", learning_rate_decay.EXERCISES)
    sources = (USE, f"{trick}\n{WRONG}\n{CHECK2}", "done = True\nEXERCISES = None")
    for full in (False, True):
        got = judged(*sources, full=full)
        assert got[0] == check.HINT and "you kept the rate" in got[1]


def test_only_what_is_needed_runs(tmp_path):
    mark = tmp_path / "ran"
    sources = (
        f"other = open({str(mark)!r}, 'w')",
        "for step in range(3):\n    open(" + repr(str(mark)) + ", 'w')",
        USE + f"\nimport nowhere\nEPS = 0.5\nopen({str(mark)!r}, 'w')",
        RESCALE.replace("0.5", "EPS") + "\n" + CHECK2,
    )
    assert judged(*sources) == (check.PASS, "")
    assert not mark.exists()
    judged(*sources, full=True)
    assert mark.exists()


def test_statements_that_change_a_needed_object_run_in_their_order():
    sources = (
        USE,
        "A = [1]",
        "A.append(0.5)",
        "A[0] = A[1]",
        RESCALE.replace("0.5", "A[0]"),
        CHECK2,
    )
    assert judged(*sources)[0] == check.PASS
    swapped = (*sources[:2], "A[0] = A[-1]", "A.append(0.5)", *sources[4:])
    assert judged(*swapped)[0] == check.HINT


def test_the_answers_of_one_cell_do_not_mix():
    cell = f"{THRESHOLD}\n{ASK.format(0, 'your_threshold')}\n{WRONG}\n{CHECK2}"
    assert judged(USE, cell, number=1)[0] == check.PASS
    assert judged(USE, cell, number=2)[0] == check.HINT
    assert judged(USE, cell, number=3) == (check.BLANK, check.GONE)


def test_a_chapter_in_the_opposite_order_or_without_its_exercises():
    book = answered(THRESHOLD, RESCALE, TOTAL)
    heading = next(c for c in book["cells"] if "## Exercises" in "".join(c["source"]))
    rest = [cell for cell in book["cells"] if cell is not heading]
    turned = check.Book(check.cells_of({"cells": [heading, *rest[::-1]]}))
    deleted = [c for c in answered()["cells"] if "EXERCISES[" not in "".join(c["source"])]
    deleted.insert(0, {"cell_type": "code", "source": RESCALE})
    left = check.Book(check.cells_of({"cells": deleted}))
    for number in (1, 2, 3):
        got = check.Runner(turned, "learning_rate_decay").judge(number)
        assert got == (check.PASS, "")
        got = check.Runner(left, "learning_rate_decay").judge(number)
        assert got == ((check.PASS, "") if number == 2 else (check.BLANK, check.GONE))


def test_names_of_a_statement():
    def of(text):
        return check.names(ast.parse(text).body[0])

    assert of("x = [i for i in r if (last := i)]") == ({"r"}, set(), {"x", "last"})
    assert of("x = {k: v for k, v in r.items()} | {s for s in t}") == (
        {"r", "t"},
        set(),
        {"x"},
    )
    assert of("x += y") == ({"x", "y"}, set(), {"x"})
    assert of("import a.b, c as d") == (set(), set(), {"a", "d"})
    assert of("x: int") == ({"int"}, set(), set())
    now, later, binds = of(
        "@deco\ndef f(x, y=z):\n    global g\n    g = x + h\n    return [q for _ in x]"
    )
    assert (now, later, binds) == ({"deco", "z"}, {"h", "q"}, {"f", "g"})
    now, later, binds = of(
        "class C(B):\n    a = k\n    def m(self):\n        return self.a + n"
    )
    assert (now - {"__name__"}, later, binds) == ({"B", "k"}, {"n"}, {"C"})
    assert check.touched(ast.parse("a.b[0].c = 1").body[0]) == {"a"}
    assert check.touched(ast.parse("for i in x: rows.append(i)").body[0]) == {"rows"}
    assert check.touched(ast.parse("def f():\n    rows.append(1)").body[0]) == set()


def test_magics_become_plain_python():
    assert check.plain("%%bash\nrm -rf x") == ""
    assert check.plain("%%time\nx = 1") == "\nx = 1"
    assert check.plain("x = 7 \\\n% 4") == "x = 7 \\\n% 4"
    assert (
        check.plain("if x:\n    %time f()\ny = !ls\nf?\n?g.h")
        == "if x:\n    pass\npass\npass\npass"
    )


def test_the_chapter_is_found_from_its_code():
    book = check.Book(
        code(
            "from dlcourse.exercises import warmup, learning_rate_decay as d\nd.EXERCISES[0]"
        )
    )
    assert book.module() == "learning_rate_decay"
    assert check.Book(code("import numpy")).module() is None
    assert check.Book(
        code("from dlcourse.exercises import warmup\nfrom dlcourse.lab import claims")
    ).module() == ("warmup")
    assert check.named(Path("x/anna__13_warmup (1).ipynb")) == "warmup"
    assert check.named(Path("notes.ipynb")) == ""


def test_section_ends_at_the_next_heading():
    cells = [
        check.Cell(1, "markdown", "## Idea\n```\n## Exercises\n```"),
        check.Cell(2, "code", ""),
        check.Cell(3, "markdown", "text\n\n## Exercises  \nmore"),
        check.Cell(4, "code", "## Idea"),
        check.Cell(5, "markdown", "### Sub"),
        check.Cell(6, "markdown", "## In one minute"),
        check.Cell(7, "code", ""),
    ]
    assert check.section(cells, "Exercises") == {3, 4, 5}


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"cells": 3}',
        b'{"cells": [1]}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
    ],
)
def test_an_unreadable_file_is_said_so(tmp_path, content):
    path = tmp_path / "04_gradient_clipping.ipynb"
    path.write_bytes(content)
    with pytest.raises(check.Unreadable):
        check.load_book(path)
    task = check.prepare(path, "anna", [])
    (row,) = check.check_task(task, check.Limits(), None)
    assert row.verdict == check.ERROR and row.hint.startswith(
        "04_gradient_clipping.ipynb "
    )


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
def test_a_strange_cell_stops_nothing(tmp_path, source):
    path = tmp_path / CHAPTER.name
    book = answered()
    book["cells"].insert(3, {"cell_type": "code", "source": source})
    path.write_text(json.dumps(book), encoding="utf-8")
    (row, *_) = check.check_task(check.prepare(path, "anna", []), check.Limits(), None)
    assert row.verdict == check.BLANK
    assert judged(USE, source, RESCALE, CHECK2) == (check.PASS, "")


def test_an_error_of_the_check_itself_is_one_row(tmp_path, monkeypatch):
    path = tmp_path / CHAPTER.name
    path.write_text(json.dumps(answered()), encoding="utf-8")
    monkeypatch.setattr(check.Book, "blank", lambda *a: 1 / 0)
    (row,) = check.check_task(check.prepare(path, "anna", []), check.Limits(), None)
    assert (
        row.hint
        == f"{CHAPTER.name} cannot be checked (ZeroDivisionError: division by zero)"
    )


def test_cells_of_any_shape():
    book = {
        "cells": [
            {},
            {"cell_type": "code", "source": ["a\n", 3], "outputs": [4, {"text": 5}]},
        ]
    }
    assert check.cells_of(book) == [
        check.Cell(1, "None", ""),
        check.Cell(2, "code", "a\n"),
    ]


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
        found = check.collect([tmp_path / path for path in paths], notes)
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
        with pytest.raises(check.Misuse, match=words):
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
        task = check.prepare(path, "anna", notes)
        assert task.chapter == "08_learning_rate_decay" and not task.problem
    assert "another version of the chapter" in notes[0]
    assert "named after warmup, but it holds learning_rate_decay" in notes[1]
    changed = json.dumps(answered()).replace("Write rescale(", "Write rescale_it(")
    path.write_text(changed, encoding="utf-8")
    check.prepare(path, "anna", notes)
    assert "another version of the chapter" in notes[-1]


@pytest.mark.parametrize("name", check.GUIDES)
def test_a_guide_has_nothing_to_check(tmp_path, name):
    real = [path for path in NOTEBOOKS if path.stem[3:] == name]
    path = tmp_path / f"00_{name}.ipynb"
    path.write_text(real[0].read_text(encoding="utf-8") if real else json.dumps(FOREIGN))
    notes = []
    task = check.prepare(path, "anna", notes)
    assert not task.problem and check.check_task(task, check.Limits(), None) == []
    assert notes == [f"{path}: a guide; it has no exercises to check."]
    assert check.report([[]]) == "participant  chapter"


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
        assert check.safe(text).startswith("'")
    assert (
        check.safe("李雷") == "李雷"
        and check.safe(0.25) == "0.2"
        and check.safe(3) == "3"
    )
    assert check.safe("a\nb\x1b[31m\ud800") == "a b [31m"
    assert len(check.safe("x" * 10_000)) == check.LONGEST


def test_the_report():
    def rows(person, *verdicts):
        return [
            check.Row(
                person,
                "04_x",
                n,
                f"Write f{n}(x)",
                v,
                "Think." if v == check.HINT else "",
            )
            for n, v in enumerate(verdicts, 1)
        ]

    unread = [check.Row("carl", "05_y", "", "", check.ERROR, "05_y.ipynb is no notebook")]
    text = check.report(
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


def command(*arguments, **options) -> subprocess.Popen:
    """Start the command in a fresh Python."""
    return subprocess.Popen(
        [sys.executable, "-m", "dlcourse.check", *map(str, arguments)],
        cwd=options.pop("cwd", ROOT),
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        **options,
    )


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


FOREIGN = {"cells": [{"cell_type": "code", "source": "import numpy", "outputs": []}]}
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
    right = (THRESHOLD, RESCALE, TOTAL)
    note = f"import os; open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
    forever = WRONG.replace(
        "return lr", note.replace("\n", "") + "\n    while True: pass"
    )
    fork = FORK.replace("PIDS", repr(str(pids))).replace("\n", "\n    ")
    last = RESCALE.splitlines()
    flood = [
        "import os",
        "for _ in range(20):",
        "    print('x' * 2**20); os.write(1, b'y' * 2**20)",
    ]
    first = last[0] + "\n    "
    people = {
        "anna": answered(*right),
        "loop": answered(THRESHOLD, forever, TOTAL),
        "fork": answered(
            THRESHOLD, "FIRST = [1]\n" + first + fork + "\n" + "\n".join(last[1:])
        ),
        "leave": answered(THRESHOLD, first + "import os; os._exit(0)", TOTAL),
        "crash": answered(THRESHOLD, first + "import ctypes; ctypes.string_at(0)", TOTAL),
        "syntax": answered(
            "def your_threshold(c):\n    raise ValueError('of my own')",
            "def your_rescale(:\n" + ASK.format(1, "your_rescale"),
            TOTAL,
        ),
        "fake": answered(
            "def your_threshold(c):\n    print('Right.')\n    return 1 / max(c)\nprint('Right.')",
            WRONG + "\nclass Y:\n    check = print\nEXERCISES = [Y()] * 3",
        ),
        "李雷": answered(None, first + "\n    ".join(flood) + "\n" + "\n".join(last[1:])),
        "memory": answered(
            "open('left behind', 'w').write('x')\n" + THRESHOLD,
            first + "return bytearray(50 * 2**30)",
            "def your_total(*a):\n    return int(input())",
        ),
        "foreign": FOREIGN,
        "misnamed": answered(),
        "=cmd()": answered(),
        **{f"-{number}": answered() for number in range(9)},
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
    process = command(
        hold, "--csv", table, "--timeout", 6, "--jobs", 2, "--memory", 4, cwd=folder
    )
    out, errors = process.communicate(timeout=400)
    started = [int(line) for line in pids.read_text().split()] if pids.exists() else []
    by = {}
    for row in rows_of(table):
        by.setdefault(row["participant"], []).append(row)
    assert not errors, errors
    return {"out": out, "code": process.returncode, "by": by, "pids": started, "in": hold}


def verdicts(workshop, name: str) -> list[str]:
    """Return the verdicts of one participant."""
    return [row["verdict"] for row in workshop["by"][name]]


P, H, B, E, T = check.VERDICTS


@POSIX
@pytest.mark.parametrize(
    ("name", "expected", "hint"),
    [
        ("anna", [P, P, P], ""),
        ("loop", [P, T, P], "Not done in 6 s."),
        ("fork", [P, P, B], ""),
        ("leave", [P, E, P], "The notebook ended its process (exit code 0)."),
        ("crash", [P, E, P], "The process was ended by SIGSEGV."),
        ("syntax", [E, E, P], "SyntaxError"),
        ("fake", [H, H, B], "you kept the rate"),
        ("李雷", [B, P, B], ""),
        ("memory", [P, E, E], "MemoryError"),
        ("foreign", [E], "not a chapter of this course"),
        ("misnamed", [B, B, B], ""),
        ("'=cmd()", [B, B, B], ""),
        ("'-3", [B, B, B], ""),
        ("invalid", [E], "is no valid notebook"),
    ],
)
def test_each_participant_gets_the_verdict_they_deserve(workshop, name, expected, hint):
    if name == "memory" and sys.platform != "linux":
        pytest.skip("this system offers no limit on memory")
    assert verdicts(workshop, name) == expected, workshop["by"][name]
    assert hint in workshop["by"][name][len(expected) // 2]["hint"]


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
    assert list(rows[0]) == list(check.COLUMNS)
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
        ("a", answered(THRESHOLD)),
        ("b", answered(None, loop)),
        ("c", answered()),
    ):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / CHAPTER.name).write_text(
            json.dumps(book), encoding="utf-8"
        )
    process = command(
        tmp_path / "in", "--csv", table, "--jobs", 1, start_new_session=True
    )
    end = time.monotonic() + 100
    while not pids.exists() and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert errors == f"Stopped: 1 of 3 notebooks checked; their rows are in {table}.\n"
    assert [(row["participant"], row["verdict"]) for row in rows_of(table)] == [
        ("a", P),
        ("a", B),
        ("a", B),
    ]
    assert gone([int(pid) for pid in pids.read_text().split()])


def test_exit_code_zero_with_the_whole_notebook(tmp_path):
    cells = [{"cell_type": "code", "source": text} for text in ("x = 0.5\n1 / 0", USE)]
    late = RESCALE.replace("0.5", "x")
    for index, text in enumerate((THRESHOLD, late, TOTAL)):
        name = re.match(r"def (\w+)", text)[1]
        cells.append(
            {"cell_type": "code", "source": text + "\n" + ASK.format(index, name)}
        )
    path = tmp_path / "anna__08_learning_rate_decay.ipynb"
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    process = command(path, "--full")
    out, errors = process.communicate(timeout=100)
    assert process.returncode == 0 and not errors, (out, errors)
    assert "anna         08_learning_rate_decay  pass  pass  pass" in out


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
        "sys.exit(bool({'torch', 'numpy', 'nbformat', 'psutil'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_a_copy_is_not_changed_by_the_check(tmp_path):
    book = answered(THRESHOLD)
    before = copy.deepcopy(book)
    check.Book(check.cells_of(book))
    assert book == before
