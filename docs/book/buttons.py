"""The row of buttons below a chapter's title, and the look of its card."""

from __future__ import annotations

from html import escape

from docutils import nodes
from sphinx.application import Sphinx

from book import settings
from book.notebooks import Chapter, chapters


def add_buttons(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the buttons below the promise of a chapter; an EPUB gets the card only."""
    for chapter in chapters():
        if docname != f"chapters/{chapter.stem}":
            continue
        section = next(doctree.findall(nodes.section))
        promise = next(section.findall(nodes.paragraph))
        card = next(section.findall(nodes.bullet_list))
        card["classes"].append("chapter-card")
        if app.builder.name != "epub":
            place = section.index(promise) + 1
            section.insert(place, nodes.raw("", row(chapter), format="html"))


def leave_out(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Take out of the EPUB what leads to files of the site."""
    if app.builder.name == "epub":
        for box in list(doctree.findall(nodes.container)):
            if "not-in-epub" in box["classes"]:
                box.parent.remove(box)


def row(chapter: Chapter) -> str:
    """Return the buttons of a chapter as HTML."""
    notebook = f"chapters/{chapter.path.name}"
    links = [
        (f"../notebooks/{chapter.path.name}", "Download the notebook", ' download=""'),
        (settings.colab(notebook), "Colab", ""),
        (settings.binder(notebook), "Binder", ""),
        (settings.codespace(), "Dev container", ""),
    ]
    if recipe_of(chapter):
        links.insert(1, (f"../recipes/{chapter.stem}.html", "The recipe", ""))
    anchors = [
        f'<a class="door" href="{escape(address)}"{more}>{words}</a>'
        for address, words, more in links
    ]
    how = '<a class="how" href="../run.html">How do these work?</a>'
    return (
        '<nav class="doors-of-chapter" aria-label="Open this chapter">'
        f"{''.join(anchors)}{how}</nav>"
    )


def recipe_of(chapter: Chapter) -> bool:
    """Tell whether the chapter has a recipe."""
    return (settings.ROOT / "recipes" / f"{chapter.stem}.py").exists()
