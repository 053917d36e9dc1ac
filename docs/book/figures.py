"""Pictures of the chapters become figures: caption below, and as alternative text."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from book.notebooks import captions, chapters


def add_captions(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Join each picture with the caption that the notebook stores after it."""
    own = [chapter for chapter in chapters() if docname == f"chapters/{chapter.stem}"]
    if not own:
        return
    words = captions(own[0])
    pictures = list(doctree.findall(nodes.image))
    if len(words) != len(pictures):
        raise ExtensionError(
            f"{docname}: {len(pictures)} pictures, {len(words)} captions in the notebook"
        )
    for number, (image, caption) in enumerate(zip(pictures, words, strict=True), 1):
        below = image.next_node(nodes.paragraph, descend=False, siblings=True)
        if below is None or image.parent.index(below) != image.parent.index(image) + 1:
            raise ExtensionError(f"{docname}: no caption below the picture: {caption}")
        image["alt"] = caption
        image["loading"] = "lazy"
        below.parent.remove(below)
        figure = nodes.figure(align="left", ids=[f"figure-{number}"])
        image.parent.replace(image, figure)
        figure += nodes.container("", image, classes=["picture"])
        figure += nodes.caption("", "", *below[0].children)
