"""Formulas: KaTeX, bundled, in the pages; MathML in the EPUB. Both without a network.

Each formula is converted to MathML at build time, so a formula that is not valid fails
the build and is not found by a reader.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

LIBRARY = Path(__file__).resolve().parents[1] / "static" / "katex" / "katex.min.js"
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
    place = f"{node.source}:{node.line}: the formula {source!r}"
    if wrong := mistake(source):
        raise ExtensionError(f"{place} {wrong}")
    try:
        mathml = convert(source, display=form)
    except Exception as error:
        raise ExtensionError(f"{place}: {error!r}") from error
    if self.builder.name == "epub":
        self.body.append(mathml)
    else:
        opening = self.starttag(node, tag, "", CLASS=f"math math-{form}")
        self.body.append(f"{opening.strip()}{self.encode(source)}</{tag}>")
    raise nodes.SkipNode


@cache
def commands() -> set[str]:
    """Return the commands that KaTeX knows, and other words of its program."""
    return set(re.findall(r"\\\\([A-Za-z]+)", LIBRARY.read_text("utf-8")))


def mistake(source: str) -> str:
    """Return what is wrong with a formula, or "" where nothing is seen.

    >>> mistake(r"\\frac{1}{n}"), mistake(r"\\frac{1"), mistake(r"\\fraction{1}")
    ('', 'has a brace too many or too few', 'has the command \\\\fraction, which KaTeX lacks')
    """
    plain = re.sub(r"\\[{}]", "", source)
    if plain.count("{") != plain.count("}"):
        return "has a brace too many or too few"
    if len(re.findall(r"\\left\b", source)) != len(re.findall(r"\\right\b", source)):
        return "has a \\left without its \\right"
    lacking = sorted(set(re.findall(r"\\([A-Za-z]+)", source)) - commands())
    return f"has the command \\{lacking[0]}, which KaTeX lacks" if lacking else ""


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
