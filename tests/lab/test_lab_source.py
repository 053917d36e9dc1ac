"""The shown source is the package's own, without docstrings, and nothing else is lost."""

from __future__ import annotations

import ast
import inspect
import textwrap

import pytest

from dlcourse.lab import claims, exercises, models, plotting, training
from dlcourse.lab.source import show_source, source_of
from dlcourse.lab.trials import arms, run, stack, stacked, statistics


class Example:
    """One line."""

    size = 3  # a comment that stays

    def method(self):
        """Several

        lines.
        """

        # before the body
        text = """not a docstring"""
        return text

    def only_a_docstring(self):
        """All there is."""


THINGS = [
    Example,
    Example.method,
    Example.only_a_docstring,
    *(
        thing
        for module in (
            claims,
            exercises,
            models,
            plotting,
            training,
            arms,
            run,
            stack,
            stacked,
            statistics,
        )
        for thing in vars(module).values()
        if (inspect.isfunction(thing) or inspect.isclass(thing))
        and thing.__module__ == module.__name__
    ),
]


class WithoutDocstrings(ast.NodeTransformer):
    def visit(self, node):
        self.generic_visit(node)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if ast.get_docstring(node) is not None and len(node.body) > 1:
                node.body = node.body[1:]
        return node


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: thing.__qualname__)
def test_only_docstrings_are_gone(thing):
    original = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    assert ast.dump(ast.parse(source_of(thing))) == ast.dump(
        WithoutDocstrings().visit(original)
    )


def test_comments_and_other_strings_stay():
    text = source_of(Example)
    assert "# a comment that stays" in text and "# before the body" in text
    assert '"""not a docstring"""' in text and '"""All there is."""' in text
    assert "One line" not in text and "Several" not in text


def test_several_things_are_printed_with_a_blank_line_between(capsys):
    show_source(Example.method, Example.only_a_docstring)
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.startswith("def method") and second.startswith("def only_a_docstring")


def test_what_has_no_source_is_refused():
    with pytest.raises(TypeError):
        source_of(len)
