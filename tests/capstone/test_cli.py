"""The command as a reader uses it: options, plan, folder, and the studies around a run."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from warm import run, run_ranks

from dlcourse.capstone import data
from dlcourse.capstone.building import Block
from dlcourse.capstone.cli import explain, main
from dlcourse.capstone.folder import load_model
from dlcourse.capstone.options import SCREEN, parser, read
from dlcourse.capstone.settings import GROUPS, Problem, Recipe
from dlcourse.lab.launching import LaunchError

pytestmark = pytest.mark.usefixtures("pictures_are_drawn_once")

ROOT = Path(__file__).resolve().parents[2]
FAST = ["--model", "mlp", "--width", "2", "--train-limit", "320", "--epochs", "1"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --------------------------------------------------------------------------- options


def test_help_names_every_setting_in_its_group_on_one_screen():
    text = parser().format_help()
    assert len(text.splitlines()) <= 60 and max(map(len, text.splitlines())) <= SCREEN
    for group in GROUPS:
        assert f"\n{group.__doc__}:" in text
        for name in group.model_fields:
            assert f"--{name.replace('_', '-')}" in text


def test_options_come_before_the_config_and_the_config_before_defaults():
    Path("my.toml").write_text("lr = 0.5\nmax_norm = inf\n")
    _, recipe = read(["--config", "my.toml", "--lr", "0.25", "--weight_decay", "0.125"])
    assert (recipe.lr, recipe.max_norm, recipe.weight_decay) == (
        0.25,
        float("inf"),
        0.125,
    )
    assert recipe.changed(lr=0.01, max_norm=1.0, weight_decay=0.05) == Recipe()


def test_data_takes_a_path_after_folder_only():
    root = read(["--data", "folder", "some/where", "--lr", "1"])[1].root
    # so that it is found from elsewhere too
    assert root == str(Path.cwd() / "some" / "where")
    with pytest.raises(Problem, match="only folder takes one path"):
        read(["--data", "mnist", "some/where"])
    with pytest.raises(Problem, match="needs a path"):
        read(["--data", "folder"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "none.toml"], "name a TOML file"),
        (["--resume"], "--resume needs --out"),
        (["--config", "good.toml", "--resume"], "--resume needs --out"),
        (["--ablate", "--tune", "2", "--log", "csv"], "leave out --tune and --log"),
        (["--width", "300000000"], "out of memory: start anew with"),
        (["--augment", "zoom"], "choose one of none, shift"),
        (["--compress", "zip"], "choose from prune, quantize, distil"),
        (["--tune", "0"], "at least 1 trial"),
        (["--ablate", "--seeds", "1"], "at least 2 runs"),
        (["--data", "mnist", "--root", "nowhere"], "nowhere"),
        (["--data", "folder", "nowhere"], "there is no folder"),
        (["--log", "blackboard"], "--log blackboard"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments, words, capsys):
    Path("good.toml").write_text("lr = 0.02\n")
    out = ["--out", "run"] if "--resume" not in arguments else []
    assert main([*FAST, *arguments, *out]) == (1 if "--width" in arguments else 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dlcourse-train: ") and words in line
    assert not Path("run").exists()


def test_under_a_launcher_the_recipe_stores_the_number_of_processes(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert read(FAST)[1].processes == 2
    with pytest.raises(Problem, match="leave it out"):
        read([*FAST, "--processes", "3"])
    assert main([*FAST, "--tune", "2", "--compress", "prune"]) == 2
    assert "--tune and --compress: not under a launcher" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_letters_that_the_terminal_lacks_do_not_stop_a_run(monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main([*FAST, "--dry-run", "--out", "für 猫"]) == 0
    stdout.flush()
    assert rb"folder f\xfcr \u732b" in stdout.buffer.getvalue()


def test_an_error_in_a_process_is_one_line():
    error = LaunchError(
        "rank 0 raised:\nTraceback (most recent call last):\n  File ...\n"
        "dlcourse.lab.training.NonFiniteLossError: the loss is nan. Lower the rate.\n"
    )
    assert explain(error) == (
        "NonFiniteLossError: the loss is nan. Lower the rate.",
        False,
    )
    full = LaunchError("rank 0 raised:\nOSError: [Errno 28] No space left on device: 'x'")
    assert explain(full) == ("no space left on the disk: free some", True)
    assert explain(LaunchError("rank 1 died by signal 9\nmore")) == (
        "rank 1 died by signal 9", True,
    )  # fmt: skip


def test_unknown_options_are_refused_and_not_guessed(capsys):
    for arguments, words in (
        (["--learning-rate", "1"], "unrecognized arguments: --learning-rate"),
        (["--epoch", "1"], "did you mean --epochs?"),
        (["--lr", "fast"], "lr='fast' is no float: peak learning rate"),
        (["--width", "2.5"], "width='2.5' is no int"),
        (["--tune", "few"], "--tune takes no few"),
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("dlcourse-train: ") and words in line


# --------------------------------------------------------------------------- plan and run


def test_dry_run_prints_a_line_for_each_technique_and_writes_nothing(capsys):
    assert main([*FAST, "--dry-run", "--accumulation-steps", "2", "--patience", "3"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    numbered = [
        line for line in lines if line[:2].strip().isdigit() and line[2:4] == "  "
    ]
    assert [int(line[:2]) for line in numbered] == list(range(1, 17))
    assert "2 x 32 images" in out and "after 3 epochs without gain" in out
    assert "5 updates: 1 epochs of 5" in out and not Path("runs").exists()
    assert main([*FAST, "--dry-run", "--ablate"]) == 0
    assert (
        "ablation: 8 arms x 3 rates or more x 5 seeds of this" in capsys.readouterr().out
    )


def test_each_run_gets_a_folder_of_its_own(capsys):
    assert main(FAST) == main(FAST) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["digits", "digits-2"]
    same = [
        Path("runs", name, "model.safetensors").read_bytes()
        for name in ("digits", "digits-2")
    ]
    assert same[0] == same[1]
    assert "test accuracy" in capsys.readouterr().out


def test_the_stored_recipe_repeats_the_run():
    assert main([*FAST, "--seed", "3", "--out", "one"]) == 0
    assert main(["--config", "one/recipe.toml", "--out", "two"]) == 0
    assert (
        Path("one/model.safetensors").read_bytes()
        == Path("two/model.safetensors").read_bytes()
    )


def test_another_seed_is_another_run():
    for seed in ("0", "1"):
        assert main([*FAST, "--seed", seed, "--out", seed]) == 0
    assert (
        Path("0/model.safetensors").read_bytes()
        != Path("1/model.safetensors").read_bytes()
    )


def test_two_processes_of_torchrun_train_and_the_run_goes_on_without_it():
    done = run_ranks(
        *("-m", "dlcourse.train", *FAST, "--out", "run"), TORCHELASTIC_RUN_ID="one"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    assert torch.load("run/resume.pt", weights_only=True)["facts"]["processes"] == 2
    assert Recipe.from_toml(Path("run/recipe.toml").read_text()).processes == 2
    whole = Path("run/model.safetensors").read_bytes()
    assert main(["--resume", "--out", "run"]) == 0
    assert Path("run/model.safetensors").read_bytes() == whole


def test_mnist_from_published_bytes(capsys):
    if "DLCOURSE_MNIST" not in os.environ:
        pytest.skip("DLCOURSE_MNIST is not set: the folder that holds MNIST/raw")
    arguments = [
        "--data",
        "mnist",
        "--root",
        os.environ["DLCOURSE_MNIST"],
        "--train-limit",
        "2000",
    ]
    assert main([*arguments, "--epochs", "6", "--width", "8", "--out", "run"]) == 0
    assert json.loads(Path("run/result.json").read_text())["accuracy"] > 0.7


def test_colour_images_of_a_folder_train_a_residual_network():
    from PIL import Image

    g = torch.Generator().manual_seed(0)
    for number in range(80):
        folder = Path("images", ("red", "green")[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 128, (32, 32, 3), generator=g, dtype=torch.uint8)
        pixels[..., number % 2] += 60
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    arguments = [
        "--data",
        "folder",
        "images",
        "--batch-size",
        "8",
        "--width",
        "4",
        "--epochs",
        "4",
    ]
    assert main([*arguments, "--augment", "colour", "--out", "run"]) == 0
    model, facts = load_model("run")
    assert facts["channels"] == 3 and facts["classes"] == ["green", "red"]
    assert any(isinstance(module, Block) for module in model.modules())
    assert json.loads(Path("run/result.json").read_text())["accuracy"] > 0.8


def test_a_folder_with_odd_names_and_kinds_of_images_goes_on_from_another_directory(
    monkeypatch,
):
    from PIL import Image

    for number in range(48):
        folder = Path("meine Bilder 😀", ("ねこ", "groß | klein")[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (20, 32), (5 * number, 99, 0))
        image.convert(("RGB", "L", "RGBA", "LA", "1", "P")[number // 8]).save(
            folder / f"{number} é.png"
        )
    arguments = ["--data", "folder", "meine Bilder 😀", *FAST[:4], "--batch-size", "8"]
    assert main([*arguments, "--epochs", "2", "--out", "run"]) == 0
    whole = Path("run/model.safetensors").read_bytes()
    facts = load_model("run")[1]
    assert facts["classes"] == ["groß | klein", "ねこ"]
    # and not where it lies on this machine
    assert facts["recipe"]["root"] == "meine Bilder 😀"
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert main(["--resume", "--out", "../run"]) == 0
    assert Path("../run/model.safetensors").read_bytes() == whole


# --------------------------------------------------------------------------- what a stranger tries


def pictures(folder: str = "shots", count: int = 60) -> None:
    from PIL import Image

    for number in range(count):
        path = Path(folder, ("cat", "dog")[number % 2], f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (4 * number, 99, 0)).save(path)


def test_the_end_names_the_mistakes_and_how_to_go_on(capsys):
    assert main([*FAST, "--out", "my run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "new images: python -m dlcourse.predict 'my run' IMAGE ..."
    wrong = int(lines[-2].split()[1].rstrip(","))
    accuracy = json.loads(Path("my run/result.json").read_text())["accuracy"]
    assert wrong == round((1 - accuracy) * 269) > 0 and " taken for " in lines[-2]


def test_a_run_on_a_folder_is_called_like_the_folder(capsys):
    pictures()
    assert main(["--data", "folder", "shots", "--dry-run", "--batch-size", "8"]) == 0
    assert f"folder {Path('runs', 'shots')}" in capsys.readouterr().out


def test_slips_get_advice(capsys):
    pictures()
    for arguments, words in (
        (["--data", "shots"], "write --data folder shots"),
        (["--seeds", "3"], "--seeds goes with --ablate"),
        (["--data", "folder", "shots", "--resume"], "--resume needs --out"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
    assert main(["--epoch", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "did you mean --epochs?" in line


def test_advice_on_a_folder_names_options_of_the_command(capsys):
    pictures(count=16)
    Path("shots/cat/bad.png").write_bytes(b"no image")
    folder = [
        "--data",
        "folder",
        "shots",
        "--batch-size",
        "4",
        *FAST[:4],
        "--epochs",
        "1",
    ]
    assert main(folder) == 2
    err = capsys.readouterr().err
    assert "leave them out with --skip-corrupt" in err and "skip_corrupt=" not in err
    with pytest.warns(UserWarning, match="left out"):
        assert main([*folder, "--skip-corrupt"]) == 0
    Path("shots/cat/more").mkdir()
    assert main(folder) == 2
    err = capsys.readouterr().err
    assert "--data folder PATH" in err and "root=" not in err


def test_what_is_left_out_is_said_without_a_line_of_code():
    pictures(count=16)
    Path("shots/cat/bad.png").write_bytes(b"no image")
    images = ["--data", "folder", "shots", "--skip-corrupt", "--batch-size", "4"]
    done = run("-m", "dlcourse.train", *images, "--dry-run")
    assert done.returncode == 0 and "UserWarning" not in done.stderr
    assert done.stderr.startswith("dlcourse-train: 1 file(s)")


def test_a_folder_in_use_is_refused_before_the_images_are_read(capsys, monkeypatch):
    assert main([*FAST, "--out", "run"]) == 0
    monkeypatch.setattr(data, "load_data", lambda recipe: pytest.fail("images were read"))
    assert main([*FAST, "--out", "run"]) == 2
    assert "holds a run" in capsys.readouterr().err
