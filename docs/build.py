"""Build the book: gather the course's files, make its pages of them, and run Sphinx.

    python docs/build.py              build/site, and in it dlcourse.epub
    python docs/build.py --out DIR    somewhere else

The notebooks are not changed; what a page shows comes from their stored outputs. Any
warning of Sphinx, a figure without caption, and an output that cannot be shown fail it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from book import api, pages, settings, terms
from book.finish import finish
from book.notebooks import BookError, Chapter, chapters, check_outputs, clean
from sphinx import addnodes
from sphinx.cmd.build import build_main
from sphinx.environment.adapters import toctree
from sphinx.highlighting import PygmentsBridge

ROOT = settings.ROOT
HERE = Path(__file__).resolve().parent


def main(arguments: list[str] | None = None) -> int:
    """Build the book; return 0, or 1 with the reasons on stderr."""
    parser = argparse.ArgumentParser(description="Build the book.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site")
    parser.add_argument("--work", type=Path, default=settings.BUILD)
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        gather(options.work)
    except BookError as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    failed = render(options.work, options.out)
    took = time.perf_counter() - start
    print(f"{options.out}: {'failed' if failed else 'built'} in {took:.0f} seconds")
    return failed


# --- gathering --------------------------------------------------------------------------


def gather(work: Path) -> None:
    """Write the sources of all pages below `work`, those that have changed."""
    books = chapters()
    problems = [problem for chapter in books for problem in check_outputs(chapter)]
    if problems:
        raise BookError("\n".join(problems))
    source = work / "source"
    texts = texts_of(books)
    for name, text in texts.items():
        write(source / name, text.encode())
    for name in ("ablation.png",):
        write(source / name, (HERE / name).read_bytes())
    for chapter in books:
        write(work / "extra" / "notebooks" / chapter.path.name, chapter.path.read_bytes())
    for path in (ROOT / "recipes").glob("*.py"):
        write(work / "extra" / "scripts" / path.name, path.read_bytes())
    wanted = {source / name for name in texts} | {source / "ablation.png"}
    for path in source.rglob("*"):
        if path.is_file() and path not in wanted and "jupyter_execute" not in path.parts:
            path.unlink()


def texts_of(books: list[Chapter]) -> dict[str, str]:
    """Return the source of every page by its name."""
    texts = {path.name: path.read_text("utf-8") for path in HERE.glob("*.md")}
    texts |= {f"chapters/{chapter.path.name}": clean(chapter) for chapter in books}
    texts["chapters/index.md"] = pages.chapter_list(books)
    texts["glossary.md"] = terms.page(terms.read_terms(), books)
    texts["symptoms.md"] = pages.symptoms(books)
    texts["verdicts.md"] = pages.verdict_table(books)
    texts["changelog.md"] = (ROOT / "CHANGELOG.md").read_text("utf-8")
    texts |= pages.recipe_pages(books) | api.pages(books)
    parts = {
        "chapter-map": pages.chapter_map(books),
        "chapter-files": "\n".join(f"chapters/{chapter.stem}" for chapter in books),
        "total-time": pages.total_time(books),
        "plans": pages.plans(),
        "repository": settings.REPOSITORY,
        "repository-name": settings.NAME,
        "source": settings.SOURCE,
    }
    for name in ("index.md", "run.md", "teach.md"):
        for part, text in parts.items():
            texts[name] = texts[name].replace(f"<<{part}>>", text)
        if "<<" in texts[name]:
            raise BookError(f"docs/{name}: a part between << and >> that is not known")
    return texts


def write(path: Path, content: bytes) -> None:
    """Write a file, unless it holds this content already."""
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# --- rendering --------------------------------------------------------------------------


def render(work: Path, out: Path) -> int:
    """Run Sphinx for the pages and for the EPUB; return 0 if both came out."""
    for folder in (out, work / "epub"):
        shutil.rmtree(folder, ignore_errors=True)
    gc.disable()  # Python would look for garbage all the time: a fifth of the work
    common = ["-q", "-W", "--keep-going", "-c", str(HERE), "-d", str(work / "doctrees")]
    source, epub = str(work / "source"), work / "epub"
    colour_once()
    for_pages = ["-b", "html", "-D", f"html_extra_path={work / 'extra'}"]
    for_epub = ["-b", "epub", "-D", f"html_static_path={HERE / 'epub'}"]
    with titles_alone():
        failed = build_main([*common, *for_pages, source, str(out)])
    gc.collect()
    failed = failed or build_main([*common, *for_epub, source, str(epub)])
    if failed:
        return 1
    finish(out)
    shutil.copy(epub / "dlcourse.epub", out / "dlcourse.epub")
    return 0


def colour_once() -> None:
    """Let Sphinx colour each piece of code once, and not again for the EPUB."""
    plain = PygmentsBridge.highlight_block
    if hasattr(plain, "__wrapped__"):
        return
    done: dict[tuple, str] = {}

    @functools.wraps(plain)
    def remembered(self, source, lang, *rest, **options):
        key = (source, lang, self.dest, repr(options.get("linenos")))
        if key not in done:
            done[key] = plain(self, source, lang, *rest, **options)
        return done[key]

    PygmentsBridge.highlight_block = remembered


@contextlib.contextmanager
def titles_alone() -> Iterator[None]:
    """Let the sidebar, which shows the titles of all pages on every page, copy those alone
    and not all headings; but for pages that lead to others, which it looks for below them.
    The EPUB shows headings.
    """
    plain = toctree._toctree_standard_entry
    leads: dict[str, bool] = {}

    def entry(title, ref, maxdepth, toc, *rest):
        if ref not in leads:
            leads[ref] = any(toc.findall(addnodes.toctree))
        return plain(title, ref, maxdepth if leads[ref] else 1, toc, *rest)

    toctree._toctree_standard_entry = entry
    try:
        yield
    finally:
        toctree._toctree_standard_entry = plain


if __name__ == "__main__":
    sys.exit(main())
