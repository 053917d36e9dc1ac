"""A trained model asked about new images, from Python and from the command line."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dlcourse.capstone import predict as pr
from dlcourse.capstone.cli import main as train
from dlcourse.capstone.settings import Problem
from dlcourse.predict import Classifier, main

ROOT = Path(__file__).resolve().parents[2]


def draw(path: Path, bright: bool, seed: int, mode: str = "RGB") -> None:
    """Write a noisy image, bright or dark."""
    pixels = np.random.default_rng(seed).integers(0, 80, (20, 32, 3)) + 150 * bright
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run on dark and bright images, and new images."""
    place = tmp_path_factory.mktemp("place")
    for number in range(80):
        name = ("dark", "light")[number % 2]
        mode = ("RGB", "L", "RGBA")[number % 3]
        ending = (
            "png" if mode == "RGBA" else ("png", "jpg", "JPG", "PNG")[number // 2 % 4]
        )
        draw(place / "images" / name / f"{number}.{ending}", number % 2, number, mode)
        if number < 6:
            draw(place / "new" / name / f"{number}.png", number % 2, 100 + number)
    options = ["--model", "mlp", "--width", "2", "--batch-size", "8", "--epochs", "5"]
    images = str(place / "images")
    assert train(["--data", "folder", images, *options, "--out", str(place / "run")]) == 0
    return place


def test_three_lines_of_python(place):
    classify = Classifier(place / "run")
    one, two = classify(place / "new/dark/0.png", str(place / "new/light/1.png"))
    assert (one.label, two.label) == ("dark", "light")
    assert one.probability == max(one.probabilities.values()) == one.probabilities["dark"]
    assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-6)
    assert repr(classify) == "Classifier(2 classes, 3x32x32)"


def test_the_test_images_get_the_probabilities_that_the_run_wrote(place):
    with open(place / "run" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    answers = Classifier(place / "run")(
        *(place / "images" / row["image"] for row in rows)
    )
    assert len(rows) == 12
    for row, answer in zip(rows, answers, strict=True):
        assert (
            row["image"].startswith(row["true"] + "/")
            and row["predicted"] == answer.label
        )
        for name, share in answer.probabilities.items():
            assert float(row[f"p({name})"]) == pytest.approx(share, abs=1e-4)
    of_true = [float(row["probability_of_true"]) for row in rows]
    assert of_true == sorted(of_true)


def test_images_turned_by_their_exif_data_are_seen_upright(place, tmp_path):
    pixels = np.arange(64 * 64, dtype=np.uint32).reshape(64, 64) // 16
    upright = Image.fromarray(pixels.astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    upright.save(tmp_path / "a.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=exif)
    classify = Classifier(place / "run")
    assert torch.equal(
        classify.read(tmp_path / "a.png"), classify.read(tmp_path / "b.png")
    )


def test_a_model_of_grey_images_sees_colours_as_pillow_greys_them(tmp_path):
    arguments = ["--model", "mlp", "--width", "1", "--epochs", "1", "--train-limit", "64"]
    assert train([*arguments, "--out", str(tmp_path / "run")]) == 0
    classify = Classifier(tmp_path / "run")
    assert classify.channels == 1
    draw(tmp_path / "colour.png", True, 0)
    Image.open(tmp_path / "colour.png").convert("L").save(tmp_path / "grey.png")
    off = classify.read(tmp_path / "colour.png") - classify.read(tmp_path / "grey.png")
    assert off.abs().max() < 1.5 / 255  # both are rounded
    assert len(classify(tmp_path)) == 2  # the pictures of the run are none of them


def test_compressed_models_answer_too(place, capsys):
    arguments = ["--resume", "--out", str(place / "run"), "--compress", "quantize"]
    assert train(arguments) == 0
    assert main([str(place / "run/compressed/quantize"), str(place / "new/dark")]) == 0
    assert "accuracy 1.0000" in capsys.readouterr().out


def test_the_command_prints_a_line_an_image_and_a_verdict_where_classes_are_known(
    place, capsys
):
    out = place / "out.csv"
    assert (
        main([str(place / "run"), str(place / "new"), "--csv", str(out), "--top", "1"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if ".png   " in line]) == 6 and "light" in lines[5]
    assert any(line.startswith("accuracy 1.0000 [") for line in lines)
    assert "most frequent mistakes: none" in lines
    with open(out, newline="") as file:
        assert [row["true"] for row in csv.DictReader(file)] == ["dark"] * 3 + [
            "light"
        ] * 3
    draw(place / "holiday.png", True, 5)
    assert main([str(place / "run"), str(place / "new"), str(place / "holiday.png")]) == 0
    said = capsys.readouterr().out
    assert "accuracy" not in said and "holiday.png   light" in said


def test_a_wrong_name_is_marked(place, tmp_path, capsys):
    draw(tmp_path / "dark" / "a.png", True, 3)
    assert main([str(place / "run"), str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert (
        "wrong: dark" in said
        and "most frequent mistakes: dark taken for light (1)" in said
    )


def test_folders_are_searched_for_images_only(place, tmp_path):
    for name in ("b.PNG", "deep/er/a.jpg", ".hidden/c.png", "._d.png"):
        draw(tmp_path / name, True, 0)
    for name in ("notes.txt", "Thumbs.db", "data.csv"):
        (tmp_path / name).write_text("x")
    found = [path.relative_to(tmp_path).as_posix() for path in pr.find_images([tmp_path])]
    assert found == ["b.PNG", "deep/er/a.jpg"]


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(place, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG but no more")
    draw(tmp_path / "good.png", True, 0)
    assert main([str(place / "run"), str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "bad.png cannot be read" in err and "good.png   light" in out
    with pytest.raises(Problem, match="bad.png cannot be read"):
        Classifier(place / "run")(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "new"], "nowhere has no model.safetensors"),
        (["run", "nowhere"], "no file or folder nowhere"),
        (["run", "empty"], "empty holds no images"),
        (["run", "new", "--top", "0"], "give at least 1"),
        (["run", "new", "--csv", "no/where.csv"], "there is no folder no"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(place, arguments, words, monkeypatch, capsys):
    monkeypatch.chdir(place)
    Path("empty").mkdir(exist_ok=True)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_pixels_of_another_shape_or_range_are_refused(place):
    classify = Classifier(place / "run")
    assert classify.probabilities(torch.rand(5, 3, 32, 32)).sum(1).allclose(torch.ones(5))
    for pixels, words in (
        (torch.rand(3, 32, 32), r"\(n, 3, 32, 32\)"),
        (torch.rand(2, 1, 32, 32), r"\(n, 3, 32, 32\)"),
        (torch.full((1, 3, 32, 32), 255.0), "divide 8-bit ones by 255"),
        (torch.ones(1, 3, 32, 32, dtype=torch.uint8), "divide 8-bit ones by 255"),
        (torch.full((1, 3, 32, 32), torch.nan), "from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=words):
            classify.probabilities(pixels)


def test_python_m_works(place):
    command = [
        sys.executable,
        "-m",
        "dlcourse.predict",
        str(place / "run"),
        str(place / "new"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0 and "accuracy 1.0000" in done.stdout, done.stderr


def test_the_model_can_be_exported_for_any_number_of_images(place):
    model = Classifier(place / "run").model
    sizes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(
        model, (torch.rand(2, 3, 32, 32),), dynamic_shapes=sizes
    )
    images = torch.rand(5, 3, 32, 32)
    assert (exported.module()(images) - model(images)).abs().max() < 1e-6
