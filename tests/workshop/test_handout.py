"""The workshop's folder: clean copies, a README, and plans that keep within the day."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from house_rules import TECHNIQUES

from dlcourse.workshop import handout, plan, reading, running

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("[0-9][0-9]_*.ipynb"))
CARD = "# 4 Clipping (梯度)\n\n- **Know first** nothing.\n- **Minutes** 40 to read, 30 for the rest.\n"


def run(*arguments, capsys=None) -> tuple[int, str, str]:
    """Return (exit code, output, errors) of the command."""
    try:
        code = handout.main([str(argument) for argument in arguments])
    except SystemExit as left:
        code = left.code
    return code, *capsys.readouterr()


def code_cell(source: str, *outputs: dict, count: int | None = 1) -> dict:
    """Return a code cell."""
    cell = {
        "cell_type": "code",
        "source": source,
        "outputs": list(outputs),
        "metadata": {},
    }
    return cell | {"execution_count": count, "id": f"c{abs(hash(source)) % 10**8}"}


def text_cell(source: str) -> dict:
    """Return a Markdown cell."""
    return {
        "cell_type": "markdown",
        "source": source,
        "metadata": {},
        "id": f"m{len(source)}",
    }


def stream(text: str) -> dict:
    """Return an output of print."""
    return {"output_type": "stream", "name": "stdout", "text": text}


def result(text: str, count: int) -> dict:
    """Return the value of a cell."""
    data = {"text/plain": text}
    return {
        "output_type": "execute_result",
        "data": data,
        "metadata": {},
        "execution_count": count,
    }


def put(folder: Path, *cells: dict, name="04_gradient_clipping", metadata=None) -> Path:
    """Write a notebook and return its path."""
    folder.mkdir(exist_ok=True)
    book = {
        "cells": list(cells),
        "metadata": metadata or {},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path = folder / f"{name}.ipynb"
    path.write_text(json.dumps(book), encoding="utf-8")
    return path


# --- copies ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Make the handout of a copy of all chapters in a fresh Python, from another folder."""
    out = tmp_path_factory.mktemp("all") / "out"
    copies = out.parent / "chapters"  # so that no chapter changes under the test
    copies.mkdir()
    for path in CHAPTERS:
        shutil.copy(path, copies)
    done = subprocess.run(
        [sys.executable, "-m", "dlcourse.handout", str(out), "--from", str(copies)],
        cwd=out.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return out, done.stdout


def test_every_chapter_is_copied_without_answers(everything):
    out, printed = everything
    names = [path.name for path in CHAPTERS]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*names, "README.md", "PLAN.md"]
    )
    assert printed.startswith((out / "PLAN.md").read_text(encoding="utf-8"))
    for path in CHAPTERS:
        text = (out / path.name).read_text(encoding="utf-8")
        assert ".solution(" not in text and str(ROOT) not in text
        assert not re.search(r"\b_solve", text)
        before = nbformat.read(out.parent / "chapters" / path.name, 4)
        book = nbformat.reads(text, 4)
        nbformat.validate(book)
        assert len(book.cells) == len(before.cells)
        asked = reading.exercise_cells(book)
        counts, changed = [], 0
        for number, (old, new) in enumerate(zip(before.cells, book.cells, strict=True)):
            assert new.id == old.id
            if new.cell_type == "markdown":
                changed += new.source != old.source
                continue
            assert new.source == old.source
            if number in asked:
                assert new.outputs == [] and new.execution_count is None
            else:
                assert new.outputs == old.outputs
                counts += [new.execution_count] if old.execution_count else []
        assert counts == list(range(1, len(counts) + 1))
        assert changed <= 1


def test_the_check_finds_a_handout_untouched(everything):
    out, _ = everything
    for path in sorted(out.glob("*.ipynb")):
        notes = []
        task = reading.prepare(path, "anna", notes)
        assert not task.problem
        if path.stem[3:] in reading.GUIDES:
            continue
        assert not notes
        found = asyncio.run(running.judge_task(task, running.Limits(), None))
        assert {result.verdict for result in found.values()} == {"not started"}
        assert len(found) == len(task.questions) >= 2


