"""The reader's own copy: filled, brought up to date, and never robbed of a change."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dlcourse.lab.source import COURSE, recipe_path
from dlcourse.workshop import own_copy

ROOT = Path(__file__).resolve().parents[2]


def write(root: Path, **texts: str) -> None:
    """Write files of a small course; a double underscore stands for a slash."""
    for name, text in texts.items():
        folder, _, stem = name.partition("__")
        path = root / folder / stem
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".ipynb" if folder == "chapters" else ".py").write_text(text)


@pytest.fixture
def course(tmp_path):
    root = tmp_path / "course"
    write(root, chapters__01_splits="old one", chapters__02_tuning="old two")
    write(root, recipes__01_splits="recipe", chapters__draft="no chapter")
    return root


def test_a_new_folder_gets_chapters_and_recipes(course, tmp_path):
    filled = own_copy.fill(tmp_path / "mine", course)

    assert filled.kept == []
    there = sorted(path.name for path in (tmp_path / "mine").rglob("*.*"))
    assert there == [
        ".dlcourse.json",
        "01_splits.ipynb",
        "01_splits.py",
        "02_tuning.ipynb",
    ]


def test_a_second_call_copies_nothing(course, tmp_path):
    own_copy.fill(tmp_path / "mine", course)
    assert own_copy.fill(tmp_path / "mine", course) == own_copy.Filled()


def test_what_is_untouched_is_brought_up_to_date(course, tmp_path):
    mine = tmp_path / "mine"
    own_copy.fill(mine, course)
    write(course, chapters__01_splits="new one")

    assert own_copy.fill(mine, course).copied == ["chapters/01_splits.ipynb"]
    assert (mine / "chapters" / "01_splits.ipynb").read_text() == "new one"


def test_what_the_reader_changed_is_kept(course, tmp_path):
    mine = tmp_path / "mine"
    own_copy.fill(mine, course)
    write(mine, chapters__01_splits="my answers", chapters__notes="my notes")

    filled = own_copy.fill(mine, course)
    assert (filled.copied, filled.kept) == ([], ["chapters/01_splits.ipynb"])
    assert not (mine / "new").exists(), "the course has no newer one"

    write(course, chapters__01_splits="new one")
    for _ in range(2):
        filled = own_copy.fill(mine, course)
        assert filled.kept == ["chapters/01_splits.ipynb"]
        assert (mine / "chapters" / "01_splits.ipynb").read_text() == "my answers"
        assert (mine / "chapters" / "notes.ipynb").read_text() == "my notes"
        assert (mine / "new" / "chapters" / "01_splits.ipynb").read_text() == "new one"


def test_a_file_that_stood_there_before_is_kept(course, tmp_path):
    mine = tmp_path / "mine"
    write(mine, chapters__01_splits="from somewhere else")
    assert own_copy.fill(mine, course).kept == ["chapters/01_splits.ipynb"]
    assert (mine / "chapters" / "01_splits.ipynb").read_text() == "from somewhere else"


def test_a_deleted_file_comes_back(course, tmp_path):
    mine = tmp_path / "mine"
    own_copy.fill(mine, course)
    (mine / "chapters" / "02_tuning.ipynb").unlink()
    assert own_copy.fill(mine, course).copied == ["chapters/02_tuning.ipynb"]


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"files": 3}'])
def test_broken_notes_lose_no_work(course, tmp_path, text):
    mine = tmp_path / "mine"
    own_copy.fill(mine, course)
    write(mine, chapters__01_splits="my answers")
    (mine / own_copy.NOTES).write_text(text)

    assert own_copy.fill(mine, course).kept == ["chapters/01_splits.ipynb"]
    assert (mine / "chapters" / "01_splits.ipynb").read_text() == "my answers"


def command(*arguments, cwd, python_path=ROOT) -> subprocess.CompletedProcess:
    """Return what the command printed, run from a folder."""
    return subprocess.run(
        [sys.executable, "-m", "dlcourse.workshop.own_copy", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(python_path)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([COURSE, "--copy-only"], 2, "is the course itself; name a folder of your own"),
        (["file.txt", "--copy-only"], 2, "is a file; name a folder"),
        (["file.txt/below", "--copy-only"], 1, "name another folder"),
        (["mine", "--copy-only", "--no-browser"], 2, "--no-browser is not understood"),
    ],
)
def test_errors_are_one_line(tmp_path, arguments, code, words):
    (tmp_path / "file.txt").touch()
    done = command(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert words in done.stderr


def test_jupyterlab_is_started_in_the_folder(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(
        own_copy.subprocess, "call", lambda command, **how: calls.append((command, how))
    )
    own_copy.main([str(tmp_path / "mine"), "--no-browser"])

    (started, how), = calls  # fmt: skip
    assert started[1:] == ["-m", "jupyterlab", own_copy.START, "--no-browser"]
    assert how["cwd"] == tmp_path / "mine"
    assert (tmp_path / "mine" / own_copy.START).exists()
    assert "files copied into" in capsys.readouterr().out


def test_a_recipe_is_found_from_the_readers_folder(tmp_path, monkeypatch):
    own_copy.fill(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine" / "chapters")
    own = recipe_path("11_gradient_accumulation.py")
    assert (
        own == (tmp_path / "mine" / "recipes" / "11_gradient_accumulation.py").resolve()
    )

    monkeypatch.chdir(tmp_path)
    assert recipe_path("11_gradient_accumulation.py").parent == COURSE / "recipes"
    with pytest.raises(
        FileNotFoundError, match="there is no recipe 99_x.py; there are 01_"
    ):
        recipe_path("99_x.py")


def test_the_wheel_is_the_whole_product(tmp_path):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, source, ignore=ignored)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*build, "--quiet", "--wheel-dir", tmp_path, source],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    installed = tmp_path / "installed"
    assert (installed / "dlcourse" / "py.typed").exists()

    done = command("mine", "--copy-only", cwd=tmp_path, python_path=installed)
    assert done.returncode == 0, done.stderr
    mine = tmp_path / "mine"
    assert own_copy.course_files(mine) == own_copy.course_files(ROOT)
    notes = json.loads((mine / own_copy.NOTES).read_text())
    assert set(notes["files"]) == set(own_copy.course_files(ROOT))
