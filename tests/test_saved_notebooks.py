"""A chapter run in JupyterLab with bars on, and saved, is the same chapter: measured
values and pictures aside no line has changed, and it passes its test.

This needs Debian's `chromium` or another Chromium, and Playwright (the extra `dev`).
The first part of one chapter stands for all of them, unless DLCOURSE_ALL_CHAPTERS=1.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import real_jupyterlab
from real_jupyterlab import ROOT, Reader

CHAPTERS = sorted((ROOT / "chapters").glob("[0-9][0-9]_*.ipynb"))
QUICK = ("11",)
ALL = os.environ.get("DLCOURSE_ALL_CHAPTERS") == "1"
CHOSEN = [path for path in CHAPTERS if path.stem[:2] in QUICK or ALL]
DEAD_WIDGET = re.compile(
    r"Error (?:displaying|creating|rendering) widget|widget model not found"
    r"|model not found|Loading widget",
    re.IGNORECASE,
)
IGNORED = "nbval-ignore-output"


def as_third_party(folder: Path, path: Path) -> subprocess.CompletedProcess:
    """Test a notebook as somebody would who has the course and knows pytest."""
    env = real_jupyterlab.kernel_environment(folder)
    command = [sys.executable, "-m", "pytest", "-q", "--nbval", "--nbval-current-env"]
    command += [f"chapters/{path.name}"]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


WAITS = """import time

from dlcourse.lab.progress import bar

print("before")
for _ in bar(range(40)):
    time.sleep(0.05)
print("after")"""


def first_part(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a chapter up to the cell with "The idea", and one with a bar."""
    titles = ["## The idea" in cell.source for cell in book.cells]
    book.cells = book.cells[: titles.index(True)]
    words = nbformat.v4.new_output("stream", name="stdout", text="before\nafter\n")
    last = nbformat.v4.new_code_cell(WAITS, outputs=[words])
    last.execution_count = 1 + sum(cell.cell_type == "code" for cell in book.cells)
    book.cells.append(last)
    return book


# --- what may differ between the stored notebook and the saved one --------------------------------


def sanitizers() -> list[tuple[re.Pattern, str]]:
    """Return the pairs of nbval.cfg: what it masks may differ, as it may for nbval."""
    plugin = pytest.importorskip("nbval.plugin")
    patterns = plugin.get_sanitize_patterns(
        (ROOT / "chapters" / "nbval.cfg").read_text("utf-8")
    )
    return [(re.compile(regex), replace) for regex, replace in patterns]


def masked(text, pairs: list[tuple[re.Pattern, str]]) -> str:
    """Return a text output with its measured values masked."""
    text = "".join(text) if isinstance(text, list) else str(text)
    for regex, replace in pairs:
        text = regex.sub(replace, text)
    return text


def comparable(book: nbformat.NotebookNode) -> dict:
    """Return a notebook without its measured values, its pictures, and the patch version
    of Python.
    """
    book = nbformat.from_dict(book)
    version = book.metadata.get("language_info", {}).get("version", "")
    if re.fullmatch(r"3\.\d+\.\d+", version):
        book.metadata.language_info.version = "3"
    pairs = sanitizers()
    for cell in book.cells:
        ignored = IGNORED in cell.metadata.get("tags", ())
        for output in cell.get("outputs", ()):
            if "text" in output:
                output.text = "" if ignored else masked(output.text, pairs)
            for kind, value in output.get("data", {}).items():
                picture = kind.startswith("image/")
                output.data[kind] = "" if picture or ignored else masked(value, pairs)
    return book


def differences(stored: nbformat.NotebookNode, saved: nbformat.NotebookNode) -> list[str]:
    """Return, a line each, in what two notebooks differ that may not differ."""
    stored, saved = comparable(stored), comparable(saved)
    found = []
    for name in sorted((set(stored) | set(saved)) - {"cells"}):
        if stored.get(name) != saved.get(name):
            found.append(f"{name}: {stored.get(name)} became {saved.get(name)}")
    if len(stored.cells) != len(saved.cells):
        return [*found, f"{len(stored.cells)} cells became {len(saved.cells)}"]
    for number, (before, after) in enumerate(
        zip(stored.cells, saved.cells, strict=True), 1
    ):
        for name in sorted(set(before) | set(after)):
            if before.get(name) != after.get(name):
                found.append(
                    f"cell {number}, {name}: {before.get(name)} became {after.get(name)}"
                )
    return found


