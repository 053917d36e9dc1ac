"""The book is built from the course's files, and every link in it leads somewhere.

What a browser makes of the pages is looked at by site_in_chromium.py: `make site-test`.
"""

from __future__ import annotations

import doctest
import importlib
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

for needed in ("sphinx", "myst_nb", "sphinx_book_theme", "sphinx_design", "latex2mathml"):
    pytest.importorskip(needed, reason='for the book: pip install -e ".[docs]"')

from book import notebooks, settings, terms, verdicts  # noqa: E402
from house_rules import TECHNIQUES  # noqa: E402
from site_pages import Page, broken  # noqa: E402
from site_pages import pages as pages_of  # noqa: E402
from warm import run  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = notebooks.chapters()
SLOW_TO_IMPORT = (
    *("sphinx.cmd.build", "myst_nb", "sphinx_book_theme", "sphinx_design"),
    "nbformat",
)
LESSONS = [chapter for chapter in CHAPTERS if chapter.is_lesson]


def build(*arguments) -> subprocess.CompletedProcess:
    """Run docs/build.py."""
    command = [sys.executable, str(ROOT / "docs" / "build.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The whole book, built in a folder of its own."""
    folder = tmp_path_factory.mktemp("book")
    done = build("--out", folder / "site", "--work", folder / "work")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def chapter_page(site: Path, chapter: notebooks.Chapter) -> Page:
    return pages_of(site)[site / "chapters" / f"{chapter.stem}.html"]


# --- the pages --------------------------------------------------------------------------


def test_every_link_and_anchor_leads_somewhere_and_nothing_comes_from_another_host(site):
    assert len(pages_of(site)) > 50
    assert broken(site) == []


def test_broken_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="x"><a href="#x">1</a><a href="#y">2</a><a href="b.html">3</a>'
        '<img src="https://example.org/1.png"><script src="c.js"></script>'
    )
    assert len(broken(tmp_path)) == 4


def test_each_chapter_shows_its_figures_with_their_captions(site):
    for chapter in CHAPTERS:
        page = chapter_page(site, chapter)
        captions = notebooks.captions(chapter)
        shown = [image for image in page.images if "_images" in image["src"]]
        assert [" ".join(image["alt"].split()) for image in shown] == [
            " ".join(caption.split()) for caption in captions
        ]
        assert captions


def test_each_chapter_shows_what_its_cells_print(site):
    for chapter in CHAPTERS:
        text = chapter_page(site, chapter).text
        for cell in chapter.book.cells:
            for output in cell.get("outputs", ()):
                if output.output_type == "stream":
                    line = output.text.replace("\u200b", "").strip().splitlines()[0]
                    assert " ".join(line.split()) in text, f"{chapter.stem}: {line}"


def test_each_chapter_has_its_buttons_from_the_one_setting(site):
    for chapter in CHAPTERS:
        links = chapter_page(site, chapter).links
        for address in (
            settings.colab(f"chapters/{chapter.path.name}"),
            settings.binder(f"chapters/{chapter.path.name}"),
            settings.codespace(),
        ):
            assert address in links and settings.REPOSITORY in address
        assert f"../notebooks/{chapter.path.name}" in links
        assert (f"../recipes/{chapter.stem}.html" in links) == (
            ROOT / "recipes" / f"{chapter.stem}.py"
        ).exists()


def test_the_notebook_and_the_recipe_to_download_are_the_files_themselves(site):
    for chapter in CHAPTERS:
        offered = site / "notebooks" / chapter.path.name
        assert offered.read_bytes() == chapter.path.read_bytes()
    for path in (ROOT / "recipes").glob("*.py"):
        assert (site / "scripts" / path.name).read_bytes() == path.read_bytes()


def test_the_home_page_leads_to_every_chapter(site):
    links = pages_of(site)[site / "index.html"].links
    for chapter in CHAPTERS:
        assert f"chapters/{chapter.stem}.html" in links


def test_the_name_of_every_public_function_of_a_technique_is_on_its_page(site):
    house = pytest.importorskip("house_rules")
    for path, name in house.techniques(ROOT).items():
        page = pages_of(site)[site / "api" / f"{name}.html"]
        for node in house.definitions(path):
            assert any(anchor.endswith(f".{node.name}") for anchor in page.anchors)


def test_timings_are_those_of_the_file(site):
    text = pages_of(site)[site / "chapters" / "index.html"].text
    measured = json.loads((ROOT / "chapters" / "seconds.json").read_text("utf-8"))
    for chapter in CHAPTERS:
        row = rf"{chapter.number} {re.escape(chapter.title)} .*? "
        reading, practice = chapter.minutes
        assert re.search(
            row + rf"{reading} \+ {practice} minutes, {measured[chapter.stem]} seconds",
            text,
        ), chapter.stem


def test_search_knows_english_chinese_and_code(site):
    text = (site / "searchindex.js").read_text("utf-8")
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    assert {"warm", "梯度", "裁剪", "clip_grad_norm_"} <= set(index["terms"])
    assert "clip_grad_norm_" in str(index["objects"])


# --- terms ------------------------------------------------------------------------------


def test_the_first_use_of_a_term_links_to_the_glossary_and_no_other(site):
    linked = set()
    for chapter in CHAPTERS:
        found = chapter_page(site, chapter).terms
        assert len(found) == len(set(found)) >= 5, chapter.stem
        linked |= set(found)
    assert len(linked) > 100


def test_every_term_has_a_chinese_name_and_a_chapter_that_uses_it():
    text = {
        chapter.number: "\n".join(cell.source for cell in chapter.book.cells)
        for chapter in CHAPTERS
    }
    for term in terms.read_terms():
        assert re.search("[\u4e00-\u9fff]", term.chinese), term.name
        forms = "|".join(
            re.sub(r"\\? |\\?-", r"[\\s_-]?", re.escape(form)) for form in term.forms
        )
        for number in term.chapters:
            assert re.search(
                rf"(?<![A-Za-z])({forms})(?![A-Za-z])", text[number], re.I
            ), f"chapter {number} lacks the term {term.name!r}: mend docs/glossary.toml"


def test_a_form_belongs_to_one_term():
    twice = [
        terms.Term("step", "步", "One.", (1,)),
        terms.Term("update", "更新", "Two.", (1,), ("steps",)),
    ]
    with pytest.raises(notebooks.BookError, match="'steps' belongs to"):
        terms.by_form(twice)


# --- verdicts ---------------------------------------------------------------------------


def chapter_with(tmp_path: Path, name: str, *cells) -> notebooks.Chapter:
    path = tmp_path / name
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)
    return notebooks.Chapter(path)


