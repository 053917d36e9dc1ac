"""The Sphinx extension of the book: what pages get that their sources do not hold."""

from __future__ import annotations

from sphinx.application import Sphinx

from book import buttons, figures, links, mathematics, searching


def setup(app: Sphinx) -> dict:
    """Connect the parts of the book to Sphinx."""
    app.add_search_language(searching.BookSearch)
    app.add_html_math_renderer(
        "bundled_katex", (mathematics.inline, None), (mathematics.display, None)
    )
    app.connect("html-page-context", mathematics.add_katex)
    app.connect("doctree-resolved", figures.add_captions)
    app.connect("doctree-resolved", buttons.add_buttons)
    app.connect("doctree-resolved", buttons.leave_out)
    app.connect("doctree-resolved", links.add_links)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
