"""The studies around a run: search, ablation, compression, each stopped and gone on with."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from dlcourse.capstone import ablation, compression, studies
from dlcourse.capstone.cli import main
from dlcourse.capstone.folder import load_model
from dlcourse.capstone.settings import Recipe
from dlcourse.lab.parts import NonFiniteLossError

pytestmark = pytest.mark.usefixtures("pictures_are_drawn_once")

FAST = ["--model", "mlp", "--width", "2", "--train-limit", "320", "--epochs", "1"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_tune_chooses_by_validation_and_goes_on_where_it_stopped(capsys):
    arguments = [*FAST, "--tune", "6", "--out", "run"]
    assert main(arguments) == 0
    with open("run/tune.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    best = min(rows, key=lambda row: float(row["loss"]))
    recipe = Recipe.from_toml(Path("run/recipe.toml").read_text())
    assert recipe.lr == float(best["lr"]) and recipe.weight_decay == float(
        best["weight_decay"]
    )
    whole = Path("run/model.safetensors").read_bytes()
    lines = Path("run/tune.csv").read_text().splitlines(keepends=True)
    for name in ("recipe.toml", "resume.pt", "model.safetensors"):
        Path("run", name).unlink()
    for path in list(Path("run").iterdir()):
        if path.name not in ("tune.csv", "untuned.toml"):
            path.unlink()
    # the fourth was cut short
    Path("run/tune.csv").write_text("".join(lines[:4]) + lines[4][:9])
    assert main(["--tune", "6", "--resume", "--out", "run"]) == 0
    assert Path("run/model.safetensors").read_bytes() == whole
    assert Path("run/tune.csv").read_text() == "".join(lines)
    assert main(arguments) == 2  # a new search needs another folder
    assert "continue it with --resume" in capsys.readouterr().err
    # its trials are of other runs
    assert main([*arguments, "--resume", "--epochs", "2"]) == 2
    assert "epochs was 1" in capsys.readouterr().err
    assert "the best of 6 settings" in Path("run/MODEL_CARD.md").read_text()


def test_a_search_writes_nothing_where_its_run_could_not_go(capsys):
    Path("used").mkdir()
    Path("used/letter.txt").write_text("dear")
    assert main([*FAST, "--tune", "1", "--out", "used"]) == 2
    assert main([*FAST, "--out", "run"]) == 0
    assert main([*FAST, "--tune", "1", "--resume", "--out", "run"]) == 2
    assert capsys.readouterr().err.count("holds other files") == 2
    assert [path.name for path in Path("used").iterdir()] == ["letter.txt"]
    assert not Path("run/tune.csv").exists()


def test_runs_that_diverge_end_neither_a_search_nor_an_ablation(monkeypatch):
    real = studies.train

    def fragile(recipe, *rest, **more):
        if recipe.lr > 0.02 or recipe.schedule == "constant":
            raise NonFiniteLossError("the loss is nan")
        return real(recipe, *rest, **more)

    for module in (studies, ablation):
        monkeypatch.setattr(module, "train", fragile)
    assert main([*FAST, "--tune", "6", "--out", "run"]) == 0
    scores = [
        line.split(",")[-1] for line in Path("run/tune.csv").read_text().splitlines()
    ]
    assert "inf" in scores
    assert Recipe.from_toml(Path("run/recipe.toml").read_text()).lr <= 0.02
    assert main([*FAST, "--ablate", "--seeds", "2", "--out", "ablation"]) == 0
    rows = [
        line
        for line in Path("ablation/ablation.csv").read_text().splitlines()
        if "const" in line
    ]
    # equal everywhere: looked for further down
    assert len(rows) == 2 * (3 + ablation.WIDER)
    assert all(float(row.split(",")[4]) == 0.1 for row in rows)


def test_a_table_that_was_cut_short_anywhere_is_completed(tmp_path):
    path = tmp_path / "table.csv"

    def fill():
        table = studies.Table(path, ["name"], ["value"])
        return [table.get((name,), lambda: {"value": 0.1}) for name in ("é", "ab")]

    rows = fill()
    content = path.read_bytes()
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        assert fill() == rows and path.read_bytes() == content


def test_compression_does_what_it_says_and_goes_on_where_it_stopped(monkeypatch, capsys):
    noise = ["--augment", "mixup", "--label-smoothing", "0.1", "--max-norm", "inf"]
    arguments = [*FAST, *noise, "--out", "run", "--compress", "prune", "quantize"]
    assert main(arguments) == 0
    layers = [m for m in load_model("run/compressed/prune")[0] if hasattr(m, "weight")]
    zeros = torch.cat([(layer.weight == 0).ravel() for layer in layers]).double().mean()
    assert zeros == pytest.approx(0.8, abs=0.01)
    for layer in load_model("run/compressed/quantize")[0]:
        assert not hasattr(layer, "weight") or all(
            len(row.unique()) <= 256 for row in layer.weight
        )
    pruned = Path("run/compressed/prune/model.safetensors")
    before = pruned.stat().st_mtime_ns
    monkeypatch.setattr(compression, "_prune", lambda *_: pytest.fail("made before"))
    capsys.readouterr()
    assert (
        main(["--resume", "--out", "run", "--compress", "prune", "quantize", "distil"])
        == 0
    )
    assert pruned.stat().st_mtime_ns == before
    assert load_model("run/compressed/distil")[1]["recipe"]["width"] == 1
    table = capsys.readouterr().out
    assert all(
        f"| {name} |" in table for name in ("as trained", "prune", "quantize", "distil")
    )


def runs_of_an_ablation(arms: set[str], seeds: int) -> int:
    """Return how many runs ablation.csv holds; each arm has gone as far as it must, no
    further.
    """
    rows = list(csv.DictReader(Path("run/ablation.csv").read_text().splitlines()))
    assert {row["arm"] for row in rows} == arms
    for arm in arms:
        nll = {}
        for row in rows:
            if row["arm"] == arm:
                nll.setdefault(float(row["factor"]), {})[row["seed"]] = float(
                    row["validation_nll"]
                )
        complete = {f: by_seed for f, by_seed in nll.items() if len(by_seed) == seeds}
        best = min(complete, key=lambda f: sum(complete[f].values()))
        inside = min(complete) < best < max(complete)
        assert len(complete) == 3 + ablation.WIDER or (inside and len(complete) >= 3)
    return len(rows)


def test_ablation_compares_on_the_same_seeds_and_goes_on_where_it_stopped(monkeypatch):
    seen = []
    real = studies.train

    def counted(recipe, *rest, **more):
        seen.append(recipe)
        return real(recipe, *rest, **more)

    monkeypatch.setattr(ablation, "train", counted)
    arguments = [*FAST, "--max-norm", "inf", "--ablate", "--seeds", "2", "--out", "run"]
    assert main(arguments) == 0
    arms = {"all techniques", *ablation.OFF} - {
        "gradient clipping", "label smoothing", "dropout", "early stopping", "accumulation",
        # off from the start; an MLP has no norm
        "mixed precision", "batch normalization",
    }  # fmt: skip
    assert len(seen) == len(set(seen)) == runs_of_an_ablation(arms, seeds=2)
    assert {recipe.seed for recipe in seen} == {0, 1}
    table = Path("run/ablation.md").read_text()
    assert "gradient clipping" not in table  # it was off from the start
    assert (
        len([line for line in table.splitlines() if line.startswith("| ")])
        == 2 + len(arms) - 1
    )
    assert Path("run/ablation.png").read_bytes().startswith(b"\x89PNG")
    seen.clear()
    known = set(Path("run/ablation.csv").read_text().splitlines())
    assert main(["--ablate", "--seeds", "3", "--resume", "--out", "run"]) == 0
    assert known < set(Path("run/ablation.csv").read_text().splitlines())
    assert len(seen) + len(known) - 1 == runs_of_an_ablation(arms, seeds=3)


def test_losses_are_read_from_a_table_at_each_arms_best_rate(tmp_path):
    lines = ["arm,factor,seed,validation_nll,test_accuracy,test_nll"]
    for seed, accuracy in enumerate((0.9, 0.8, 0.7)):
        lines.append(f"all techniques,1,{seed},0.5,{accuracy},0.4")
        lines.append(f"all techniques,3,{seed},0.9,0.1,2.0")  # the worse rate
        lines.append(f"warm-up,1,{seed},0.5,{accuracy - 0.1},0.7")
    (tmp_path / "ablation.csv").write_text("\n".join(lines) + "\n")
    points, nats = ablation.losses(ablation.read(tmp_path / "ablation.csv"))
    assert points["warm-up"] == pytest.approx((10, 10, 10))
    assert nats["warm-up"] == pytest.approx((0.3, 0.3, 0.3))
    assert list(points) == ["warm-up"]


def test_the_stored_table_is_whole():
    stored = ablation.read(ablation.STORED)
    assert set(stored) == {ablation.FULL, *ablation.OFF} - {
        "dropout",
        "early stopping",
        "accumulation",
        "mixed precision",
    }
    seeds = len(ablation.column(stored, ablation.FULL, "test_nll"))
    assert seeds >= 5
    for by_factor in stored.values():
        assert {len(rows) for rows in by_factor.values()} == {seeds}
        assert len(by_factor) >= len(ablation.FACTORS)
