"""Every rule of a chapter, applied to every chapter."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import chapter_rules
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))


@functools.lru_cache
def read(path: Path):
    """Return the notebook at ``path``, read once."""
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("rule", chapter_rules.RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_keeps_rule(path, rule):
    problems = rule(path, read(path))
    assert not problems, f"{path.name}:\n" + "\n".join(problems)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_is_valid_notebook(path):
    nbformat.validate(read(path))


def test_chapters_found_are_those_linked_in_readme():
    readme = ROOT / "README.md"
    if readme.exists():
        linked = re.findall(
            r"\((?:\./)?chapters/([^)\s]+\.ipynb)\)", readme.read_text("utf-8")
        )
        assert sorted(set(linked)) == [path.name for path in CHAPTERS]
