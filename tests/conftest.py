"""Fixtures that several test files use."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def pictures_are_drawn_once():
    from pictures import draw_once  # here: most tests need nothing of what it imports

    with pytest.MonkeyPatch.context() as patch:
        draw_once(patch)
        yield
