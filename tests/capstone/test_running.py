"""A run can be repeated, resumed and loaded; files of others run no code."""

from __future__ import annotations

import json
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from dlcourse.capstone import running
from dlcourse.capstone.building import build_model
from dlcourse.capstone.folder import CHECKPOINT, FORMAT, load_model, save_model
from dlcourse.capstone.running import train
from dlcourse.capstone.settings import Problem, Recipe
from dlcourse.lab.datasets import ImageData, Split, load

pytestmark = pytest.mark.usefixtures("pictures_are_drawn_once")

SMALL = Recipe(model="mlp", width=2, epochs=2, augment="shift", train_limit=320)


def weights(model) -> torch.Tensor:
    return torch.cat([value.double().ravel() for value in model.state_dict().values()])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "one"
    return folder, train(SMALL, folder, log=("csv",), progress=False)


def test_the_folder_holds_all_that_is_promised(finished):
    folder, result = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "recipe.toml", "resume.pt", "model.safetensors", "history.csv", "validation.csv",
        "curves.png", "versions.json", "result.json", "MODEL_CARD.md", "log.csv",
        "predictions.csv", "confusion.csv", "confusion.png", "hardest.png",
    }  # fmt: skip
    assert Recipe.from_toml((folder / "recipe.toml").read_text()) == SMALL
    assert json.loads((folder / "result.json").read_text())["accuracy"] == result.accuracy
    card = (folder / "MODEL_CARD.md").read_text()
    assert f"{result.accuracy:.4f}" in card and "sha256" in card
    lines = (folder / "history.csv").read_text().splitlines()
    assert len(lines) == 1 + len(result.history.loss) == 11
    assert lines[0] == "step,loss,lr,grad_norm"
    assert len((folder / "validation.csv").read_text().splitlines()) == 3
    assert len((folder / "log.csv").read_text().splitlines()) == 1 + 2 * 3 + 2
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {"torch", "python", "system"} <= json.loads(
        (folder / "versions.json").read_text()
    ).keys()


def test_a_run_repeats_to_the_bit_and_does_not_depend_on_the_global_random_state(
    finished,
):
    torch.manual_seed(99)
    np.random.seed(99)
    again = train(SMALL, progress=False)
    assert torch.equal(weights(again.model), weights(finished[1].model))


def test_a_loaded_model_gives_the_same_outputs(finished):
    folder, result = finished
    model, facts = load_model(folder)
    images = load("digits").test.images
    with torch.no_grad():
        assert torch.equal(model(images), result.model.eval()(images))
    assert not model.training and facts["classes"] == list("0123456789")
    assert facts["recipe"]["width"] == 2


def test_a_folder_is_not_overwritten_and_not_mixed(finished, tmp_path):
    folder, _ = finished
    with pytest.raises(Problem, match="continue it with --resume"):
        train(SMALL, folder)
    with pytest.raises(Problem, match=r"lr was 0\.01"):
        train(SMALL.changed(lr=0.1), folder, resume=True)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(Problem, match="holds other files"):
        train(SMALL, tmp_path)


def test_resuming_a_finished_run_changes_nothing(finished):
    folder, result = finished
    names = ("model.safetensors", "log.csv", "MODEL_CARD.md", "result.json")
    before = [(folder / name).read_bytes() for name in names]
    (folder / "resume.pt.part123").touch()  # left by a process that was killed
    again = train(SMALL, folder, resume=True, log=("csv",), progress=False)
    assert torch.equal(weights(again.model), weights(result.model))
    assert [(folder / name).read_bytes() for name in names] == before
    assert not (folder / "resume.pt.part123").exists()


