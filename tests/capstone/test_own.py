"""Folders of images as people have them, and what then must not happen in silence.

Each docstring of a test with a bar in it is a row of docs/reliability.md.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dlcourse.capstone import leaks
from dlcourse.capstone.building import build_model, loss_function
from dlcourse.capstone.cli import main
from dlcourse.capstone.copies import look_at, pairs_of
from dlcourse.capstone.data import load_data
from dlcourse.capstone.folder import load_model
from dlcourse.capstone.running import train
from dlcourse.capstone.settings import Problem, Recipe
from dlcourse.lab import folders, images
from dlcourse.lab.datasets import load
from dlcourse.lab.launching import launch
from dlcourse.lab.pixels import OnDisk
from dlcourse.predict import Classifier

pytestmark = pytest.mark.usefixtures("pictures_are_drawn_once")

SMALL = {"model": "mlp", "width": 2, "batch_size": 8, "epochs": 1, "size": 16}
WORDS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]


def picture(seed: int, side: int = 24, mode: str = "RGB") -> Image.Image:
    """Return a picture of its own for each seed: five by five patches of any colour."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return (
        Image.fromarray(patches)
        .resize((side, side), Image.Resampling.NEAREST)
        .convert(mode)
    )


def write(root: Path, counts: dict[str, int], first: int = 0, side: int = 24) -> Path:
    """Write so many pictures into each folder, by its path below root; no two alike."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            picture(first, side).save(root / name / f"{first}.png")
            first += 1
    return root


def table_of(run: Path) -> dict[str, tuple[str, str]]:
    """Return {file: (class, part)} of the images of a run."""
    with open(run / "images.csv", newline="") as file:
        return {row["file"]: (row["class"], row["split"]) for row in csv.DictReader(file)}


def command(root: Path, *words: str, out: Path | None = None) -> int:
    folder = ["--out", str(out)] if out else []
    return main(["--data", "folder", str(root), *WORDS, *words, *folder])


def refused(capsys, root: Path, *words: str, code: int = 2) -> str:
    """Return the one line with which the command refuses a folder."""
    capsys.readouterr()
    assert command(root, *words) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


# --- copies -----------------------------------------------------------------------------------


def test_copies(tmp_path, capsys):
    """A picture is there several times, as it is or nearly | all stay on one side of the
    split; counted in a line and in the card; a picture in two classes is named
    """
    root, out = tmp_path / "images", tmp_path / "run"
    for number in range(80):
        folder = root / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        one = picture(number, 40)
        for copy in range(3):
            one.save(folder / f"{number}-{copy}.{('png', 'bmp', 'tiff')[copy]}")
        one.resize((64, 64)).save(folder / f"{number}-3.jpg", quality=80)
        one.point(lambda value: 0.9 * value + 10).save(folder / f"{number}-4.png")
    assert command(root, "--epochs=10", out=out) == 0
    table = table_of(out)
    sides: dict[str, set] = {}
    for file, (_, part) in table.items():
        sides.setdefault(Path(file).name.split("-")[0], set()).add(part)
    assert len(table) == 400 and all(len(parts) == 1 for parts in sides.values())
    said, card = capsys.readouterr().out, (out / "MODEL_CARD.md").read_text()
    for text in (said, card):
        assert "copies: 320 of 400 images show a picture that is there already" in text
    assert json.loads((out / "result.json").read_text())["accuracy"] < 0.9  # it was 1
    shutil.copy(root / "cat" / "0-0.png", root / "dog" / "other name.png")
    assert command(root, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "1 pictures stand in two classes" in said
    assert "cat/0-0.png and dog/other name.png (exact)" in said


def test_no_copies_are_found_where_none_are(tmp_path):
    for name, most in (("digits", 40), ("mnist_5k", 3)):
        pixels = load(name, normalize=False).train.images[:1500]
        pixels = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear")
        stored = (pixels * 255).round().byte().numpy()
        seen = look_at(np.array_split(stored, 3))
        assert len(pairs_of(*seen, stored.__getitem__)) <= most
    noise = np.stack(
        [np.asarray(picture(seed, 32)).transpose(2, 0, 1) for seed in range(300)]
    )
    assert pairs_of(*look_at([noise]), noise.__getitem__) == []


def test_where_there_are_no_copies_the_split_is_that_of_the_lab(tmp_path):
    root = write(tmp_path / "images", {"cat": 20, "dog": 12})
    mine = load_data(Recipe(data="folder", root=str(root), size=16, batch_size=8, seed=3))
    labs = load("folder", root, size=16, seed=3)
    for part in ("train", "validation", "test"):
        one, other = getattr(mine, part), getattr(labs, part)
        assert one.files == other.files and torch.equal(one.labels, other.labels)
        assert (one.images[:] - other.images).abs().max() < 1e-5
        pixels = (other.images[:4] - mine.mean.view(-1, 1, 1)) / mine.std.view(-1, 1, 1)
        assert one.images[:4].shape == pixels.shape


# --- the split that is mine -------------------------------------------------------------------


def test_ready_splits(tmp_path, capsys):
    """The root holds train, val and test | they are the split, and copies of what is held
    out do not train; other folders beside them, or no class folders, are refused
    """
    counts = {"cat": 12, "dog": 8}
    for number, split in enumerate(("Train", "valid", "test")):
        write(tmp_path / "images" / split, counts, 100 * number)
    root, out = tmp_path / "images", tmp_path / "run"
    shutil.copy(root / "test/cat/200.png", root / "Train/cat/copy.png")
    assert command(root, out=out) == 0
    said = capsys.readouterr().out
    assert "given: 20 train, 20 validation, 20 test" in said and "2 classes" in said
    assert "1 images of the given split are left out" in said
    assert (
        "20 test images, those of the given split" in (out / "MODEL_CARD.md").read_text()
    )
    for file, (label, part) in table_of(out).items():
        top = {"Train": "train", "valid": "validation", "test": "test"}[
            file.split("/")[0]
        ]
        assert (top, file.split("/")[1]) == (part, label)
    assert [
        len(part) for part in (load("folder", root).train, load("folder", root).test)
    ] == [21, 20]
    shutil.rmtree(root / "valid")  # then validation comes from the training images
    assert command(root, "--dry-run") == 0
    assert "17 train, 3 validation, 20 test" in capsys.readouterr().out
    write(root, {"extra": 3}, 900)
    assert "and also extra" in refused(capsys, root)
    shutil.rmtree(root / "extra")
    shutil.rmtree(root / "test/cat"), shutil.rmtree(root / "test/dog")
    picture(901).save(root / "test" / "a.png")
    assert "test/<class>/<image>, or name the class of each file in a CSV" in refused(
        capsys, root
    )
    shutil.rmtree(root / "Train")
    write(root, {"val": 3}, 902)
    assert "but no train" in refused(capsys, root)


def test_root_without_a_folder(tmp_path, capsys):
    """`--root` without `--data folder` | refused: it does not train on the digits"""
    assert main(["--root", str(tmp_path)]) == 2
    assert f"write --data folder {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["pattern", "level", "table"])
def test_groups(tmp_path, capsys, how):
    """Several images are of one person, film or machine | `--groups` by folder level,
    pattern or CSV keeps them on one side
    """
    root, out, number = tmp_path / "images", tmp_path / "run", 0
    lines = ["file,group"]
    for person in range(12):
        for label in ("ill", "well"):
            folder = root / label / (f"p{person}" if how == "level" else "")
            folder.mkdir(parents=True, exist_ok=True)
            for shot in range(2):
                number += 1
                picture(number).save(folder / f"p{person}_{shot}.png")
                lines.append(f"{label}/p{person}_{shot}.png,p{person}")
    (tmp_path / "groups.csv").write_text("\n".join(lines))
    words = {"pattern": r"^(p\d+)_", "level": "2", "table": str(tmp_path / "groups.csv")}
    assert command(root, "--groups", words[how], out=out) == 0
    sides: dict[str, set] = {}
    for file, (_, part) in table_of(out).items():
        sides.setdefault(Path(file).name.split("_")[0], set()).add(part)
    assert len(sides) == 12 and all(len(parts) == 1 for parts in sides.values())
    assert {part for parts in sides.values() for part in parts} == {
        "train",
        "validation",
        "test",
    }
    assert "12 groups by" in capsys.readouterr().out
    assert "whole groups" in (out / "MODEL_CARD.md").read_text()
    if how != "level":
        return
    assert "holds folders (p0" in (line := refused(capsys, root)) and "--groups 2" in line
    assert "gives" not in refused(capsys, root, "--groups", "(")


def test_labels_in_a_table(tmp_path, capsys):
    """The classes stand in a table, not in folders | `--labels CSV` (file, label, and split
    where there is one); files it misses are counted, files that are missing named
    """
    root, table = (
        write(tmp_path / "images", {"a": 20, "b/c": 21}),
        tmp_path / "labels.csv",
    )
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))[:-1]
    rows = [f"{file},{('up', 'down')[row % 2]}" for row, file in enumerate(files)]
    table.write_text("\n".join(["file,label", *rows]))
    out = tmp_path / "run"
    assert command(root, "--labels", str(table), out=out) == 0
    assert "1 images of no class passed over: b/c/" in capsys.readouterr().out
    found = table_of(out)
    assert {file: found[file][0] for file in files} == dict(
        row.split(",") for row in rows
    )
    parts = [("train", "val", "test")[min(row // 2 % 4, 2)] for row in range(len(rows))]
    table.write_text(
        "\n".join(
            [
                "file,label,split",
                *(f"{row},{part}" for row, part in zip(rows, parts, strict=True)),
            ]
        )
    )
    assert command(root, "--labels", str(table), "--dry-run") == 0
    assert "10 train, 10 validation, 20 test" in capsys.readouterr().out
    table.write_text("file,label\na/none.png,up\n" + "\n".join(rows))
    assert (
        "1 files of" in (line := refused(capsys, root, "--labels", str(table)))
        and "a/none.png" in line
    )
    table.write_text("name,label\n")
    assert "names file and label" in refused(capsys, root, "--labels", str(table))


def test_a_split_that_the_leaks_command_wrote_is_kept(tmp_path):
    root, table = (
        write(tmp_path / "images", {"cat": 20, "dog": 20}),
        tmp_path / "split.csv",
    )
    shutil.copy(root / "cat" / "0.png", root / "cat" / "copy.png")
    assert leaks.main([str(root), "--csv", str(table)]) == 0
    data = load_data(Recipe(data="folder", root=str(root), labels=str(table), **SMALL))
    with open(table, newline="") as file:
        wanted = {
            row["file"]: (row["class"], row["split"]) for row in csv.DictReader(file)
        }
    assert {file: (label, part) for file, label, part, _ in data.table} == wanted
    assert data.how == "given" and len(wanted) == 41


# --- resuming, and where a run lies -----------------------------------------------------------


def test_images_that_changed(tmp_path, capsys):
    """The images are others when a run goes on | refused: how many were added, are gone,
    changed or moved to another class, and what to do
    """
    root, out = write(tmp_path / "images", {"cat": 20, "dog": 20}), tmp_path / "run"
    assert command(root, out=out) == 0
    again = ["--resume", "--out", str(out)]
    assert main(again) == 0
    cat, dog = root / "cat", root / "dog"
    for change, words in (
        (lambda: picture(900).save(cat / "0.png"), "1 with other pixels (cat/0.png)"),
        (
            lambda: (cat / "0.png").rename(dog / "0.png"),
            "1 added (dog/0.png), 1 gone (cat/0.png)",
        ),
    ):
        change()
        capsys.readouterr()
        assert main(again) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line and "another --out" in line, line
    (dog / "0.png").rename(cat / "0.png")
    picture(0).save(cat / "0.png")
    assert main(again) == 0
    (cat / "1.png").touch()  # a copy of the folder has other times, and is the same
    assert main(again) == 0


def test_a_run_inside_the_images(tmp_path, capsys, monkeypatch):
    """A run lies in the folder of the images | it is passed over, in the next run and when
    the model is asked
    """
    root = write(tmp_path / "images", {"cat": 12, "dog": 12})
    monkeypatch.chdir(root)
    assert command(Path(".")) == 0 and command(Path(".")) == 0
    assert command(Path("."), out=Path("mine")) == 0
    assert main(["--resume", "--out", "mine"]) == 0
    assert {path.name for path in Path("runs").iterdir()} == {"images", "images-2"}
    assert len(Classifier("mine")(".")) == 24
    assert "2 classes" in capsys.readouterr().out


# --- one reader -------------------------------------------------------------------------------


def test_one_reader(tmp_path, capsys):
    """Links, files without or with a wrong ending, 16 and 32 bits, in training and in
    predict | the same files give the same pixels; HEIC names the package that reads it
    """
    root, out, linked = tmp_path / "images", tmp_path / "run", tmp_path / "elsewhere"
    write(root, {"cat": 12}), write(linked, {"x": 12}, 50)
    os.symlink(linked / "x", root / "dog")
    picture(200).save(root / "cat" / "no ending", "png")
    picture(201).save(root / "cat" / "wrong.txt", "jpeg")
    picture(202).save(root / "cat" / "is a jpeg.png", "jpeg")
    deep = np.random.default_rng(0).integers(0, 2**16, (16, 16))
    Image.fromarray(deep.astype(np.uint16)).save(root / "cat" / "16.png")
    Image.fromarray((deep * 2**14).astype(np.int32)).save(root / "cat" / "32.tiff")
    assert command(root, out=out) == 0
    classify = Classifier(out)
    answers = {
        Path(answer.file).relative_to(root).as_posix(): answer
        for answer in classify(root)
    }
    assert set(answers) == set(table_of(out)) and len(answers) == 29
    with open(out / "predictions.csv", newline="") as file:
        for row in csv.DictReader(file):
            share = answers[row["image"]].probabilities["cat"]
            assert float(row["p(cat)"]) == pytest.approx(share, abs=1e-4)
    two = [images.pixels_of(root / "cat" / name, 16) for name in ("16.png", "32.tiff")]
    assert np.abs(two[0][0] - deep / (2**16 - 1)).max() < 1e-6
    assert np.abs(two[1][0] - deep * 2**14 / (2**31 - 1)).max() < 1e-6
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    (root / "cat" / "phone.heic").write_bytes(heic)
    assert "phone.heic (it is HEIC, which python -m pip install pillow-heif" in refused(
        capsys, root
    )
    with pytest.raises(Problem, match="phone.heic cannot be read.*pillow-heif"):
        classify(root)


def test_deep_pixels_keep_their_steps(tmp_path):
    """Of 12 bits in 16, eight would leave 16 steps."""
    for number in range(24):
        folder = tmp_path / "images" / ("a", "b")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        scan = np.random.default_rng(number).integers(0, 4096, (16, 16)).astype(np.uint16)
        Image.fromarray(scan).save(folder / f"{number}.png")
    data = load_data(Recipe(data="folder", root=str(tmp_path / "images"), **SMALL))
    assert len(data.train.images[:].unique()) > 1500
    assert data.train.images[:].std() == pytest.approx(1, abs=0.01)


# --- before any work, and at the end ----------------------------------------------------------


def test_out_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    """`--out` cannot be written | said before an image is read"""
    root = write(tmp_path / "images", {"cat": 4, "dog": 4})
    monkeypatch.setattr(images, "decode", pytest.fail)
    (tmp_path / "file").write_text("mine")
    for out in ("/sys/run", str(tmp_path / "file"), str(tmp_path / "file" / "run")):
        assert "another folder with --out" in refused(capsys, root, "--out", out)


def test_loss_out_of_bounds(tmp_path, capsys):
    """The loss has left all bounds, but is a number | a message, exit code 1, no model"""
    arguments = [
        "--model=mlp",
        "--width=2",
        "--norm=none",
        "--train-limit=321",
        "--epochs=2",
    ]
    hot = [
        "--lr=1e5",
        "--optimizer=sgd",
        "--warmup=0",
        "--weight-decay=0",
    ]
    out = tmp_path / "run"
    assert main([*arguments, *hot, "--out", str(out)]) == 1
    line = capsys.readouterr().err
    assert "the loss has left all bounds" in line and "guessing gives 2.3" in line, line
    assert not (out / "model.safetensors").exists()


# --- uneven classes ---------------------------------------------------------------------------


def test_uneven_classes(tmp_path, capsys):
    """One class has many times the images of another | said, with what naming it always
    would give; balanced accuracy beside the accuracy; `--balance` evens them
    """
    root, out = write(tmp_path / "images", {"many": 100, "few": 7}), tmp_path / "run"
    assert command(root, out=out) == 0
    said, card = capsys.readouterr().out, (out / "MODEL_CARD.md").read_text()
    assert (
        "70 training images of many, 5 of few; to name many always is right for 0.9333"
        in said
    )
    numbers = json.loads((out / "result.json").read_text())
    with open(out / "confusion.csv", newline="") as file:
        _, *rows = csv.reader(file)
    recall = [int(row[1 + k]) / sum(map(int, row[1:])) for k, row in enumerate(rows)]
    assert numbers["balanced"] == pytest.approx(sum(recall) / 2)
    balanced = f"{numbers['balanced']:.4f}"
    assert f"balanced accuracy {balanced}; naming the most frequent class" in said
    assert "| naming the most frequent class always | 0.9375 |" in card
    assert f"| balanced accuracy (mean recall of the classes) | {balanced} |" in card
    recipe = Recipe(data="folder", root=str(root), **SMALL)
    sampled = load_data(recipe.changed(balance="sampling"))
    assert sampled.train.labels.bincount().tolist() == [70, 70]
    plain = load_data(recipe)
    assert torch.equal(sampled.mean, plain.mean) and len(set(sampled.train.files)) == 75
    loss = loss_function(recipe.changed(balance="weights"), plain.train.labels)
    outputs = torch.zeros(75, 2).index_fill_(1, torch.tensor([0]), 5.0)  # all "few"
    apart = [
        torch.nn.functional.cross_entropy(outputs[:1], torch.tensor([k])) for k in (0, 1)
    ]
    assert loss(outputs, plain.train.labels) == pytest.approx(
        float(sum(apart)) / 2, rel=1e-5
    )
    both = torch.nn.functional.one_hot(plain.train.labels).float()
    assert loss(outputs, both) == pytest.approx(float(sum(apart)) / 2, rel=1e-5)


# --- words ------------------------------------------------------------------------------------


def test_words_for_what_lies_in_folders(tmp_path, capsys):
    """`__MACOSX`, `@eaDir`, notes and hundreds of damaged files | passed over and counted;
    summed up in one line; a class of two images says what it needs
    """
    root = write(
        tmp_path / "images", {"cat": 12, "dog": 12, "__MACOSX/cat": 1, "@eaDir": 1}
    )
    write(root / "cat", {"@eaDir": 2}, 70)
    for number in range(5):
        (root / "cat" / f"notes{number}.txt").write_text("a note")
    picture(80).save(root / "loose.png")
    assert command(root, "--dry-run") == 0
    said = capsys.readouterr().out
    assert (
        "5 files that are no images passed over: cat/notes0.txt; cat/notes1.txt; " in said
    )
    assert "cat/notes2.txt and 2 more" in said and "2 classes" in said
    assert "1 images of no class passed over: loose.png" in said
    for number in range(300):
        (root / "dog" / f"bad{number:03d}.jpg").write_bytes(b"\xff\xd8 no more")
    line = refused(capsys, root)
    assert "300 file(s)" in line and "bad002.jpg" in line and "and 297 more" in line
    assert len(line) < 700 and "--skip-corrupt" in line
    write(root, {"owl": 2}, 400)
    for path in root.rglob("bad*.jpg"):
        path.unlink()
    assert "class 'owl' has 2 image(s), too few: it needs 3" in refused(capsys, root)


def test_paths_of_windows_in_a_recipe():
    """A path of Windows in TOML | written so that it is read again; `"C:\\images"` says
    how to write it
    """
    recipe = Recipe(data="folder", root="C:\\Users\\new images")
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    with pytest.raises(Problem, match=r"a path as 'C:\\images' or \"C:/images\""):
        Recipe.from_toml('data = "folder"\nroot = "C:\\Users\\me"')


# --- large images and many --------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 48, 64, 128])
def test_the_network_sees_the_whole_image(size):
    """`--size` above 32 | stages grow with it, so that the network sees the whole image"""
    recipe = Recipe(norm="none", activation="none", width=2)
    model = build_model(recipe, 1, size, 2)[:-4]  # up to the pooling
    pixels = torch.ones(1, 1, 2 * size, 2 * size, requires_grad=True)
    outputs = model(pixels)
    middle = outputs.shape[-1] // 2
    outputs[0, :, middle, middle].abs().sum().backward()
    seen = int((pixels.grad[0, 0].abs().sum(0) > 0).sum())
    assert seen >= size - 1, seen


def test_more_images_than_memory(tmp_path, capsys, monkeypatch):
    """The images need more memory than `--memory` | they go to a file in the run's folder,
    which goes when the run ends: the weights of a run in memory, to the bit
    """
    root = write(tmp_path / "images", {"cat": 14, "dog": 14})
    weights = []
    for out, words in (("one", ()), ("two", ("--memory=0", "--workers=0"))):
        assert command(root, *words, out=tmp_path / out) == 0
        weights.append((tmp_path / out / "model.safetensors").read_bytes())
        assert not list((tmp_path / out).glob("images.[cj][as][co]*"))
    said = capsys.readouterr().out
    assert "in memory, 0.0 MB" in said and "from a file beside the run, 0.0 MB" in said
    states = [load_model(tmp_path / out)[0].state_dict() for out in ("one", "two")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    recipe = Recipe(data="folder", root=str(root), memory=0, workers=1, **SMALL)
    data = load_data(recipe, tmp_path / "three")
    assert isinstance(data.stored, OnDisk) and (tmp_path / "three/images.cache").exists()
    monkeypatch.setattr(folders, "pixels_of", pytest.fail)  # nothing is read again
    again = load_data(recipe, tmp_path / "three")
    assert torch.equal(data.test.images[:], again.test.images[:])
    monkeypatch.undo()
    assert train(recipe, tmp_path / "four", progress=False).count == 4


def peaks(folder: str, counts: list[int]) -> list[int]:
    """Return the most memory so far, in bytes, after a run on each number of images."""
    import resource

    from dlcourse.capstone import own
    from dlcourse.lab.folders import Item, Listing

    found = []
    for count in counts:
        path, rng = Path(folder) / f"{count}.cache", np.random.default_rng(count)
        with open(path, "wb") as file:
            for _ in range(count // 100):
                file.write(rng.bytes(100 * 3 * 64 * 64))
        names = [f"{row % 2}/{row}.png" for row in range(count)]
        items = [Item(Path(folder) / name, name, name[0]) for name in names]
        stored = OnDisk(path, (count, 3, 64, 64), "uint8")
        own.find = lambda recipe, items=items: Listing(Path(), items, ("0", "1"))
        own.read_once = lambda *_, given=(stored, items, []): given
        recipe = Recipe(data="folder", root=folder, **SMALL | {"size": 64})
        train(recipe, data=load_data(recipe), progress=False)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """There are five times as many images in that file | the most memory that the run takes
    stays nearly the same
    """
    few, many = launch(peaks, processes=1, args=[str(tmp_path), [1000, 5000]])[0]
    assert many - few < 40e6  # the file grew by 49 MB


def test_several_processes_read_each_image_once(tmp_path):
    """Several processes train on a folder | each image is read once, by one of them"""
    root = write(tmp_path / "images", {"cat": 14, "dog": 14})
    out = tmp_path / "run"
    assert command(root, "--processes=2", out=out) == 0
    assert not (out / "images.cache").exists() and (out / "images.csv").exists()
    assert command(root, out=tmp_path / "alone") == 0
    two, one = (load_model(path)[0].state_dict() for path in (out, tmp_path / "alone"))
    assert all((two[name] - one[name]).abs().max() < 1e-4 for name in one)


def test_a_grey_store_is_widened_in_memory_and_on_disk(tmp_path):
    for number in range(24):
        folder = tmp_path / "images" / ("a", "b")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        mode = "L" if number < 20 else "RGB"
        picture(number, 16, mode).save(folder / f"{number:02d}.png")
    deep = np.random.default_rng(5).integers(0, 2**16, (16, 16)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "images" / "b" / "zz.png")
    recipe = Recipe(data="folder", root=str(tmp_path / "images"), **SMALL)
    one, two = load_data(recipe), load_data(recipe.changed(memory=0))
    assert one.channels == 3 and isinstance(two.stored, OnDisk)
    for split in ("train", "validation", "test"):
        files = getattr(one, split).files
        here, there = getattr(one, split).images[:], getattr(two, split).images[:]
        assert torch.equal(here, there)
        for image, file in zip(one.denormalize(here), files, strict=True):
            wanted = images.pixels_of(tmp_path / "images" / file, 16)
            wanted = wanted / (255 if wanted.dtype == np.uint8 else 1)
            assert np.abs(image.numpy() - wanted).max() < 1e-5


def test_a_jpeg_is_decoded_no_larger_than_needed(tmp_path):
    large = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    )
    large = large.resize((1600, 1200), Image.Resampling.BILINEAR)
    large.save(tmp_path / "a.jpg", quality=95)
    decoded = images.decode(tmp_path / "a.jpg", 32)
    assert decoded.size == (200, 150)  # an eighth
    exact = np.asarray(large.resize((32, 32), Image.Resampling.BILINEAR), dtype=float)
    mine = images.pixels_of(tmp_path / "a.jpg", 32).transpose(1, 2, 0)
    assert np.abs(mine - exact).mean() < 3


# --- letters ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error:Glyph")
def test_letters_that_the_font_lacks(tmp_path, monkeypatch):
    """Class names in letters that the usual font lacks | another installed font draws them,
    or numbers stand there, and the picture says why
    """
    from matplotlib import font_manager

    from dlcourse.capstone import letters, report
    from dlcourse.capstone.letters import drawable

    script = "\U0001d49c"  # STIX, which comes with matplotlib, has it; DejaVu has not
    names, fonts, why = drawable([script, "b"])
    assert names == [script, "b"] and len(fonts) == 2 and not why
    for number, classes in enumerate(([script, "b"], ["a", "猫"])):
        report.draw_confusion(tmp_path / f"{number}.png", torch.eye(2).long(), classes)
        assert (tmp_path / f"{number}.png").stat().st_size > 1000
    letters.families.cache_clear()
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])  # no other is installed
    names, _, why = drawable(["a", "猫x"])
    assert names == ["a", "#1"] and "install Noto Sans CJK" in why
    letters.families.cache_clear()