def markdown(text: str):
    return nbformat.v4.new_markdown_cell(text)


def test_verdicts_come_from_a_table_or_from_prose(tmp_path):
    table = markdown(
        "## What the article says\n\nIt says:\n\n| The article | Verdict | Why |\n"
        "| --- | --- | --- |\n| A | **wrong** for $|w|$ | x |\n| B | **right** | y |\n\n"
        "## At scale\n\n| C | **wrong** |\n"
    )
    chapter = chapter_with(tmp_path, "01_data_splitting.ipynb", table)
    found = [
        (item.statement, item.verdict, item.kind) for item in verdicts.verdicts(chapter)
    ]
    assert found == [("A", "wrong for $|w|$", "wrong"), ("B", "right", "right")]
    prose = markdown(
        '## What the article says\n\n**"A."** Why. **Verdict: right**, on a **good** day.\n\n'
        '**"B."** **"C."** **On B: loose.** **Wrong.**\n\n**"D."** **Right for E, wrong '
        "for F.**"
    )
    chapter = chapter_with(tmp_path, "09_model_compression.ipynb", prose)
    kinds = [item.kind for item in verdicts.verdicts(chapter)]
    assert kinds == ["right", "loose", "wrong", "mixed"]
    joined = markdown(
        '## What the article says\n\nIt says "A".\n- **"A": right as an aim.** But.\n'
        '- **"B": wrong.** No. **"C": loose, at best.**'
    )
    chapter = chapter_with(tmp_path, "09_model_compression.ipynb", joined)
    found = [(item.statement, item.kind) for item in verdicts.verdicts(chapter)]
    assert found == [('"A"', "right"), ('"B"', "wrong"), ('"C"', "loose")]
    listed = markdown(
        "## What the article says\n\n- A, first: **right, mostly.** Yes.\n"
        "- B: **loose** in `f(x)`, where it rains (*C*)."
    )
    chapter = chapter_with(tmp_path, "10_data_augmentation.ipynb", listed)
    found = [(item.statement, item.verdict) for item in verdicts.verdicts(chapter)]
    assert found == [("A, first", "right, mostly."), ("B", "loose in `f(x)`")]


def test_a_lesson_without_verdict_fails_the_build_and_a_guide_does_not(tmp_path):
    chapter = chapter_with(tmp_path, f"01_{TECHNIQUES[0]}.ipynb", markdown("# A"))
    with pytest.raises(notebooks.BookError, match="no verdict"):
        verdicts.verdicts(chapter)
    guide = chapter_with(tmp_path, "17_your_own_run.ipynb", markdown("# A"))
    assert verdicts.verdicts(guide) == []


def test_the_table_holds_every_verdict_of_every_chapter(site):
    page = pages_of(site)[site / "verdicts.html"]
    found = [item for chapter in LESSONS for item in verdicts.verdicts(chapter)]
    assert len(found) >= 50 and f"{len(found)} statements" in page.text
    for chapter in LESSONS:
        anchor = f"chapters/{chapter.stem}.html#what-the-article-says"
        wanted = len(verdicts.verdicts(chapter))
        assert page.links.count(anchor) == wanted > 0, chapter.stem


# --- what fails the build ---------------------------------------------------------------