# --- the real thing -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    """What Playwright calls a context of a Chromium: one reader, and what they have loaded."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="install Playwright: pip install playwright"
    )
    pytest.importorskip("jupyterlab", reason="install JupyterLab: pip install jupyterlab")
    path = real_jupyterlab.chromium()
    if path is None:
        pytest.skip("install a Chromium, for example: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=real_jupyterlab.FLAGS)
        yield browser.new_context(viewport={"width": 1200, "height": 900})
        browser.close()


@pytest.mark.parametrize("path", CHOSEN, ids=lambda path: path.stem)
def test_saved_notebook_stays_a_passing_test(browser, tmp_path, path):
    chapters = tmp_path / "chapters"
    shutil.copytree(ROOT / "chapters", chapters, ignore=shutil.ignore_patterns(".*"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    stored = nbformat.read(path, as_version=4)
    if not ALL:
        nbformat.write(first_part(stored), chapters / path.name)
    with real_jupyterlab.server(chapters, tmp_path) as (url, token):
        reader = Reader(browser, url, token, path.name)
        bars = reader.run_all()
        reader.save()
        complaints = reader.complaints
        reader.close()
        again = Reader(browser, url, token, path.name)
        changed, text = again.changed(), again.text()
        complaints += again.complaints
        again.close()
    assert bars, "no bar was seen in a whole chapter"
    assert not complaints, "the browser's console shows errors"
    assert not changed, "JupyterLab takes the notebook for changed as soon as it is open"
    assert not DEAD_WIDGET.search(text)
    saved_text = (chapters / path.name).read_text("utf-8")
    assert saved_text == nbformat.writes(nbformat.reads(saved_text, 4)) + "\n"
    saved = nbformat.reads(saved_text, as_version=4)
    found = differences(stored, saved)
    assert not found, "saving changed:\n" + "\n".join(line[:300] for line in found)
    done = as_third_party(tmp_path, path)
    assert done.returncode == 0, done.stdout[-5000:]


# --- the comparison catches what it should --------------------------------------------------------


def book() -> nbformat.NotebookNode:
    """Return a small notebook as JupyterLab saves it."""
    picture = nbformat.v4.new_output(
        "display_data", {"image/png": "aaaa", "text/plain": "Figure: a loss"}
    )
    words = nbformat.v4.new_output("stream", name="stdout", text="at 0x7f00aa00bb\n")
    cell = nbformat.v4.new_code_cell("draw()", id="c1", outputs=[words, picture])
    made = nbformat.v4.new_notebook(cells=[cell])
    made.metadata["language_info"] = {"name": "python", "version": "3.11.7"}
    return made


def other_address(made):
    made.cells[0].outputs[0].text = "at 0x7f99ff99ff\n"


def other_picture(made):
    made.cells[0].outputs[1].data["image/png"] = "bbbb"


def other_patch_version(made):
    made.metadata.language_info.version = "3.13.2"


def one_more_tag(made):
    made.cells[0].metadata["tags"] = [IGNORED]


@pytest.mark.parametrize("change", [other_address, other_picture, other_patch_version])
def test_values_and_pictures_may_differ(change):
    after = book()
    change(after)
    assert differences(book(), after) == []


def other_word(made):
    made.cells[0].outputs[0].text = "on 0x7f00aa00bb\n"


def a_widget_left(made):
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    made.cells[0].outputs.append(nbformat.v4.new_output("display_data", view))


def an_empty_output_left(made):
    made.cells[0].outputs.append(nbformat.v4.new_output("display_data", {}))


def widget_state(made):
    made.metadata["widgets"] = {}


def no_version(made):
    del made.metadata.language_info["version"]


def timing(made):
    made.cells[0].metadata["execution"] = {"iopub.execute_input": "2026-01-01"}


def other_source(made):
    made.cells[0].source = "draw(2)"


def one_more_cell(made):
    made.cells.append(nbformat.v4.new_code_cell(""))


@pytest.mark.parametrize(
    "change",
    [
        other_word, a_widget_left, an_empty_output_left, widget_state, no_version,
        timing, other_source, one_more_cell, one_more_tag,
    ],
)  # fmt: skip
def test_anything_else_may_not(change):
    after = book()
    change(after)
    assert len(differences(book(), after)) >= 1
