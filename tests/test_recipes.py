"""The recipes of recipes/: each runs alike as plain python and on two processes."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
LINES = 70
LONGER = {"02_hyperparameter_tuning": 144}  # a search around the training
LIBRARIES = {"torch", "accelerate", "sklearn"}
ALSO = {
    "02_hyperparameter_tuning": {"optuna"},
    "10_data_augmentation": {"torchvision"},
}
TRIES = 3  # two gloo processes sometimes abort while they exit
LOST = re.compile(r"SIGABRT|exitcode: -6|EADDRINUSE|address already in use")

# One row a recipe. Its last line is "name number, name number"; how far may the numbers of
# two processes be from those of one?
CASES = {
    "01_data_splitting": {"validation accuracy": 0.006, "test accuracy": 0.006},
    "02_hyperparameter_tuning": {
        "start test accuracy": 0.004,
        "tuned test accuracy": 0.004,
    },
    "03_regularization": {"test accuracy": 0.03, "test loss": 0.1},
    "09_model_compression": {"teacher": 0.004, "taught": 0.004, "untaught": 0.004},
    "10_data_augmentation": {"test accuracy": 0.05, "test loss": 0.25},
    "11_gradient_accumulation": {"test accuracy": 0.004, "test loss": 0.001},
    "16_data_loading": {"test accuracy": 0.004, "test loss": 0.001},
}
NAMES = sorted(CASES)


def run(name: str, *launcher: str) -> dict[str, float]:
    """Run a recipe on the CPU, in a folder of its own; return the numbers of its last line."""
    command = [sys.executable, *launcher, str(RECIPES / f"{name}.py")]
    settings = {"ACCELERATE_USE_CPU": "yes", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    for _ in range(TRIES):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                command,
                cwd=folder,
                env=os.environ | settings,
                capture_output=True,
                text=True,
                timeout=300,
            )
        if done.returncode == 0 or not LOST.search(done.stderr):
            break
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    last = re.findall(r"([a-z][\w ]*?) (-?\d[\d.]*)", lines[-1])
    assert last, f"the last line holds no result: {lines[-1]!r}"
    assert lines.count(lines[-1]) == 1, "the result stands there once for each process"
    return {key: float(value) for key, value in last}


def test_every_recipe_has_a_case():
    assert NAMES == sorted(path.stem for path in RECIPES.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one(name):
    one = run(name)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    two = run(name, *launcher)
    assert set(one) == set(two) == set(CASES[name])
    for key, distance in CASES[name].items():
        assert abs(one[key] - two[key]) <= distance, f"{key}: {one[key]} and {two[key]}"


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    text = (RECIPES / "11_gradient_accumulation.py").read_text(encoding="utf-8")
    for rows in (12, 256):  # 128 is no multiple of either
        changed = tmp_path / f"micro_batches_of_{rows}.py"
        changed.write_text(text.replace("MICRO_BATCH = 8", f"MICRO_BATCH = {rows}"))
        done = subprocess.run(
            [sys.executable, str(changed)], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 1
        assert f"BATCH=128 is no multiple of MICRO_BATCH={rows}" in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_short_and_stands_alone(name):
    text = (RECIPES / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGER.get(name, LINES)
    known = LIBRARIES | ALSO.get(name, set()) | set(sys.stdlib_module_names)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [getattr(node, "module", None) or ""]
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for module in names:
                assert module.partition(".")[0] in known, f"imports {module}"
    assert "argparse" not in text
