"""A claim holds or fails; nothing between, and its value stands with it."""

import json
import math

import chapter_rules
import numpy as np
import pytest

from dlcourse.lab.claims import LINE, ClaimError, claim, rounded


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
        line = LINE.fullmatch(capsys.readouterr().out.rstrip("\n"))
        assert line["sentence"] == "it is so" and line["value"] == rounded(value)
        assert chapter_rules.keeps(line["value"], line["bound"])
    else:
        with pytest.raises(ClaimError, match="it is so: measured"):
            claim("it is so", value, **bound)


@pytest.mark.parametrize(
    "value, text",
    [
        (0.123456, "0.123"),
        (-0.5, "-0.5"),
        (0, "0"),
        (71684.2, "71,684"),
        (999.6, "1e+03"),
        (1.23456e-16, "1.23e-16"),
        (2e9, "2e+09"),
        (math.inf, "inf"),
    ],
)
def test_values_are_rounded(value, text):
    assert rounded(value) == text


@pytest.mark.parametrize(
    "value, bound, kept",
    [
        ("0.7", "at least 0.7", True),
        ("0.7", "at least 0.7004", True),  # 0.7 may have been 0.7004
        ("0.7", "at least 0.71", False),
        ("0.71", "at most 0.7", False),
        ("-0.1", "from -0.2 to 0", True),
        ("-0.3", "from -0.2 to 0", False),
        ("71,684", "at least 71000", True),
        ("70,000", "at least 71000", False),
        ("1e-16", "equal to 0 within 1e-15", True),
        ("0.02", "equal to 0 within 1e-15", False),
        ("0.2", "equal to 0", False),
        ("8", "equal to 8", True),
    ],
)
def test_the_rule_for_stored_values(value, bound, kept):
    assert chapter_rules.keeps(value, bound) is kept


def test_on_other_data_a_failure_is_told_and_not_raised(capsys, monkeypatch):
    monkeypatch.setenv("DLCOURSE_DATA", "mnist")
    claim("it is so", 0, at_least=1)
    assert "DOES NOT HOLD on mnist" in capsys.readouterr().out


def test_a_measurement_records_every_claim_and_stops_at_none(tmp_path, monkeypatch):
    file = tmp_path / "claims.jsonl"
    monkeypatch.setenv("DLCOURSE_CLAIMS", str(file))
    claim("one", 1, at_least=2)
    claim("two", 2, between=(1, 3))
    first, second = map(json.loads, file.read_text().splitlines())
    assert first == {"sentence": "one", "value": 1.0, "holds": False, "low": 2}
    assert second == {"sentence": "two", "value": 2.0, "holds": True, "low": 1, "high": 3}


@pytest.mark.parametrize("bounds", [{}, {"at_least": 1, "at_most": 2}])
def test_exactly_one_bound(bounds):
    with pytest.raises(ValueError, match="exactly one"):
        claim("it is so", 1, **bounds)
    with pytest.raises(ValueError, match="sentence"):
        claim(" ", 1, at_least=0)


def test_a_best_rate_at_the_edge_is_recorded(tmp_path, monkeypatch):
    from dlcourse.lab.trials import Trials

    file = tmp_path / "claims.jsonl"
    monkeypatch.setenv("DLCOURSE_CLAIMS", str(file))
    losses = np.zeros((3, 2, 1), dtype=np.float32)
    for best, lines in ((1, 0), (2, 1)):
        scores = np.zeros((3, 2))
        scores[best] = 1.0
        trials = Trials([0.1, 0.2, 0.4], [0, 1], losses, validation={"accuracy": scores})
        assert trials.best_lr() == best
        found = file.read_text().splitlines() if file.exists() else []
        assert len(found) == lines
    assert json.loads(found[0]) == {"edge": 0.4, "grid": [0.1, 0.2, 0.4]}
