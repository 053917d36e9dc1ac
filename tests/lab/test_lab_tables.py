"""Tables: measured numbers are marked, and nothing else."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from nbval.plugin import get_sanitize_patterns

from dlcourse.lab.tables import MARK, measured, show_table, table
from dlcourse.lab.trials import interval

CONFIG = Path(__file__).resolve().parents[2] / "chapters" / "nbval.cfg"


def masked(text: str) -> str:
    """Return what nbval compares of an output."""
    for pattern, replacement in get_sanitize_patterns(CONFIG.read_text()):
        text = re.sub(pattern, replacement, text)
    return text


def results(shift: float) -> dict:
    return {
        "none": {"runs": 8, "rate": 0.3, "accuracy": 0.1 + shift},
        "clipped": {"runs": 8, "rate": 0.3, "accuracy": 0.9 - shift},
    }


def test_numbers_are_rounded_and_only_measured_ones_are_marked():
    shown = table(results(0.00049), settings=["rate"])
    assert list(shown.loc["none"]) == ["8", "0.3", f"{MARK}0.100{MARK}"]
    assert list(shown.columns) == ["runs", "rate", "accuracy"]


def test_intervals_tensors_and_empty_cells():
    shown = table(
        [
            {"a": interval([0.1, 0.2, 0.3]), "b": torch.tensor(1.5), "c": None},
            {"a": np.float64(2), "b": np.int64(3), "c": "x"},
        ],
        digits=1,
    )
    assert shown["a"][0] == f"{MARK}{interval([0.1, 0.2, 0.3])}{MARK}"
    assert list(shown["b"]) == [f"{MARK}1.5{MARK}", "3"]
    assert list(shown["c"]) == ["", "x"]


@pytest.mark.parametrize("render", [pd.DataFrame.to_string, pd.DataFrame.to_html])
def test_nbval_compares_all_but_the_measured_numbers(render):
    def shown(shift, **more):
        return masked(render(table(results(shift), settings=["rate"], **more)))

    assert shown(0.01) == shown(-0.2) == shown(0.02, digits=5)
    other = results(0.0)
    other["none"]["rate"] = 0.1
    assert masked(render(table(other, settings=["rate"]))) != shown(0.0)
    other = results(0.0)
    other["none"]["runs"] = 7
    assert masked(render(table(other, settings=["rate"]))) != shown(0.0)


def test_nbval_compares_all_but_the_value_of_a_claim():
    line = "HOLDS  it: clips, all: {}  (at least {})\n"
    assert masked(line.format(0.5, 0.1)) == masked(line.format("7e-05", 0.1))
    assert masked(line.format(0.5, 0.1)) != masked(line.format(0.5, 0.2))
    assert masked(line.format(0.5, 0.1)) != masked(
        line.format(0.5, 0.1).replace("all", "no")
    )
    assert masked("loss 0.5\n") != masked("loss 0.6\n")


def test_nbval_masks_the_scores_of_a_run():
    for line in (
        "rate 0.01: validation loss {}, accuracy 0.907\n",
        "rate 0.01: validation loss 0.47, accuracy {}\n",
        "test accuracy {} [0.8912, 0.9826], nll 0.4301, calibration error 0.2761, on 90\n",
        "first loss 2.3043, test accuracy {}\n",
    ):
        assert masked(line.format("0.25")) == masked(line.format("0.2489"))
        assert masked(line.format("0.25")) != masked(line.format("nan"))


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        table({})
    with pytest.raises(ValueError, match="are no columns"):
        table(results(0.0), settings=["lr"])


def test_without_a_notebook_the_table_is_printed(capsys):
    show_table(results(0.0), settings=["rate"])
    assert "clipped" in capsys.readouterr().out
    assert measured(0.5, 1) == f"{MARK}0.5{MARK}"