def picture(alt: str, below: str) -> list:
    data = {"image/png": "aGk=", "text/plain": "Figure"}
    meta = {"image/png": {"alt": alt}}
    return [
        nbformat.v4.new_output("display_data", data, metadata=meta),
        nbformat.v4.new_output("display_data", {"text/markdown": f"*{below}*"}),
    ]


def complaints(tmp_path, *outputs) -> list[str]:
    cell = nbformat.v4.new_code_cell("show()", outputs=list(outputs))
    return notebooks.check_outputs(chapter_with(tmp_path, "04_x.ipynb", cell))


def test_outputs_that_no_page_can_show_are_named_with_their_cell(tmp_path):
    display = nbformat.v4.new_output
    widget = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "x"}
    script = {"text/html": "<script>alert(1)</script>"}
    remote = {"text/html": '<b style="background: url(https://example.org/x.png)">'}
    for data in (widget, script, remote, {}):
        [problem] = complaints(tmp_path, display("display_data", data))
        assert problem.startswith("04_x.ipynb, cell 1: ")
    error = display("error", ename="E", evalue="e", traceback=[])
    assert "error" in complaints(tmp_path, error)[0]
    fine = display("display_data", {"text/html": "<table></table>", "text/plain": "t"})
    assert complaints(tmp_path, fine, display("stream", text="words")) == []


def test_a_figure_needs_its_caption(tmp_path):
    assert complaints(tmp_path, *picture("A curve falls.", "A curve falls.")) == []
    for below in ("", "It rises."):
        assert "without caption" in complaints(tmp_path, *picture("", below))[0]
    for outputs in (picture("It falls.", "It rises."), picture("It falls.", "")[:1]):
        assert "not the alternative text" in complaints(tmp_path, *outputs)[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "# Home\n\n[there](gone.md) [there](#gone) ![there](gone.png)",
            ["gone.md", "'gone'", "gone.png"],
        ),
        ("# Home\n\nA formula: $\\frac{1$", ["the formula"]),
    ],
)
def test_a_broken_reference_or_formula_fails_the_build(tmp_path, text, told):
    source = tmp_path / "work" / "source"
    source.mkdir(parents=True)
    (tmp_path / "work" / "extra").mkdir()
    (source / "index.md").write_text(text)
    (source / "glossary.md").write_text("---\norphan: true\n---\n# Glossary\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import build; from pathlib import Path\n"
        "sys.exit(build.render(Path(sys.argv[2]), Path(sys.argv[3])))"
    )
    places = [ROOT / "docs", tmp_path / "work", tmp_path / "out"]
    done = run("-c", code, *places, imports=SLOW_TO_IMPORT)
    assert done.returncode == 1, done.stdout + done.stderr
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert all(word in done.stderr for word in told) and len(warnings) <= len(told)


# --- the file to take along -------------------------------------------------------------


def test_the_epub_is_whole(site):
    with zipfile.ZipFile(site / "dlcourse.epub") as book:
        names = book.namelist()
        assert names[0] == "mimetype" and book.read("mimetype") == b"application/epub+zip"
        texts = {
            name: book.read(name).decode() for name in names if name.endswith(".xhtml")
        }
    assert len([name for name in texts if "chapters/" in name]) >= 18
    images = formulas = 0
    for name, text in texts.items():
        tree = ET.fromstring(re.sub(r"&(?!amp|lt|gt|quot|apos|#)\w+;", "?", text))
        folder = Path("/") / Path(name).parent
        formulas += len(tree.findall(".//{http://www.w3.org/1998/Math/MathML}math"))
        for element in tree.iter():
            tag = element.tag.rpartition("}")[2]
            address = element.get("src") or (element.get("href") if tag == "a" else None)
            images += tag == "img"
            parts = urlsplit(address or "")
            if not parts.path or (tag == "a" and parts.scheme):
                continue
            assert not parts.scheme, f"{name} loads {address}"
            target = (folder / unquote(parts.path)).as_posix()
            assert str(Path(target).resolve())[1:] in names, f"{name}: {address}"
    figures = [
        output
        for path in (ROOT / "chapters").glob("*.ipynb")
        for cell in nbformat.read(path, 4).cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert images >= len(figures) > 0 and formulas > 200


# --- the functions that make the pages --------------------------------------------------


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (ROOT / "docs" / "book").glob("*.py"))
)
def test_examples_in_docstrings_hold(name):
    module = importlib.import_module("book" if name == "__init__" else f"book.{name}")
    assert doctest.testmod(module).failed == 0


# --- the addresses ----------------------------------------------------------------------


def test_the_readme_names_the_site_of_the_setting():
    if "GITHUB_REPOSITORY" not in __import__("os").environ:
        assert settings.SITE in (ROOT / "README.md").read_text("utf-8")


def test_the_address_stands_in_one_place():
    holders = [
        path.relative_to(ROOT).as_posix()
        for folder in ("docs", "binder", ".devcontainer", ".github")
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and path.suffix in {".py", ".md", ".yml", ".json", ".toml", ""}
        and f'"{settings.REPOSITORY}"' in path.read_text("utf-8")
    ]
    assert holders == ["docs/book/settings.py"]
