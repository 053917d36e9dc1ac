"""Formulas: KaTeX, bundled, in the pages; MathML in the EPUB. Both without a network.

Each formula is converted to MathML at build time, so a formula that is not valid fails
the build and is not found by a reader.
"""

from __future__ import annotations

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

SCRIPTS = ("katex/katex.min.js", "mathematics.js")
STYLE = "katex/katex.min.css"


def inline(self, node: nodes.math) -> None:
    """Write a formula within a line."""
    _write(self, node, "span", "inline")


def display(self, node: nodes.math_block) -> None:
    """Write a formula on a line of its own."""
    _write(self, node, "div", "block")


def _write(self, node, tag: str, form: str) -> None:
    source = node.astext().strip()
    try:
        mathml = convert(source, display=form)
    except Exception as error:
        place = f"{node.source}:{node.line}"
        raise ExtensionError(f"{place}: the formula {source!r}: {error!r}") from error
    if self.builder.name == "epub":
        self.body.append(mathml)
    else:
        opening = self.starttag(node, tag, "", CLASS=f"math math-{form}")
        self.body.append(f"{opening.strip()}{self.encode(source)}</{tag}>")
    raise nodes.SkipNode


def add_katex(app: Sphinx, pagename: str, template: str, context: dict, doctree) -> None:
    """Load KaTeX in the pages that hold a formula, and in no other."""
    if app.builder.name == "epub" or doctree is None:
        return
    if any(
        doctree.findall(lambda node: isinstance(node, (nodes.math, nodes.math_block)))
    ):
        app.add_css_file(STYLE)
        for script in SCRIPTS:
            app.add_js_file(script, loading_method="defer")
