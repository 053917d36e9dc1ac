"""Links that the pages get at build time: terms, chapters and sections named in prose.

The notebooks stay as they are. In a chapter the first use of each glossary term links to
the glossary, that of a function in code to its page, "chapter 8" to that chapter, and a
section's title in italics, as in *At scale*, to the section.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from docutils import nodes
from sphinx.application import Sphinx

from book import terms as glossary
from book.notebooks import chapters

NOT_PROSE = (
    nodes.title,
    nodes.literal,
    nodes.literal_block,
    nodes.math,
    nodes.math_block,
    nodes.raw,
    nodes.reference,
    nodes.caption,
)
CHAPTER = re.compile(r"\b[Cc]hapter (\d+)\b")


def add_links(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the links into the page of a chapter, and of a page that names chapters."""
    if docname.startswith("chapters/") and docname != "chapters/index":
        link_sections(doctree)
        link_terms(app, doctree, docname)
        link_functions(app, doctree, docname)
    if not docname.startswith(("api/", "recipes/")):
        link_chapters(app, doctree, docname)


def prose(doctree: nodes.document) -> list[nodes.Text]:
    """Return the pieces of running text, in their order."""
    return [text for text in doctree.findall(nodes.Text) if _is_prose(text)]


def _is_prose(text: nodes.Text) -> bool:
    """Tell whether a text stands in a sentence, not in a title, code or an output."""
    node = text.parent
    while node is not None:
        if isinstance(node, NOT_PROSE):
            return False
        if isinstance(node, nodes.container) and "nb_element" in node:
            return False
        node = node.parent
    return True


def replace(text: nodes.Text, found: re.Match, link: nodes.Element) -> nodes.Text:
    """Put a link in place of a match; return the text after it."""
    before, after = text[: found.start()], nodes.Text(text[found.end() :])
    text.parent.replace(text, [nodes.Text(before), link, after])
    return after


# --- terms ------------------------------------------------------------------------------


def link_terms(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Link the first use of each term of the glossary."""
    terms = glossary.read_terms()
    owners, expression = glossary.by_form(terms), glossary.pattern(terms)
    places = app.env.domains["std"].objects
    base = app.builder.get_relative_uri(docname, "glossary")
    seen: set[str] = set()

    for text in prose(doctree):
        position = 0
        while found := expression.search(text, position):
            term = owners[glossary.normal(found[0])]
            position = found.end()
            if term.name in seen:
                continue
            seen.add(term.name)
            anchor = places["term", term.name][1]
            link = nodes.reference(
                "", found[0], refuri=f"{base}#{anchor}", reftitle=term.hint
            )
            link["classes"].append("term")
            text, position = replace(text, found, link), 0


# --- functions --------------------------------------------------------------------------


def link_functions(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Link the first use of each function of the chapter's technique to its page."""
    module = f"dlcourse.{docname.partition('_')[2]}."
    places = {
        name.rpartition(".")[2]: (found.docname, found.node_id)
        for name, found in app.env.domains["py"].objects.items()
        if name.startswith(module) and found.objtype in ("function", "class")
    }
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext().partition("(")[0]
        if name not in places or not isinstance(literal.parent, nodes.paragraph):
            continue
        page, anchor = places.pop(name)
        uri = f"{app.builder.get_relative_uri(docname, page)}#{anchor}"
        link = nodes.reference("", "", refuri=uri, internal=True)
        literal.parent.replace(literal, link)
        link += literal


# --- chapters and sections --------------------------------------------------------------


def link_chapters(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Link each "chapter 8" that is no link yet, save those of the chapter itself."""
    pages = {chapter.number: f"chapters/{chapter.stem}" for chapter in chapters()}
    for text in prose(doctree):
        position = 0
        while found := CHAPTER.search(text, position):
            position = found.end()
            page = pages.get(int(found[1]))
            if page is None or page == docname:
                continue
            uri = app.builder.get_relative_uri(docname, page)
            link = nodes.reference("", found[0], refuri=uri, internal=True)
            text, position = replace(text, found, link), 0


def link_sections(doctree: nodes.document) -> None:
    """Link a section's title where it stands in italics, whole or from its start."""
    anchors = {
        section[0].astext().rstrip("?").lower(): section["ids"][0]
        for section in doctree.findall(nodes.section)
    }
    find = _finder(anchors)
    for emphasis in list(doctree.findall(nodes.emphasis)):
        words = emphasis.astext()
        anchor = find(words.rstrip("?.,").lower())
        inside = _own_section(emphasis)
        if anchor is None or anchor == inside or not _is_prose(emphasis[0]):
            continue
        link = nodes.reference("", "", refid=anchor, internal=True)
        emphasis.parent.replace(emphasis, link)
        link += emphasis


def _finder(anchors: dict[str, str]) -> Callable[[str], str | None]:
    """Return a function from a title, or the start of one, to its anchor."""

    def find(words: str) -> str | None:
        if words in anchors:
            return anchors[words]
        starts = [anchor for title, anchor in anchors.items() if title.startswith(words)]
        return starts[0] if len(starts) == 1 and len(words) > 11 else None

    return find


def _own_section(node: nodes.Node) -> str:
    """Return the anchor of the section in which a node stands."""
    while not isinstance(node, nodes.section):
        node = node.parent
    return node["ids"][0]
