"""Every exercise of every module: the solution passes, stubs and misconceptions do not."""

import importlib
import pkgutil

import pytest

from dlcourse import exercises
from dlcourse.lab.exercises import BLANK, Exercise, Hint, Wrong, expect


def all_exercises():
    for info in pkgutil.iter_modules(exercises.__path__):
        module = importlib.import_module(f"dlcourse.exercises.{info.name}")
        for number, exercise in enumerate(module.EXERCISES, start=1):
            yield pytest.param(exercise, id=f"{info.name}-{number}")


def stub(*args, **kwargs): ...


@pytest.mark.parametrize("exercise", all_exercises())
def test_every_exercise(exercise, capsys):
    assert exercise.hint_for(exercise.solve) is None
    assert exercise.check(exercise.solve) and "Right." in capsys.readouterr().out
    for blank in (..., stub):
        assert not exercise.check(blank)
        assert BLANK in capsys.readouterr().out
    assert exercise.wrong, "name at least one misconception"
    for name, wrong in exercise.wrong.items():
        hint = exercise.hint_for(wrong.answer)
        assert hint is not None, f"accepts {name!r}"
        assert wrong.hint in hint, f"{name!r} gets the hint {hint!r}"
        assert not exercise.check(wrong.answer)
        # for a stub: only what does nothing may be
        taken = wrong.hint not in capsys.readouterr().out
        assert not taken or wrong.answer.__code__.co_consts == (None,), (
            f"{name!r} is taken for a stub"
        )
    exercise.solution()
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    "answer", [lambda x: x, lambda x: 3, lambda x: "x", lambda x: -1.5, lambda x: (1, 2)]
)
def test_short_answers_are_no_stubs(answer, capsys):
    assert not DOUBLE.check(answer)
    assert BLANK not in capsys.readouterr().out


def with_docstring(x):
    """All there is."""


@pytest.mark.parametrize("answer", [stub, with_docstring, lambda x: ..., lambda x: None])
def test_stubs_are_blank(answer, capsys):
    assert not DOUBLE.check(answer)
    assert BLANK in capsys.readouterr().out


def double_check(answer):
    expect(answer(3) != 9, "You squared it.")
    expect(answer(3) == 6, "Twice three is six.")


DOUBLE = Exercise(
    "Double it.", double_check, lambda x: 2 * x, {"square": Wrong(abs, "six")}
)


def test_hints(capsys):
    assert DOUBLE.hint_for(lambda x: x * x) == "You squared it."
    assert DOUBLE.hint_for(lambda x: x + 1) == "Twice three is six."
    assert "ZeroDivisionError" in DOUBLE.hint_for(lambda x: x / 0)
    assert not DOUBLE.check(lambda x: ...)
    assert BLANK in capsys.readouterr().out
    with pytest.raises(Hint):
        expect(False, "no")
