"""The tools that measure: claims on other seeds, density of code, changed lines."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook

from dlcourse.lab.datasets import load
from dlcourse.workshop import kernels

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tools():
    """The modules of tools/ by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        names = ("seeds", "density", "quick", "mutants")
        yield {name: importlib.import_module(name) for name in names}
        for name in (*names, "chapter"):
            sys.modules.pop(name, None)


def test_failing_and_loose_claims_are_told_apart(tools):
    good = {"sentence": "near", "value": 0.9, "holds": True, "low": 0.7}
    far = {"sentence": "far", "value": 0.9, "holds": True, "low": 0.1}
    fails = {"sentence": "near", "value": 0.6, "holds": False, "low": 0.7}
    assert tools["seeds"].report({"a": [good], "b": [good]}) == ([], [])
    failing, loose = tools["seeds"].report({"a": [good, far], "b": [fails, far]})
    assert failing == ["near [0.7, ]: a 0.9, b 0.6"]
    assert loose == ["far [0.1, ]: a 0.9, b 0.9"]


def test_a_chapter_runs_on_shifted_seeds_and_moved_splits(tools, tmp_path, monkeypatch):
    # each run has a Python of its own: it imports no more than it needs
    monkeypatch.setattr(kernels, "IMPORTS", ("ipykernel.ipkernel",))
    source = """
from dlcourse.lab import warm
warm.IMPORTS = ("torch",)
warm.get_ready = lambda env: None
import numpy as np
import torch
from dlcourse.lab.claims import claim
from dlcourse.lab.datasets import load
from dlcourse.lab.launching import launch

torch.manual_seed(0)
claim("global generator", torch.rand(()), at_least=2)
claim("own generator", torch.rand((), generator=torch.Generator().manual_seed(1)), at_least=2)
claim("NumPy", np.random.default_rng(0).random(), at_least=2)


def draw():
    import torch

    torch.manual_seed(0)
    return torch.rand(()).item()


claim("another process", launch(draw, processes=1)[0], at_least=2)
claim("split", load("digits").train.labels[:50].float().mean(), at_least=20)
"""
    path = tmp_path / "04_small.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), path)
    found = []
    for place in ((1000, 0), (0, 1)):
        claims, stopped = tools["seeds"].measure(path, *place)
        assert stopped == [] and not any(claim["holds"] for claim in claims)
        found.append({claim["sentence"]: claim["value"] for claim in claims})
    shifted, moved = found
    torch.manual_seed(0)
    first = torch.rand(()).item()
    own = torch.Generator().manual_seed(1)
    here = {
        "global generator": first,
        "own generator": torch.rand((), generator=own).item(),
        "NumPy": np.random.default_rng(0).random(),
        "another process": first,
    }
    split = load("digits").train.labels[:50].float().mean().item()
    assert {name: moved[name] for name in here} == here
    assert all(here[name] != shifted[name] for name in here)
    assert split == shifted["split"] != moved["split"]


def test_density_counts_nodes_long_lines_and_comprehensions(tools, capsys):
    density = tools["density"].Density()
    density.add("x = [i for i in y]\n\n# " + "a" * 100)
    density.add("no python (")
    assert (density.lines, density.long, density.comprehensions) == (2, 1, 1)
    assert density.nodes > 5 and density.row()[1] == 50.0
    assert tools["density"].main() == 0
    assert "dlcourse, all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("dlcourse/warmup.py", ["tests/test_warmup.py"]),
        ("dlcourse/lr_schedulers/schedules.py", ["tests/test_lr_schedulers.py"]),
        ("dlcourse/lab/tables.py", ["tests/lab/test_lab_tables.py"]),
        ("dlcourse/lab/peak.py", ["tests/lab/test_lab_peak.py"]),
        ("dlcourse/capstone/sides.py", ["tests/capstone/test_own.py"]),
        ("dlcourse/capstone/cli.py", ["tests/capstone/test_cli.py"]),
        (
            "dlcourse/exercises/warmup.py",
            ["tests/test_warmup.py", "tests/test_exercises_warmup.py"],
        ),
        ("tools/seeds.py", ["tests/test_tools.py"]),
        ("tests/test_warmup.py", ["tests/test_warmup.py"]),
        ("tests/conftest.py", []),
        ("README.md", []),
    ],
)
def test_quick_finds_the_tests_of_a_file(tools, path, expected):
    assert tools["quick"].tests_of(path) == expected


def test_quick_knows_every_module_and_runs_no_notebook(tools):
    quick = tools["quick"]
    thin = {"predict", "check", "handout", "train", "__init__"}  # doors of commands
    for path in sorted((ROOT / "dlcourse").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if path.stem not in thin:
            assert quick.tests_of(name), name
    paths = ["chapters/04_gradient_clipping.ipynb", "chapters/nbval.cfg", "README.md"]
    assert quick.selection([*paths, "recipes/11_gradient_accumulation.py"]) == [
        ["tests/test_house.py"],
        ["tests/test_recipes.py", "-k", "11_"],
        ["tests/test_chapters.py", "-k", "04_"],
    ]


@pytest.mark.parametrize(
    ("old", "new", "alone"),
    [
        ('error("give a number")', 'error("XXgive a numberXX")', True),
        ('error("Give a number")', 'error("GIVE A NUMBER")', True),
        ('error("give a number")', "error(None)", False),
        ("return a < b", "return a <= b", False),
    ],
)
def test_changes_of_words_alone_are_told_from_others(tools, old, new, alone):
    diff = f"--- a.py\n+++ a.py\n@@ -1,2 +1,2 @@\n def f():\n-    {old}\n+    {new}"
    assert tools["mutants"].words_only(diff) == alone


def test_a_sample_of_mutants_is_drawn_by_its_seed_alone(tools):
    draw = tools["mutants"].draw
    names = [f"mutant_{number}" for number in range(50)]
    sample = draw(names, 20, seed=1)
    assert sample == draw(names, 20, seed=1) != draw(names, 20, seed=2)
    assert len(set(sample)) == 20 and set(sample) < set(names)
    assert draw(names, 50, seed=1) == draw(names, 90, seed=1) == names


def test_share_of_mutants_has_the_interval_of_wilson(tools):
    share = tools["mutants"].share
    assert share(90, 100) == "90.0%, 95% interval 82.6% to 94.5%"
    assert share(10, 10) == "100.0%, 95% interval 72.2% to 100.0%"


def test_mutants_that_went_unnoticed_are_found_in_the_report(
    tools, tmp_path, monkeypatch
):
    monkeypatch.setattr(tools["mutants"], "KEPT", tmp_path)
    diff = "--- a.py\n+++ a.py\n@@ -1 +1 @@\n-# old\n+# new"
    tools["mutants"].write_report(
        "warmup", {"a.x_f__mutmut_1": diff, "a.x_g__mutmut_2": diff}
    )
    assert tools["mutants"].unnoticed_last_time("warmup") == {
        "a.x_f__mutmut_1",
        "a.x_g__mutmut_2",
    }
