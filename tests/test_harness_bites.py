"""Faults planted in copies of a good chapter and a good house: each must be caught."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import chapter_rules
import house_rules
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "chapters").glob("*.ipynb"))
REAL = [path for path in PATHS if not chapter_rules.guide(path)]
NAME = "04_gradient_clipping.ipynb"
ALT = "One grey pixel, standing for a plot of loss against step"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="

spec = importlib.util.spec_from_file_location(
    "chapter_tool", ROOT / "tools" / "chapter.py"
)
chapter_tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chapter_tool)

SETUP = f'''from IPython.display import display

def show(picture, caption):
    data = {{"image/png": picture, "text/plain": "Figure: " + caption}}
    display(data, raw=True, metadata={{"image/png": {{"alt": caption}}}})
    display({{"text/markdown": f"*{{caption}}*", "text/plain": caption}}, raw=True)

def claim(sentence, value, at_least):
    assert value >= at_least
    print(f"HOLDS  {{sentence}}: {{value:.3g}}  (at least {{at_least:g}})")

pixel = "{PIXEL}"'''


def fold(metadata):
    """Return the metadata of a cell that is folded away."""
    return nbformat.from_dict(
        {**metadata, "tags": ["hide-input"], "jupyter": {"source_hidden": True}}
    )


def small_chapter():
    """Return a chapter that keeps every rule, without outputs."""
    card = "\n".join(
        f"- **{name}:** {'1' if name == 'Seconds to run' else 'a word on it'}"
        for name in chapter_rules.CARD
    )
    code = {
        "The problem": f'show(pixel, caption="{ALT}")',
        "The idea": "steps = 1_500",
        "Does it work?": 'gain = 0.968 - 0.25\nprint(f"{gain:.3f}")\n'
        'claim("clipping gains", gain, at_least=0.5)',
        "At scale": "print(17.25)",
        "Your turn": "your_sum = ...",
        "Exercises": "your_norm = ...\nyour_clip = ...",
    }
    words = {
        "The idea": "Over 1,500 steps (chapter 13, 2015) fp16 gains 71.8 % or `99.9`, $x=77$.",
        "In your own project": "Take `recipes/04_gradient_clipping.py`.",
        "In one minute": "Clip.\n\n**Sources.** Page 1310 of a paper.",
    }
    cells = [
        new_markdown_cell("# 4 Gradient clipping (梯度裁剪)\n\nA promise.\n\n" + card),
        new_code_cell(SETUP),
    ]
    for name in chapter_rules.SECTIONS:
        cells.append(new_markdown_cell(f"## {name}\n\n{words.get(name, 'Words.')}"))
        if name != "In one minute":
            cells.append(new_code_cell(code.get(name, f"print({name!r})")))
    book = new_notebook(cells=cells)
    for number, cell in enumerate(book.cells, 1):
        cell.id = f"c{number:02d}"
        if cell.source.startswith("show("):
            cell.metadata = fold(cell.metadata)
    return book


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """The path of the small chapter, run and stored by tools/chapter.py."""
    path = tmp_path_factory.mktemp("good") / NAME
    nbformat.write(small_chapter(), path)
    chapter_tool.run_chapter(path)
    record = path.parent / "seconds.json"
    assert list(json.loads(record.read_text("utf-8"))) == [path.stem]
    # what the card says, on any machine
    record.write_text(json.dumps({path.stem: 1}), "utf-8")
    return path


def read(path: Path):
    """Return the notebook at ``path``."""
    return nbformat.read(path, as_version=4)


def code(book):
    """Return the code cells."""
    return [cell for _, cell in chapter_rules.code_cells(book)]


def pictures(book):
    """Return (cell, output) of each stored PNG."""
    return [
        (c, o) for c in code(book) for o in c.outputs if "image/png" in o.get("data", {})
    ]


# --- faults of a chapter: (rule that must catch it, what to do to the copy) -----------------------


def victim(book):
    """Return the code cell to spoil: from the fourth on, the first without tags."""
    return next(cell for cell in code(book)[3:] if not cell.metadata.get("tags"))


def cleared_cell(book):
    victim(book).update(outputs=[], execution_count=None)


def stale_count(book):
    victim(book).execution_count += 5


def swapped_order(book):
    first, second = code(book)[2:4]
    first.execution_count, second.execution_count = (
        second.execution_count,
        first.execution_count,
    )


def heavy_output(book):
    text = "9" * 1000 * chapter_rules.OUTPUT_KB
    victim(book).outputs.append(nbformat.v4.new_output("stream", text=text))


def missing_figure(book):
    cell, _ = next(pair for pair in pictures(book) if "show(" in pair[0].source)
    cell.outputs = [o for o in cell.outputs if "image/png" not in o.get("data", {})]


def figure_without_alt(book):
    pictures(book)[0][1].metadata = nbformat.from_dict({})


def figure_with_short_alt(book):
    pictures(book)[0][1].metadata["image/png"]["alt"] = "a plot"


def figure_without_caption_below(book):
    cell, _ = pictures(book)[0]
    cell.outputs = [o for o in cell.outputs if "text/markdown" not in o.get("data", {})]


def unfolded_drawing(book):
    cell = victim(book)
    cell.source, cell.metadata = f'show(pixel, caption="{ALT}")', nbformat.from_dict({})


def folded_work(book):
    cell = victim(book)
    cell.metadata = fold(cell.metadata)


def value_past_its_bound(book):
    text = "HOLDS  it helps: 0.4  (at least 0.5)\n"
    victim(book).outputs.append(nbformat.v4.new_output("stream", text=text))


def claim_without_value(book):
    text = "HOLDS  it helps  [at least 0.5]\n"
    victim(book).outputs.append(nbformat.v4.new_output("stream", text=text))


def failed_claim(book):
    text = "DOES NOT HOLD on digits  it helps: 0.4  (should be at least 0.5)\n"
    victim(book).outputs.append(nbformat.v4.new_output("stream", text=text))


def too_many_ignored(book):
    for cell in code(book)[: len(code(book)) // chapter_rules.IGNORE_SHARE + 1]:
        cell.metadata["tags"] = ["nbval-ignore-output"]


def skipped_cell(book):
    victim(book).metadata["tags"] = ["nbval-skip"]


def ignored_by_comment(book):
    victim(book).source = "# NBVAL_IGNORE_OUTPUT\n" + victim(book).source


def untagged_error(book):
    output = nbformat.v4.new_output(
        "error", ename="ValueError", evalue="no", traceback=[]
    )
    victim(book).outputs.append(output)


def magic(book):
    victim(book).source = "%matplotlib inline"


def shell_line(book):
    victim(book).source = "!ls"


def swallowed_assert(book):
    victim(book).source = "try:\n    assert 1 > 2\nexcept Exception:\n    pass"


def bare_except(book):
    victim(book).source = "try:\n    assert 1 > 2\nexcept:\n    pass"


def suppressed_assert(book):
    victim(book).source = "with contextlib.suppress(AssertionError):\n    assert 1 > 2"


def computed_bound(book):
    victim(book).source = 'claim("it helps", gain, at_least=gain - 0.1)'


def missing_bound(book):
    victim(book).source = 'claim("it helps", gain)'


def literal_value(book):
    victim(book).source = 'claim("it helps", 0.9, at_least=0.5)'


def renamed_claim(book):
    victim(book).source = "from dlcourse.lab.claims import claim as say"


def other_technique(book):
    victim(book).source = "from dlcourse import batch_normalization"


def other_technique_dotted(book):
    victim(book).source = "import dlcourse.batch_normalization as bn"


def star_import(book):
    victim(book).source = "from dlcourse.lab.plotting import *"


def machine_path(book):
    victim(book).source = "root = '/home/me/data'"


def machine_path_in_output(book):
    output = nbformat.v4.new_output("stream", text="saved to /Users/me/run\n")
    victim(book).outputs.append(output)


def wrong_title_number(book):
    book.cells[0].source = book.cells[0].source.replace("# ", "# 9", 1)


def missing_section(book):
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("## At scale", "At scale")


def swapped_sections(book):
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("## The idea", "## The problem", 1)


def wrong_seconds(book):
    card = next(cell for cell in book.cells[:2] if "**Seconds to run" in cell.source)
    card.source = card.source.replace(
        "**Seconds to run", "**Seconds to run:** 9999 **", 1
    )


def card_without_hardware(book):
    for cell in book.cells[:2]:
        cell.source = cell.source.replace("- **Hardware", "- **Machine")


def one_stub(book):
    for cell in chapter_rules.section(book, "Exercises"):
        cell.source = cell.source.replace("your_", "a_")


def no_recipe(book):
    for cell in chapter_rules.section(book, "In your own project"):
        cell.source = cell.source.replace("recipes/", "recipe ")


def unchecked_grid(book):
    victim(book).source = "best = trials.best_lr()"
    for cell in book.cells:
        for name in chapter_rules.BRACKETS:
            cell.source = cell.source.replace(f"{name}(", "unknown(")


def no_sources(book):
    book.cells[-1].source = book.cells[-1].source.replace("**Sources", "Sources")


def code_after_sources(book):
    book.cells.append(new_code_cell("1"))


def wrong_value_in_prose(book):
    cell = chapter_rules.section(book, "What the article says")[0]
    cell.source += "\n\nIt is 87654.321."


def wrong_percentage_in_prose(book):
    book.cells[0].source += "\n\nIt gains 87654.3 percentage points."


def wrong_factor_in_prose(book):
    book.cells[0].source += "\n\nIt is 87654.3x as fast."


def no_python_version(book):
    del book.metadata.language_info["version"]


def other_kernel_name(book):
    book.metadata.kernelspec.display_name = "Python 3"


def widget_state(book):
    book.metadata["widgets"] = {}


def timing_kept(book):
    victim(book).metadata["execution"] = {"iopub.execute_input": "2026-01-01"}


def widget_left(book):
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    victim(book).outputs.append(nbformat.v4.new_output("display_data", view))


def empty_output_left(book):
    victim(book).outputs.append(nbformat.v4.new_output("display_data", {}))


PLANTS = [
    ("as_jupyterlab_saves", no_python_version),
    ("as_jupyterlab_saves", other_kernel_name),
    ("as_jupyterlab_saves", widget_state),
    ("as_jupyterlab_saves", timing_kept),
    ("as_jupyterlab_saves", widget_left),
    ("as_jupyterlab_saves", empty_output_left),
    ("executed", cleared_cell),
    ("executed", stale_count),
    ("executed", swapped_order),
    ("output_size", heavy_output),
    ("figures", missing_figure),
    ("figures", figure_without_alt),
    ("figures", figure_with_short_alt),
    ("figures", figure_without_caption_below),
    ("drawing_is_folded", unfolded_drawing),
    ("drawing_is_folded", folded_work),
    ("stored_values", value_past_its_bound),
    ("stored_values", claim_without_value),
    ("stored_values", failed_claim),
    ("tags", too_many_ignored),
    ("tags", skipped_cell),
    ("tags", ignored_by_comment),
    ("tags", untagged_error),
    ("plain_python", magic),
    ("plain_python", shell_line),
    ("nothing_swallowed", swallowed_assert),
    ("nothing_swallowed", bare_except),
    ("nothing_swallowed", suppressed_assert),
    ("claims", computed_bound),
    ("claims", missing_bound),
    ("claims", literal_value),
    ("claims", renamed_claim),
    ("imports", other_technique),
    ("imports", other_technique_dotted),
    ("imports", star_import),
    ("machine_paths", machine_path),
    ("machine_paths", machine_path_in_output),
    ("title", wrong_title_number),
    ("anatomy", missing_section),
    ("anatomy", swapped_sections),
    ("card", wrong_seconds),
    ("card", card_without_hardware),
    ("exercises", one_stub),
    ("grids_bracket", unchecked_grid),
    ("recipe", no_recipe),
    ("sources", no_sources),
    ("sources", code_after_sources),
    ("prose_numbers", wrong_value_in_prose),
    ("prose_numbers", wrong_percentage_in_prose),
    ("prose_numbers", wrong_factor_in_prose),
]


def test_each_chapter_rule_has_a_planted_fault():
    assert {name for name, _ in PLANTS} == {rule.__name__ for rule in chapter_rules.RULES}


@pytest.mark.parametrize("rule", chapter_rules.RULES, ids=lambda rule: rule.__name__)
def test_good_chapter_passes(good, rule):
    assert rule(good, read(good)) == []


@pytest.mark.parametrize(
    ("name", "plant"), PLANTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_planted_fault_is_caught(good, name, plant):
    book = read(good)
    plant(book)
    assert getattr(chapter_rules, name)(good, book), f"{plant.__name__} was not caught"


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_planted_fault_is_caught_in_real_chapter(path):
    original = read(path)
    found = {rule.__name__: rule(path, original) for rule in chapter_rules.RULES}
    missed = []
    for name, plant in PLANTS:
        if name == "imports" and chapter_rules.technique(path) == "batch_normalization":
            continue  # the planted import is this chapter's own
        rule, book = getattr(chapter_rules, name), copy.deepcopy(original)
        plant(book)
        if rule(path, book) == found[name]:
            missed.append(plant.__name__)
    assert not missed


def test_prose_number_rule_reads_what_it_should(good):
    book = read(good)
    allowed = (
        "fp16, L2, CIFAR-10, 16-bit, 32x32, 21st, chapters 13 and 14, 1,500, 0.718, 17.25"
    )
    book.cells[
        0
    ].source += f"\n\n{allowed}, [a 345 link](https://x.org/345), `345`, $345$ $$346$$"
    assert chapter_rules.prose_numbers(good, book) == []
    for wrong in (
        "345",
        "1,501",
        "0.719",
        "17.26 %",
        "0.5-0.345",
        "(345)",
        "~345",
        "| 345 |",
    ):
        planted = copy.deepcopy(book)
        planted.cells[0].source += f"\n\nNow {wrong} of them."
        assert chapter_rules.prose_numbers(good, planted), wrong
    book.cells[1].source += "  # 345 of them"
    book.cells[0].source += "\n\nNow 345 of them."
    assert chapter_rules.prose_numbers(good, book), "a comment computes nothing"


# --- nbval ----------------------------------------------------------------------------------------


def nbval(folder: Path) -> subprocess.CompletedProcess:
    """Run nbval on the notebooks of a folder as the project does."""
    command = [
        *(sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", "."),
        *("--nbval-sanitize-with", str(ROOT / "chapters" / "nbval.cfg")),
        *("-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={folder}"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    for name in [name for name in environment if name.startswith("PYTEST_XDIST")]:
        del environment[name]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_nbval_passes_a_good_chapter_and_catches_wrong_numbers_and_broken_claims(
    good, tmp_path
):
    book = read(good)
    nbformat.write(book, tmp_path / "good.ipynb")
    wrong = next(cell for cell in code(book) if cell.source == "print(17.25)")
    wrong.outputs[0].text = "17.26\n"
    broken = [cell for cell in code(book) if "claim(" in cell.source][1]
    broken.source = broken.source.replace("at_least=0.5", "at_least=0.9")
    figure = next(cell for cell in code(book) if cell.source.startswith("show("))
    figure.outputs[0].data["text/plain"] = "Figure: another one"
    nbformat.write(book, tmp_path / "wrong.ipynb")
    done = nbval(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"3 failed, {2 * len(code(book)) - 3} passed" in done.stdout
    failed = re.findall(r"^FAILED (\w+)", done.stdout, re.M)
    assert failed == ["wrong"] * 3, done.stdout


# --- tools/chapter.py -----------------------------------------------------------------------------


def test_failing_chapter_is_reported_and_left_alone(tmp_path, capsys, monkeypatch):
    path = tmp_path / NAME
    cells = [new_markdown_cell("words"), new_code_cell("x = 1"), new_code_cell("x / 0")]
    nbformat.write(new_notebook(cells=cells), path)
    before = path.read_bytes()
    monkeypatch.setattr(chapter_tool.find, "__defaults__", (tmp_path,))
    assert chapter_tool.main(["04"]) == 1
    message = capsys.readouterr().err
    assert (
        "cell 3 of 3" in message and "ZeroDivisionError" in message and "x / 0" in message
    )
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


def test_stored_chapter_holds_nothing_volatile(good):
    book = read(good)
    assert book.metadata == chapter_tool.METADATA
    assert all(set(cell.metadata) <= {"tags", "jupyter"} for cell in book.cells)


def test_only_neighbouring_pieces_of_a_stream_become_one():
    def printed(text, name="stdout"):
        return nbformat.v4.new_output("stream", name=name, text=text)

    picture = nbformat.v4.new_output("display_data", {"image/png": PIXEL})
    pieces = [printed("a"), printed("b"), printed("c", "stderr"), picture, printed("d")]
    merged = chapter_tool.merge_streams(pieces)
    texts = [output.get("text", "picture") for output in merged]
    assert texts == ["ab", "c", "picture", "d"]


# --- faults of the house --------------------------------------------------------------------------


@pytest.fixture
def house(good, tmp_path) -> Path:
    """A house of one technique that keeps every rule."""
    files = {
        "dlcourse/__init__.py": "",
        "dlcourse/gradient_clipping.py": '"""Clip."""\n\ndef clip():\n    """Clip."""\n',
        "dlcourse/exercises/gradient_clipping.py": "from dlcourse import gradient_clipping\n"
        "from dlcourse.lab.exercises import Hint\n",
        "dlcourse/lab/__init__.py": "",
        "dlcourse/lab/exercises.py": 'class Hint:\n    """A hint."""\n',
        "dlcourse/lab/plotting.py": "import numpy\n",
        "tests/test_gradient_clipping.py": "import x\n\nx.clip()\nx.Hint()\n",
        "recipes/04_gradient_clipping.py": "import torch\n",
        "README.md": "| 4 | gradient_clipping |\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / "chapters").mkdir()
    shutil.copy(good, tmp_path / "chapters" / NAME)
    return tmp_path


EXERCISES = "dlcourse/exercises/gradient_clipping.py"
RECIPE = "recipes/04_gradient_clipping.py"
CLIP, LAB = "dlcourse/gradient_clipping.py", "dlcourse/lab/exercises.py"
HOUSE_PLANTS = [  # rule, file, text appended (None: the file is removed)
    ("one_name_everywhere", CLIP, None),
    ("one_name_everywhere", "tests/test_gradient_clipping.py", None),
    ("one_name_everywhere", EXERCISES, None),
    ("one_name_everywhere", "dlcourse/warmup.py", "x = 1\n"),
    ("one_name_everywhere", "dlcourse/warmup/__init__.py", "x = 1\n"),
    ("one_name_everywhere", "tests/test_warmup.py", "x = 1\n"),
    ("no_strangers", "dlcourse/clipping.py", "x = 1\n"),
    ("no_strangers", "dlcourse/clipping/__init__.py", "x = 1\n"),
    ("no_strangers", "chapters/05_gradient_clipping.ipynb", "{}"),
    ("imports_point_one_way", CLIP, "from dlcourse.warmup import Warmup\n"),
    ("imports_point_one_way", CLIP, "from dlcourse import warmup\n"),
    ("imports_point_one_way", CLIP, "from . import warmup\n"),
    ("imports_point_one_way", CLIP, "def f():\n    import dlcourse.warmup\n"),
    ("imports_point_one_way", CLIP, "from dlcourse.lab import training\n"),
    ("imports_point_one_way", CLIP, "from .lab.training import fit\n"),
    ("imports_point_one_way", CLIP, "from dlcourse.lab.exercises import Hint\n"),
    ("imports_point_one_way", EXERCISES, "from dlcourse.lab.training import fit\n"),
    ("imports_point_one_way", EXERCISES, "from dlcourse import warmup\n"),
    (
        "imports_point_one_way",
        "dlcourse/warmup/a.py",
        "from dlcourse import regularization\n",
    ),
    ("imports_point_one_way", LAB, "from dlcourse.gradient_clipping import clip\n"),
    ("imports_point_one_way", LAB, "from ..gradient_clipping import clip\n"),
    ("recipes_stand_alone", RECIPE, "from dlcourse.lab import training\n"),
    ("recipes_stand_alone", "recipes/05_clipping.py", "x = 1\n"),
    ("no_stars_no_utils", RECIPE, "from math import *\n"),
    ("no_stars_no_utils", LAB, "from math import *\n"),
    ("no_stars_no_utils", "dlcourse/lab/utils.py", ""),
    ("every_public_name_is_used", CLIP, "def unused():\n    return 1\n"),
    ("every_public_name_is_used", LAB, "class Unused:\n    pass\n"),
    ("every_public_name_has_a_docstring", CLIP, "def silent():\n    return 1\n"),
    (
        "plotting_computes_nothing",
        "dlcourse/lab/plotting.py",
        "from torch.nn import functional\n",
    ),
    ("plotting_computes_nothing", "dlcourse/lab/plotting.py", "import scipy.stats\n"),
]


def test_each_house_rule_has_a_planted_fault():
    assert {name for name, *_ in HOUSE_PLANTS} == {
        rule.__name__ for rule in house_rules.RULES
    }


def test_good_house_passes(house):
    assert [rule(house) for rule in house_rules.RULES] == [[]] * len(house_rules.RULES)


@pytest.mark.parametrize(("name", "file", "text"), HOUSE_PLANTS)
def test_planted_fault_of_house_is_caught(house, name, file, text):
    if text is None:
        (house / file).unlink()
    else:
        old = (house / file).read_text("utf-8") if (house / file).exists() else ""
        (house / file).parent.mkdir(exist_ok=True)
        (house / file).write_text(old + text, "utf-8")
    assert getattr(house_rules, name)(house)


def test_a_lesson_without_a_recipe_is_caught(house):
    assert house_rules.recipes_stand_alone(house) == []
    (house / "recipes" / "04_gradient_clipping.py").unlink()
    assert house_rules.recipes_stand_alone(house)


def test_readme_without_row_is_caught(house):
    (house / "README.md").write_text("gradient_clipping in a sentence\n", "utf-8")
    assert house_rules.one_name_everywhere(house)


def test_swapped_import_in_copy_of_real_modules_is_caught(tmp_path):
    shutil.copytree(
        ROOT / "dlcourse",
        tmp_path / "dlcourse",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    before = house_rules.imports_point_one_way(tmp_path)
    modules = house_rules.techniques(tmp_path)
    for path, technique in modules.items():
        other = "activations" if technique != "activations" else "initialization"
        source = path.read_text("utf-8") + f"\nfrom dlcourse.{other} import anything\n"
        path.write_text(source, "utf-8")
    assert len(house_rules.imports_point_one_way(tmp_path)) == len(before) + len(modules)
