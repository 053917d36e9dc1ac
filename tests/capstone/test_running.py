"""A recipe is what it says in its file, and a run of it can be repeated, resumed and
loaded.
"""

from __future__ import annotations

import json
import math
import pickle
import random
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from dlcourse import recipe as rc
from dlcourse.lab.datasets import ImageData, Split, load
from dlcourse.recipe import (
    Problem,
    Recipe,
    build_model,
    build_schedule,
    load_model,
    train,
)

pytestmark = pytest.mark.usefixtures("pictures_are_drawn_once")

SMALL = Recipe(model="mlp", width=2, epochs=2, augment="shift", train_limit=320)


def weights(model) -> torch.Tensor:
    return torch.cat([value.double().ravel() for value in model.state_dict().values()])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "one"
    return folder, train(SMALL, folder, log=("csv",), progress=False)


# --------------------------------------------------------------------------- the settings


@pytest.mark.parametrize("seed", range(20))
def test_toml_gives_the_same_recipe_back(seed):
    rng = random.Random(seed)
    values = {}
    for name, spec in rc.FIELDS().items():
        about = spec.metadata
        if name in ("data", "split", "root"):
            continue
        if about["choices"]:
            values[name] = rng.choice(about["choices"])
        elif rc.kind(spec) is bool:
            values[name] = rng.random() < 0.5
        elif rc.kind(spec) is int:
            values[name] = int(about["low"]) + rng.randrange(5)
        elif rc.kind(spec) is float:
            values[name] = about["low"] + rng.random() * 0.4
    values |= {
        "max_norm": math.inf,
        "root": 'a "quoted" \\ path\twith é 😀 \x7f',
        "accumulation_steps": 1,
    }
    one = Recipe(**values)
    assert Recipe.from_toml(one.to_toml()) == one


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": 0.0}, "lr=0.0: give at least"),
        ({"lr": "fast"}, "is no float"),
        ({"lr": math.nan}, "give at least"),
        ({"lr": math.inf}, "give at most"),
        ({"weight_decay": math.inf}, "give at most"),
        ({"seed": 2**63}, "give at most"),
        ({"epochs": True}, "is no int"),
        ({"epochs": 0}, "give at least 1"),
        ({"augment": "rotate"}, "choose one of none, shift"),
        ({"validation": 0.7}, "give at most"),
        ({"data": "folder"}, "needs a path"),
        ({"data": "mnist", "split": "group"}, "split group"),
        ({"data": "mnist", "split": "random"}, "its own test images"),
        ({"accumulation_steps": 65}, "lower it"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(Problem, match=words):
        Recipe(**settings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr = ", "is not TOML"),
        ("rate = 1.0", "sets rate, which is no setting"),
        ("lr=1", ""),
    ],
)
def test_files_that_are_no_recipe_are_refused(text, words):
    if not words:
        assert Recipe.from_toml(text).lr == 1
        return
    with pytest.raises(Problem, match=words):
        Recipe.from_toml(text, "recipe.toml")


# --------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("schedule", rc.SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_schedules_warm_up_to_one_and_never_exceed_it(schedule, warmup):
    factor = build_schedule(Recipe(schedule=schedule, warmup=warmup), 100)
    values = [factor(t) for t in range(100)]
    assert max(values) == pytest.approx(1.0) and min(values) >= 0 and values[0] > 0
    if schedule != "constant":
        assert values[-1] < 0.25
    assert values[: round(100 * warmup)] == sorted(values[: round(100 * warmup)])


