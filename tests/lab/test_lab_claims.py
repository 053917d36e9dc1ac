"""A claim holds or fails; nothing between."""

import math

import pytest

from dlcourse.lab.claims import ClaimError, claim, measured


@pytest.mark.parametrize(
    "value, bound, holds",
    [
        (2, {"at_least": 2}, True),
        (1.999, {"at_least": 2}, False),
        (2, {"at_most": 2}, True),
        (2.001, {"at_most": 2}, False),
        (1, {"between": (1, 2)}, True),
        (0.99, {"between": (1, 2)}, False),
        (True, {"equals": True}, True),
        (False, {"equals": True}, False),
        (1.05, {"equals": 1, "tol": 0.1}, True),
        (1.15, {"equals": 1, "tol": 0.1}, False),
        (math.nan, {"at_least": 0}, False),
        (math.nan, {"at_most": 0}, False),
        (math.nan, {"between": (0, 1)}, False),
        (math.nan, {"equals": 0}, False),
    ],
)
def test_bounds(value, bound, holds, capsys, monkeypatch):
    monkeypatch.delenv("DLCOURSE_DATA", raising=False)
    if holds:
        claim("it is so", value, **bound)
        assert capsys.readouterr().out.startswith("HOLDS  it is so  [")
    else:
        with pytest.raises(ClaimError, match="it is so: measured"):
            claim("it is so", value, **bound)


def test_the_printed_text_does_not_hold_the_value(capsys):
    claim("it is so", 0.123456, at_least=0.1)
    assert "123456" not in capsys.readouterr().out
    measured()
    assert "0.1235" in capsys.readouterr().out
    measured()
    assert capsys.readouterr().out == ""


def test_on_other_data_a_failure_is_told_and_not_raised(capsys, monkeypatch):
    monkeypatch.setenv("DLCOURSE_DATA", "mnist")
    claim("it is so", 0, at_least=1)
    assert "DOES NOT HOLD on mnist" in capsys.readouterr().out


@pytest.mark.parametrize("bounds", [{}, {"at_least": 1, "at_most": 2}])
def test_exactly_one_bound(bounds):
    with pytest.raises(ValueError, match="exactly one"):
        claim("it is so", 1, **bounds)
    with pytest.raises(ValueError, match="sentence"):
        claim(" ", 1, at_least=0)