@pytest.mark.parametrize(
    "settings",
    [{"patience": 3, "lr": 0.3, "schedule": "constant", "width": 8, "seed": 1},
     {"workers": 1, "dropout": 0.2}, {"augment": "mixup", "label_smoothing": 0.1},
     {"model": "cnn", "augment": "colour", "accumulation_steps": 2}],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
def test_a_run_that_was_cut_short_ends_as_the_whole_one(settings, tmp_path, monkeypatch):
    # saves in the middle of epochs
    recipe = SMALL.changed(epochs=12, train_limit=640, **settings)
    whole = train(recipe, tmp_path / "whole", log=("csv",), progress=False)
    real, rounds = running.Watch.__call__, []

    def cut(watch, run, row):
        rounds.append(row)
        if len(rounds) == 4:
            raise SystemExit
        return real(watch, run, row)

    monkeypatch.setattr(running.Watch, "__call__", cut)
    monkeypatch.setattr(running, "updates", lambda *_: (10, 12))
    with pytest.raises(SystemExit):
        train(recipe, tmp_path / "cut", log=("csv",), progress=False)
    step = torch.load(tmp_path / "cut" / CHECKPOINT, weights_only=True)["step"]
    assert step == 30
    again = train(recipe, tmp_path / "cut", resume=True, log=("csv",), progress=False)
    assert torch.equal(weights(again.model), weights(whole.model))
    for name in ("history.csv", "validation.csv", "log.csv", "result.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes()
    assert (again.best_epoch is not None) == ("patience" in settings)


def test_early_stopping_keeps_the_best_weights_and_survives_a_resume(tmp_path):
    recipe = SMALL.changed(patience=2, epochs=40, lr=0.3, schedule="constant", width=8)
    result = train(recipe, tmp_path / "run", progress=False)
    losses = [row["loss"] for row in result.history.validation]
    assert len(losses) < 40
    assert result.best_epoch == int(np.argmin(losses)) + 1 == len(losses) - 2
    again = train(recipe, tmp_path / "run", resume=True, progress=False)
    assert torch.equal(weights(again.model), weights(result.model))
    assert len(again.history.validation) == len(losses)


@pytest.mark.parametrize(
    "settings",
    [{"accumulation_steps": 4}, {"augment": "mixup"}, {"workers": 1}, {"precision": "bf16"},
     {"optimizer": "sgd", "dropout": 0.2, "lr": 0.05}, {"split": "random", "train_limit": None},
     {"model": "cnn", "epochs": 10, "norm": "group", "init": "lsuv"}],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
def test_every_kind_of_run_learns(settings):
    result = train(SMALL.changed(epochs=6, width=8).changed(**settings), progress=False)
    assert result.accuracy > 0.3 and result.low < result.accuracy < result.high


def test_accumulation_changes_no_weight_beyond_rounding():
    one = train(SMALL, progress=False)
    four = train(SMALL.changed(accumulation_steps=4), progress=False)
    assert (weights(one.model) - weights(four.model)).abs().max() < 1e-4


def test_what_the_machine_lacks_is_said_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(Problem, match="fp16 does nothing on a CPU"):
        train(SMALL.changed(precision="fp16"), tmp_path / "run")
    monkeypatch.setattr(running, "get_available_trackers", lambda: [])
    with pytest.raises(Problem, match="pip install tensorboard"):
        train(SMALL, tmp_path / "run", log=("csv", "tensorboard"))
    assert not (tmp_path / "run").exists()


def test_the_card_names_the_images_and_how_they_were_held_out(
    tmp_path, monkeypatch, capsys
):
    images, labels = torch.rand(80, 1, 8, 8), torch.arange(80) % 2
    rows, one, zero = Split(images, labels), torch.ones(1), torch.zeros(1)
    data = ImageData("own", rows, rows, rows, ("a|b", "ひ"), zero, one)
    train(SMALL, tmp_path / "run", data=data, progress=False)
    card = (tmp_path / "run" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "mlp on own" in card and "tested on own alone" in card and r"a\|b, ひ" in card
    assert "chosen by who trained it" in card and "dlcourse-train --config" not in card
    use = card.split("```python")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    Image.new("L", (30, 20), 99).save("photo.png")
    exec(use, {})  # the lines run as they stand
    assert capsys.readouterr().out.startswith("photo.png ")
    assert r"| a\|b | 40 |" in card and "Mistakes: " in card


# --------------------------------------------------------------------------- files of others


class Malicious:
    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_in_place_of_a_checkpoint_runs_no_code(tmp_path):
    folder = tmp_path / "run"
    train(SMALL, folder, progress=False)
    evil = Malicious()
    evil.path = str(tmp_path / "owned")
    for content in (pickle.dumps(evil), pickle.dumps({"format": 1, "model": evil})):
        (folder / CHECKPOINT).write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
            train(SMALL, folder, resume=True, progress=False)
    torch.save({"format": 1, "facts": evil}, folder / CHECKPOINT)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        train(SMALL, folder, resume=True, progress=False)
    (folder / "model.safetensors").write_bytes(pickle.dumps(evil))
    with pytest.raises(Problem, match="no whole safetensors file"):
        load_model(folder)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipe": {"model": "mlp", "gone": 1}}, "sets gone, .*install dlcourse 0.0.7"),
        (
            {"recipe": {"model": "mlp", "activation": "swish"}},
            "swish.*install dlcourse 0.0.7",
        ),
        ({"recipe": {"model": "mlp", "width": 9}}, "state_dict.*install dlcourse 0.0.7"),
        ({"classes": None}, "install dlcourse 0.0.7"),
        (None, "was not written by dlcourse"),
    ],
    ids=["a setting", "a choice", "other weights", "no classes", "foreign"],
)
def test_weights_of_another_version_say_which_version_reads_them(change, words, tmp_path):
    facts = {"format": FORMAT, "version": "0.0.7", "recipe": {"model": "mlp"}, "channels": 1,
             "size": 8, "classes": list("ab")}  # fmt: skip
    model = build_model(Recipe(model="mlp"), 1, 8, 2)
    save_model(model, tmp_path / "model.safetensors", facts)
    assert load_model(tmp_path)[1] == facts
    other = change and facts | change
    save_model(model, tmp_path / "model.safetensors", other)
    with pytest.raises(Problem, match=words) as caught:
        load_model(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_cut_short_foreign_and_older_files_are_refused(tmp_path):
    folder = tmp_path / "run"
    train(SMALL, folder, progress=False)
    for name, reader in (
        ("model.safetensors", lambda: load_model(folder)),
        (CHECKPOINT, lambda: train(SMALL, folder, resume=True, progress=False)),
    ):
        whole = (folder / name).read_bytes()
        for content in (whole[: len(whole) // 2], whole[:3], b"", b"GIF89a" + whole):
            (folder / name).write_bytes(content)
            with pytest.raises((Problem, ValueError), match=name):
                reader()
        (folder / name).write_bytes(whole)
        reader()
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    torch.save(state | {"format": 99}, folder / CHECKPOINT)
    with pytest.raises(ValueError, match="has format 99"):
        train(SMALL, folder, resume=True, progress=False)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    facts = json.loads(header["__metadata__"]["dlcourse"]) | {"format": 99}
    header["__metadata__"]["dlcourse"] = json.dumps(facts)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    with pytest.raises(
        Problem, match="has format 99, this version reads 1: install dlcourse"
    ):
        load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(Problem, match=r"has no model\.safetensors"):
        load_model(folder)