@pytest.mark.parametrize("augment", rc.AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentations_keep_shapes_and_draw_from_the_generator(augment, channels):
    g = torch.Generator().manual_seed(0)
    split = Split(torch.rand(20, channels, 16, 16, generator=g), torch.arange(20) % 4)
    mean, std = torch.full((channels,), 0.5), torch.full((channels,), 0.25)
    images = (split.images - 0.5) / 0.25
    data = ImageData("own", split, split, split, tuple("abcd"), mean, std)
    outputs = []
    for _ in range(2):
        transform = rc.build_transform(
            Recipe(augment=augment), data, torch.Generator().manual_seed(3)
        )
        if transform is None:
            assert augment == "none"
            return
        torch.rand(3)  # the global state plays no part
        outputs.append(transform(images, split.labels))
    (one, labels), (two, _) = outputs
    assert (
        torch.equal(one, two)
        and one.shape == images.shape
        and not torch.equal(one, images)
    )
    assert labels.shape == ((20, 4) if augment == "mixup" else (20,))


@pytest.mark.parametrize("init", rc.INITS)
@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_models_start_alike_from_one_seed(init, model):
    recipe = Recipe(init=init, model=model, width=4, norm="group")
    images = torch.randn(64, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    pair = [
        rc.initialize(build_model(recipe, 3, 24, 5), recipe, images) for _ in range(2)
    ]
    assert torch.equal(weights(pair[0]), weights(pair[1]))
    outputs = pair[0](images)
    assert (
        outputs.shape == (64, 5)
        and outputs.isfinite().all()
        and 0.01 < outputs.std() < 20
    )


def test_split_by_group_keeps_writers_apart():
    data = rc.load_data(Recipe(split="group", validation=0.2, test=0.2))
    train_groups, test_groups = (
        set(data.train.groups.tolist()),
        set(data.test.groups.tolist()),
    )
    assert train_groups.isdisjoint(test_groups) and len(test_groups) >= 2
    flat = data.train.images.double()
    assert abs(flat.mean()) < 1e-5 and abs(flat.std(correction=0) - 1) < 1e-5


@pytest.mark.parametrize("split", ["random", "group"])
def test_the_limit_on_training_images_holds_for_every_split(split):
    whole = rc.load_data(Recipe(split=split))
    data = rc.load_data(Recipe(split=split, train_limit=320))
    assert len(data.train) == 320 and len(data.train.labels.unique()) == 10
    assert torch.equal(data.test.labels, whole.test.labels)
    with pytest.raises(Problem, match=f"at most {len(whole.train)}"):
        rc.load_data(Recipe(split=split, train_limit=1700))


def test_with_split_refuses_rows_used_twice_and_normalised_images():
    raw = load("digits", normalize=False)
    with pytest.raises(ValueError, match="two parts"):
        raw.with_split([0, 1], [1, 2], [3])
    with pytest.raises(ValueError, match="normalize=False"):
        load("digits").with_split([0, 1], [2], [3])


# --------------------------------------------------------------------------- data that cannot serve


def own(images=None, labels=None, classes="ab"):
    images = torch.rand(80, 1, 8, 8) if images is None else images
    labels = torch.arange(80) % 2 if labels is None else labels
    split = Split(images, labels)
    return ImageData(
        "own", split, split, split, tuple(classes), torch.zeros(1), torch.ones(1)
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (own(images=torch.full((80, 1, 8, 8), math.nan)), "80 train images hold NaN"),
        (own(images=torch.full((80, 1, 8, 8), math.inf)), "hold NaN or infinity"),
        (own(labels=torch.arange(80) % 3), "labels run from 0 to 2, but 2 classes"),
        (own(labels=torch.arange(80) % 2 - 1), "labels run from -1 to 0"),
        (own(labels=torch.zeros(80, dtype=torch.long)), "one class only"),
        (own(classes="abc"), "no training image of class c"),
        (own(torch.rand(20, 1, 8, 8), torch.arange(20) % 2), "use --batch-size 5"),
        (own(torch.rand(0, 1, 8, 8), torch.arange(0)), "no train images"),
    ],
    ids=[
        "nan",
        "inf",
        "label too high",
        "label below 0",
        "one class",
        "empty class",
        "few",
        "none",
    ],
)
def test_data_that_would_waste_a_run_is_refused_before_it(data, words, tmp_path):
    with pytest.raises(Problem, match=words):
        train(SMALL, tmp_path / "run", data=data)
    assert not (tmp_path / "run" / rc.CHECKPOINT).exists()


# --------------------------------------------------------------------------- the run


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
    real, rounds = rc.Watch.__call__, []

    def cut(watch, run, row):
        rounds.append(row)
        if len(rounds) == 4:
            raise SystemExit
        return real(watch, run, row)

    monkeypatch.setattr(rc.Watch, "__call__", cut)
    monkeypatch.setattr(rc, "updates", lambda *_: (10, 12))
    with pytest.raises(SystemExit):
        train(recipe, tmp_path / "cut", log=("csv",), progress=False)
    step = torch.load(tmp_path / "cut" / rc.CHECKPOINT, weights_only=True)["step"]
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
    monkeypatch.setattr(rc, "get_available_trackers", lambda: [])
    with pytest.raises(Problem, match="pip install tensorboard"):
        train(SMALL, tmp_path / "run", log=("csv", "tensorboard"))
    assert not (tmp_path / "run").exists()


def test_the_card_names_the_images_and_how_they_were_held_out(
    tmp_path, monkeypatch, capsys
):
    data = own(classes=("a|b", "ひ"))
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
        (folder / rc.CHECKPOINT).write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
            train(SMALL, folder, resume=True, progress=False)
    torch.save({"format": 1, "facts": evil}, folder / rc.CHECKPOINT)
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
    facts = {"format": rc.FORMAT, "version": "0.0.7", "recipe": {"model": "mlp"}, "channels": 1,
             "size": 8, "classes": list("ab")}  # fmt: skip
    model = build_model(Recipe(model="mlp"), 1, 8, 2)
    rc.save_model(model, tmp_path / "model.safetensors", facts)
    assert load_model(tmp_path)[1] == facts
    other = change and facts | change
    rc.save_model(model, tmp_path / "model.safetensors", other)
    with pytest.raises(Problem, match=words) as caught:
        load_model(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_cut_short_foreign_and_older_files_are_refused(tmp_path):
    folder = tmp_path / "run"
    train(SMALL, folder, progress=False)
    for name, reader in (
        ("model.safetensors", lambda: load_model(folder)),
        (rc.CHECKPOINT, lambda: train(SMALL, folder, resume=True, progress=False)),
    ):
        whole = (folder / name).read_bytes()
        for content in (whole[: len(whole) // 2], whole[:3], b"", b"GIF89a" + whole):
            (folder / name).write_bytes(content)
            with pytest.raises((Problem, ValueError), match=name):
                reader()
        (folder / name).write_bytes(whole)
        reader()
    state = torch.load(folder / rc.CHECKPOINT, weights_only=True)
    torch.save(state | {"format": 99}, folder / rc.CHECKPOINT)
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