@pytest.mark.parametrize(
    ("outputs", "kept"),
    [("keep", [1, 2, 3, 4]), ("exercises", [1, 2, None, None]), ("none", [None] * 4)],
)
def test_outputs_and_counts(tmp_path, outputs, kept):
    path = put(
        tmp_path / "in",
        text_cell(CARD),
        code_cell("1 + 1", result("2", 5), count=5),
        code_cell("print(3)", stream("3"), count=9),
        text_cell("## Exercises"),
        code_cell("your_x = ...", stream("Not yet."), count=12),
        code_cell("_ = EXERCISES[0].check(your_x)", stream("Not yet."), count=13),
        metadata={
            "kernelspec": {"name": "my-env", "display_name": "x"},
            "vscode": {"a": 1},
        },
    )
    book = nbformat.reads(handout.handed_out(path, outputs), 4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == kept
    assert [bool(cell.outputs) for cell in cells] == [count is not None for count in kept]
    if kept[0]:
        assert cells[0].outputs[0].execution_count == 1
    assert book.metadata == handout.METADATA


def test_solutions_are_left_out(tmp_path):
    keep = "x = np.linalg.solve(a, b) + cho_solve('cho_solve')\nprint(gc.EXERCISES[0].question)"
    path = put(
        tmp_path / "in",
        text_cell(
            CARD + "Try. Call `gc.EXERCISES[0].solution()` if lost. Then go on.\n\nMore."
        ),
        code_cell("gc.EXERCISES[0].solution()", stream("def secret(): ..."), count=1),
        code_cell("y = 1\ngc.EXERCISES[0].solution()\nz = 2", stream("secret"), count=2),
        code_cell("for one in EXERCISES:\n    one.solution()", stream("secret"), count=3),
        code_cell(
            "print(inspect.getsource(EXERCISES[1].solve))", stream("secret"), count=4
        ),
        code_cell("show_source(gc._solve_clip)", stream("secret"), count=5),
        code_cell("print(EXERCISES[0].wrong)", stream("secret"), count=6),
        code_cell("no python\ngc.EXERCISES[0].solution()", stream("secret"), count=7),
        code_cell(keep, stream("2"), count=8),
    )
    text = handout.handed_out(path, "keep")
    cells = nbformat.reads(text, 4).cells
    assert [cell.source for cell in cells[1:]] == ["y = 1\nz = 2", keep]
    assert [cell.execution_count for cell in cells[1:]] == [None, 1]
    assert cells[0].source == CARD + "Try. Then go on.\n\nMore."
    assert "secret" not in text and "solution" not in text


# --- the plan -------------------------------------------------------------------------------------


def chapter(number: int, reading=40, exercises=30, helped_by=(), name=None):
    """Return a chapter."""
    path = Path(f"{number:02d}_{name or TECHNIQUES[number - 1]}.ipynb")
    return plan.Chapter(
        path,
        f"Title {number}",
        reading,
        exercises,
        frozenset(helped_by),
    )


def test_priority_names_every_technique():
    assert sorted(plan.PRIORITY) == sorted([*TECHNIQUES, *reading.GUIDES])
    place = plan.PRIORITY.index
    for first, second in (
        ("learning_rate_decay", "warmup"),
        ("learning_rate_decay", "lr_schedulers"),
        ("warmup", "lr_schedulers"),
        ("data_splitting", "hyperparameter_tuning"),
    ):
        assert place(first) < place(second)


def test_order_follows_what_builds_on_what():
    def numbers(*chapters):
        return [chapter.number for chapter in plan.in_order(list(chapters))]

    assert numbers(chapter(14, helped_by={8, 13}), chapter(13), chapter(8)) == [8, 13, 14]
    assert numbers(chapter(1, helped_by={16}), chapter(16)) == [16, 1]
    assert numbers(chapter(1, helped_by={9}), chapter(16)) == [1, 16]  # 9 is not there
    circle = [chapter(8, helped_by={14}), chapter(14, helped_by={8})]
    assert numbers(*circle) == [8, 14]
    assert numbers(chapter(4, helped_by={8}), chapter(8, helped_by={4})) == [8, 4]
    assert numbers(chapter(1, helped_by={1}), chapter(99, name="new")) == [1, 99]


def test_the_real_chapters_are_read_from_their_cards():
    chapters = plan.read_chapters(ROOT / "chapters")
    assert [c.path for c in chapters] == CHAPTERS
    assert plan.in_order(chapters)[0].name in ("start_here", "data_splitting")
    assert not [c.label for c in chapters if c.assumed]
    by = {c.name: c for c in chapters}
    clipping = by["gradient_clipping"]
    assert (clipping.label, clipping.reading, clipping.exercises) == (
        "04 Gradient clipping",
        35,
        30,
    )
    assert by["lr_schedulers"].helped_by == {8, 13}
    assert by["hyperparameter_tuning"].helped_by == {1}
    # helps, but is not needed
    assert by["gradient_accumulation"].helped_by == frozenset()
    ordered = [c.number for c in plan.in_order(chapters)]
    assert sorted(ordered) == [c.number for c in chapters]
    for c in chapters:
        assert all(ordered.index(n) < ordered.index(c.number) for n in c.better_after)


def slots_are_sound(days: list[plan.Day], start: int, length: int) -> None:
    """Assert that the slots of each day follow each other and end in time, with enough
    breaks.
    """
    for day in days:
        now, worked, longest = start, 0, 0
        for slot in day.slots:
            assert slot.start == now and slot.minutes > 0
            now += slot.minutes
            rest = slot.what in ("Break", "Lunch", "Long break")
            worked = 0 if rest else worked + slot.minutes
            longest = max(
                longest, worked - (plan.CLOSING if slot.what[:7] == "Closing" else 0)
            )
        assert now <= start + length
        assert longest <= max(plan.WORK, plan.START_UP + plan.PIECE)
        assert day.slots[-1].what.startswith("Closing")
        assert day.slots[-2].what not in ("Break", "Lunch", "Long break")
        meals = [slot for slot in day.slots if slot.what in ("Lunch", "Long break")]
        assert len(meals) <= (length > plan.HALF_DAY)
        if now - start > 300:
            assert meals and 150 <= meals[0].start - start <= 300


@pytest.mark.parametrize("start", [0, 510, 540, 780, 960])
@pytest.mark.parametrize(
    "sizes", [(40, 30), (60, 30), (10, 5), (100, 80), (35, 0), (200, 130)]
)
@pytest.mark.parametrize("chosen", [False, True])
def test_no_plan_is_longer_than_its_day(start, sizes, chosen):
    chapters = [chapter(n, *sizes) for n in range(1, 17)]
    chapters[3] = chapter(4, 55, 20)
    for days, length in ((1, plan.HALF_DAY), (1, plan.DAY), (2, plan.DAY)):
        laid, left = plan.fit(chapters, start, days, length, chosen)
        assert 1 <= len(laid) <= days
        slots_are_sound(laid, start, length)
        text = " ".join(slot.what for day in laid for slot in day.slots)
        for c in chapters:  # each one whole, or left out
            minutes = sum(
                slot.minutes
                for day in laid
                for slot in day.slots
                if slot.what.startswith(c.label)
            )
            assert minutes == (0 if c in left else c.minutes), (c.label, text)


def test_a_choice_is_kept_in_its_order():
    chapters = [chapter(11), chapter(4), chapter(1)]
    (day,), left = plan.fit(chapters, 540, 1, plan.HALF_DAY, chosen=True)
    titles = [slot.what[:2] for slot in day.slots]
    assert titles == ["St", "11", "11", "Br", "04", "04", "Cl"] and left == [chapters[2]]
    (day,), left = plan.fit(chapters, 540, 1, plan.HALF_DAY, chosen=False)
    assert [slot.what[:2] for slot in day.slots] == [
        "St",
        "01",
        "01",
        "Br",
        "04",
        "04",
        "Cl",
    ]
    assert left == [chapters[0]]


def test_the_text_of_a_plan():
    text = plan.plan([chapter(1), chapter(4, 50, 30)], 540, chosen=True)
    assert (
        "| 09:00 | 09:15 | 15 | Start-up" in text
        and "| 09:15 | 09:55 | 40 | 01 Title 1: r" in text
    )
    assert text.count("Nothing is left out.") == 3 and "1 of 2 days are enough." in text
    half = text.split("## ")[1]
    assert "Free until 12:30: 20 minutes." in half and "| 12:10 |" in half
    text = plan.plan([chapter(1, 300, 100)], 540, chosen=False)
    assert text.count("Left out for want of time: 01 Title 1 (400 min).") == 3
    text = plan.plan([chapter(1)], 17 * 60, chosen=False)
    assert text.count("Not from 17:00: it would end after midnight. Start by 16:00.") == 2
    assert "| 17:00 | 17:15 |" in text
    assumed = plan.Chapter(Path("04_x.ipynb"), "X", 45, 30, assumed=True)
    assert "No minutes on the card, 45 and 30 assumed: 04 X." in plan.plan(
        [assumed], 540, True
    )


def test_a_plan_of_the_real_chapters(everything):
    _, printed = everything
    for title in (
        "## Half a day",
        "## One day",
        "## Two days",
        "### Day 2",
        "## Afterwards",
    ):
        assert title in printed
    half = printed.split("## ")[1]
    assert (
        "01 Data splitting: exercises" in half and "Left out for want of time: " in half
    )
    for start, end, minutes in re.findall(
        r"^\| (\d\d:\d\d) \| (\d\d:\d\d) \| (\d+) \|", printed, re.M
    ):
        assert handout.time_of_day(end) - handout.time_of_day(start) == int(minutes)
        assert "09:00" <= start < end <= "17:00"


# --- the command ----------------------------------------------------------------------------------


def test_chosen_chapters_and_the_readme(tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    code, printed, errors = run(
        out, "--chapters", "11", "4", "--start", "13:30", capsys=capsys
    )
    assert code == 0 and not errors
    assert sorted(path.name for path in out.iterdir()) == [
        "04_gradient_clipping.ipynb",
        "11_gradient_accumulation.ipynb",
        "PLAN.md",
        "README.md",
    ]
    assert printed.index("11 Gradient acc") < printed.index("04 Gradient cl")
    assert "| 13:30 | 13:45 | 15 | Start-up" in printed and "Long break" not in printed
    assert printed.endswith(f"\n2 chapters, README.md and PLAN.md are in {out}.\n")
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "[04 Gradient clipping](04_gradient_clipping.ipynb) | 35 | 30 |" in text
    assert "jupyter lab" in text and "python -m dlcourse.doctor" in text
    assert "your_name/11_gradient_accumulation.ipynb" in text
    assert "your_name__11_gradient_accumulation.ipynb" in text
    names = reading.collect([out], [])
    assert [path.name for path, _ in names] == [
        "04_gradient_clipping.ipynb",
        "11_gradient_accumulation.ipynb",
    ]


def test_ways_to_name_a_chapter():
    chapters = [chapter(4), chapter(11)]
    for word in (
        "4",
        "04",
        "gradient_clipping",
        "04_gradient_clipping",
        "04_gradient_clipping.ipynb",
    ):
        assert handout.choose(chapters, [word]) == chapters[:1]
    assert handout.choose(chapters, ["11,4", "04"]) == chapters[::-1]
    assert (
        handout.choose(chapters, ["all"]) is chapters
        and handout.choose(chapters, []) is chapters
    )


def test_force_replaces_only_its_own_files(tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "other.txt").write_text("mine")
    code, _, errors = run(tmp_path, "--chapters", "4", capsys=capsys)
    assert (
        code == 2
        and "is not empty; name another folder, or replace files with --force" in errors
    )
    assert (tmp_path / "README.md").read_text() == "mine"
    assert run(tmp_path, "--chapters", "4", "--force", capsys=capsys)[0] == 0
    assert "Workshop" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "other.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "the following arguments are required: OUT"),
        (["out", "--chapters", "99"], 2, "there is no chapter 99; there are 0"),
        (["out", "--start", "25:00"], 2, "'25:00' is no time of day such as 09:00"),
        (["out", "--outputs", "some"], 2, "invalid choice: 'some'"),
        (["out", "--from", "nowhere"], 2, "--from nowhere holds no chapters"),
        (["a_file"], 2, "a_file is a file; name a folder"),
        ([ROOT, "--force"], 2, "belongs to the course; name a folder outside it"),
        ([ROOT / "chapters" / "new"], 2, "belongs to the course"),
        (["a_file/out"], 1, "cannot write a_file/out"),
        (
            ["out", "--from", "broken"],
            1,
            "04_gradient_clipping.ipynb is no valid notebook",
        ),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    Path("a_file").write_text("x")
    Path("broken").mkdir()
    Path("broken/04_gradient_clipping.ipynb").write_text("{")
    got, printed, errors = run(*arguments, capsys=capsys)
    assert got == code and printed == ""
    assert words in errors and errors.count("\n") == 1, errors
    assert not Path("out").exists()


def test_chapters_of_another_folder(tmp_path, monkeypatch, capsys):
    put(tmp_path / "in", text_cell(CARD), code_cell("1"))
    put(tmp_path / "in", text_cell("# No card"), name="05_of_my_own")
    code, printed, errors = run(
        tmp_path / "out", "--from", tmp_path / "in", capsys=capsys
    )
    assert code == 0 and not errors
    assert "| 04 Clipping | 40 | 30 | 70 |  | 1 |" in printed
    assert "45 and 30 assumed: 05 of my own." in printed
    monkeypatch.setattr(handout, "CHAPTERS", tmp_path / "elsewhere")
    code, _, errors = run(tmp_path / "out2", capsys=capsys)
    assert code == 2 and errors.count("\n") == 1
    assert "name the folder that holds them with --from DIR" in errors


def test_notebooks_of_the_readers_own_are_passed_over(tmp_path, monkeypatch):
    put(tmp_path, text_cell(CARD), name="04_gradient_clipping")
    put(tmp_path, text_cell("# My notes"), name="04_my_notes")
    (tmp_path / "18_broken.ipynb").write_text("{")
    monkeypatch.setattr(reading, "CHAPTERS", tmp_path)
    (chapter,) = plan.read_chapters(tmp_path)
    assert chapter.name == "gradient_clipping"


def test_importing_the_handout_imports_nothing_heavy():
    program = (
        "import sys, dlcourse.handout\n"
        "sys.exit(bool({'torch', 'numpy', 'nbformat'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
