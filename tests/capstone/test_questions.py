"""The questions of the guides: right answers pass, the usual wrong ones get their hint."""

import pytest

from dlcourse.capstone.questions import EXERCISES
from dlcourse.workshop.first_question import first_loss, which_to_claim


@pytest.mark.parametrize(
    "exercise", [*EXERCISES, first_loss(10), first_loss(3), which_to_claim()]
)
def test_a_solution_passes_and_a_usual_mistake_gets_its_hint(exercise, capsys):
    assert exercise.check(exercise.solve)
    for wrong in exercise.wrong.values():
        assert wrong.hint in exercise.hint_for(wrong.answer)
    exercise.solution()
    assert str(exercise.solve)[:5] in capsys.readouterr().out


@pytest.mark.parametrize("words", ["", "--lr 0.1", 3, None])
def test_other_words_are_told_what_is_missing(words):
    assert EXERCISES[0].hint_for(words)


@pytest.mark.parametrize("count", [90, 0, -1, 2.5, 5000])
def test_other_counts_are_rejected(count):
    assert EXERCISES[1].hint_for(count)


@pytest.mark.parametrize("said", ["A", "a", " A. ", ["A"], ("a",), {"A"}, "A and A"])
def test_any_way_to_name_the_one_gain_is_right(said):
    assert which_to_claim().hint_for(said) is None


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("B", "holds 0"),
        ("A, B and C", "holds 0"),
        (["A", "C"], "only one side was tuned"),
        ([], "keeps both parts"),
        ("D", "letters of A, B, C only"),
        ("the first", "letters of A, B, C only"),
        (1, "as text"),
        ([1, 2], "as text"),
        (None, "as text"),
        ({"A": True}, "as text"),
    ],
)
def test_any_other_choice_is_told_why(said, hint):
    assert hint in which_to_claim().hint_for(said)
