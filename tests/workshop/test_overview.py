"""The table of the sixteen chapters: it is whole, true to the notebooks, and bears a learner."""

import re
from pathlib import Path

import nbformat
import pytest
from house_rules import TECHNIQUES
from nbformat import v4

from dlcourse.lab.tables import MARK
from dlcourse.workshop import overview, plan, reading

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = plan.read_chapters(ROOT / "chapters")
LESSONS = [chapter for chapter in CHAPTERS if chapter.name in TECHNIQUES]
HELPED = {c.number: c.helped_by for c in CHAPTERS}


def in_order(numbers) -> bool:
    """Tell whether no number stands before one that helps it."""
    places = {number: place for place, number in enumerate(numbers)}
    return all(
        places[before] < places[number]
        for number in numbers
        for before in HELPED[number] & places.keys()
    )


@pytest.mark.parametrize("chapter", LESSONS, ids=lambda chapter: chapter.name)
def test_the_claims_of_a_result_stand_in_the_chapters_outputs(chapter):
    entry = overview.ENTRIES[chapter.name]
    values = overview.claims_in(reading.load_book(chapter.path))
    assert entry.claims
    assert set(entry.claims) <= values.keys()
    shown = overview.result_of(entry, values).replace(MARK, "")
    numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", shown)]
    for claim in entry.claims:  # to three decimals
        assert any(abs(float(values[claim]) - number) <= 0.00051 for number in numbers)
    assert not re.search(r"[{}|]", shown) and entry.question.endswith("?")


def test_the_table_has_a_row_with_a_link_for_each_chapter():
    assert list(overview.ENTRIES) == list(TECHNIQUES)
    rows = overview.chapter_table().splitlines()[2:]
    assert [re.findall(r"\]\((\S+)\)", row) for row in rows] == [
        [chapter.path.name] for chapter in LESSONS
    ]
    assert all(row.count("|") == 6 for row in rows)
    by_number = {chapter.number: row for chapter, row in zip(LESSONS, rows, strict=True)}
    assert "| 40 + 30 | 11, 15 |" in by_number[12]  # Deeper is for a second visit
    assert "| 45 + 25 | 8, 13 |" in by_number[14]
    assert overview.NOT_STORED not in "".join(rows)


def test_the_map_has_every_chapter_once():
    numbers = [number for column in overview.COLUMNS.values() for number in column]
    assert sorted(numbers) == [chapter.number for chapter in LESSONS]


def test_the_routes_of_the_guide_put_helpers_first_and_name_every_chapter():
    guide = reading.load_book(ROOT / "chapters" / "00_start_here.ipynb")
    text = "\n".join(c.source for c in guide.cells if c.cell_type == "markdown")
    rows = text.partition("| You want | Take |")[2].partition("\n\n")[0].splitlines()[2:]
    taken = [[int(n) for n in re.findall(r"\d+", row)] for row in rows]
    assert sorted(sum(taken, [])) == [chapter.number for chapter in LESSONS]
    assert all(map(in_order, taken)), taken
    by_priority = sorted(LESSONS, key=plan.priority)
    first_three = tuple(chapter.number for chapter in by_priority[:3])
    assert in_order(first_three)
    default = re.search(
        r"take chapter (\d+), then chapter (\d+), then chapter (\d+)", text
    )
    assert tuple(map(int, default.groups())) == first_three


def test_a_learners_folder_does_not_break_the_table(tmp_path, monkeypatch):
    card = "# 8 Rate (率)\n\n- **Minutes:** 40 to read and run, 10 for the exercises."
    cells = [v4.new_markdown_cell(card), v4.new_code_cell("1")]  # outputs cleared
    nbformat.write(
        v4.new_notebook(cells=cells), tmp_path / "08_learning_rate_decay.ipynb"
    )
    nbformat.write(v4.new_notebook(), tmp_path / "08_my_notes.ipynb")
    (tmp_path / "18_broken.ipynb").write_text("{")
    monkeypatch.setattr(reading, "CHAPTERS", tmp_path)
    (row,) = overview.chapter_table(tmp_path).splitlines()[2:]
    assert row.startswith("| [8 Rate](08_learning_rate_decay.ipynb) |")
    assert (
        f"{MARK}{overview.NOT_STORED}{MARK}" in row
    )  # nbval masks it, as it does a value


def test_a_claim_that_failed_or_came_twice():
    text = "HOLDS  a: 0.5  (at least 0)\nHOLDS  a: 0.7  (at least 0)\n"
    text += "DOES NOT HOLD on mnist  b: 0.5  (should be at least 1)\n"
    output = v4.new_output("stream", text=text)
    book = v4.new_notebook(cells=[v4.new_code_cell("1", outputs=[output])])
    assert overview.claims_in(book) == {"a": "0.5"}


def test_it_is_shown_with_links_and_as_text(capsys):
    overview.show_chapters()
    assert capsys.readouterr().out
