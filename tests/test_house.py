"""The rules of the house, applied to the project."""

from __future__ import annotations

from pathlib import Path

import house_rules
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("rule", house_rules.RULES, ids=lambda rule: rule.__name__)
def test_house_keeps_rule(rule):
    problems = rule(ROOT)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("page, most", [("docs/house.md", 60), ("README.md", 120)])
def test_the_page_is_short(page, most):
    assert len((ROOT / page).read_text(encoding="utf-8").splitlines()) <= most
