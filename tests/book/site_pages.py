"""The built site as its files say: which pages there are, their links, anchors, images."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {("img", "src"), ("script", "src"), ("link", "href"), ("iframe", "src")}


@dataclass
class Page(HTMLParser):
    """One page: `links` are (address, what has it), `loads` what the browser fetches."""

    path: Path
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    images: list[dict] = field(default_factory=list)
    terms: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        HTMLParser.__init__(self)
        self.feed(self.path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        """Note what the tag links to, loads or names."""
        found = dict(attrs)
        if found.get("id"):
            self.anchors.add(found["id"])
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
            if "term" in (found.get("class") or "").split():
                self.terms.append(found["href"])
        if tag == "img":
            self.images.append(found)
        unused = tag == "link" and found.get("rel") in ("canonical", "search", "index")
        unused = unused or found.get("rel") in ("next", "prev", "author", "copyright")
        for owner, attribute in LOADS:
            if tag == owner and found.get(attribute) and not unused:
                self.loads.append(found[attribute])

    def handle_data(self, data: str) -> None:
        """Keep the words."""
        self.words.append(data)

    @property
    def text(self) -> str:
        """Return all words of the page, one space between them."""
        return " ".join(" ".join(self.words).split())


@cache
def pages(site: Path) -> dict[Path, Page]:
    """Return every page of a built site by its path."""
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def broken(site: Path) -> list[str]:
    """Return each link to a file or an anchor that is not there, and each load from
    another host, one line each.
    """
    found = []
    known = pages(site)
    for path, page in known.items():
        where = path.relative_to(site).as_posix()
        for address in page.loads:
            if urlsplit(address).scheme not in ("", "data"):
                found.append(f"{where} loads {address}")
        for address in [*page.links, *page.loads]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                found.append(f"{where} links to {address}, which is not there")
            elif parts.fragment and target in known:
                if unquote(parts.fragment) not in known[target].anchors:
                    found.append(f"{where} links to {address}, which has no such anchor")
    return found
