"""What is mended in the built pages: their weight, and names for what has none.

The theme brings all 2,000 icons of Font Awesome as a script of 1.5 MB, and loads the
index of the search on every page. The pages use some fifteen icons: those are written as
CSS, and the index is loaded where one searches. Of its CSS the rules stay that a page or a
script can use. And a few of its buttons have no name, or another one than they show, which
a screen reader cannot use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

SCRIPT = '<script[^>]*src="[^"]*{}[^"]*"[^>]*></script>\n?'
ICON = r'["\']?\b{}["\']?:\[(\d+),(\d+),\[[^\]]*\],"[0-9a-f]+","([^"]+)"\]'
SEARCH_ONLY = ("searchindex.js", "searchtools.js", "language_data.js")
NAMES = (  # what the theme writes, and what stands there instead
    ('<summary><span class="toctree-toggle"',
     '<summary aria-label="Show or hide the pages below"><span class="toctree-toggle"'),
    ('<summary aria-label="Toggle hidden content">', "<summary>"),
)  # fmt: skip
FIELD = re.compile(r'(<button[^>]*search-button-field[^>]*?)\s+aria-label="Search"')
OTHER_CLASSES = {"lg", "fw", "solid", "brands", "regular", "sm", "xs", "xl", "spin"}
IN_SCRIPTS = {"xmark"}  # put into the page by the theme's script


class IconMissing(Exception):
    """A page uses an icon that the theme does not bring."""


def finish(out: Path) -> None:
    """Make the pages below `out` lighter and name their buttons; what they show stays."""
    static = out / "_static"
    for path in static.glob("*macros.html"):  # templates of the theme, no pages
        path.unlink()
    pages = {path: path.read_text("utf-8") for path in out.rglob("*.html")}
    used = IN_SCRIPTS.union(*(icons_in(text) for text in pages.values()))
    write_icons(static, used)
    for path, text in pages.items():
        dropped = ["fontawesome.js"]
        if path.name != "search.html":
            dropped += SEARCH_ONLY
        for name in dropped:
            text = re.sub(SCRIPT.format(re.escape(name)), "", text)
        for before, after in NAMES:
            text = text.replace(before, after)
        path.write_text(FIELD.sub(r"\1", text), "utf-8")
    drop_rules(out, list(pages.values()))
    for path in {*static.rglob("*.map"), *static.rglob("fontawesome.js*")}:
        path.unlink()


def icons_in(text: str) -> set[str]:
    """Return the names of the icons of a page."""
    classes = re.findall(r'class="([^"]*\bfa[bs]?\b[^"]*)"', text)
    names = {name for found in classes for name in re.findall(r"\bfa-([a-z-]+)", found)}
    return names - OTHER_CLASSES


def write_icons(static: Path, names: set[str]) -> None:
    """Write the icons as CSS, and take the rules of all icons out of the theme's CSS."""
    script = static / "scripts" / "fontawesome.js"
    if not script.exists():
        return  # a second build into the same folder
    drawings = script.read_text("utf-8")
    rules = [
        ":is(i, span)[class*='fa-']::before { content: none !important; }",
        ":is(i, span)[class*='fa-'] { display: inline-block; width: 1em; height: 1em; "
        "vertical-align: -0.125em; background: currentColor; "
        "mask: var(--icon) center / contain no-repeat; }",
    ]
    for name in sorted(names):
        found = re.search(ICON.format(re.escape(name)), drawings)
        if not found:
            raise IconMissing(f"no icon fa-{name} in the theme's fontawesome.js")
        width, height, path = found.groups()
        drawing = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
            f'<path d="{path}"/></svg>'
        )
        address = "data:image/svg+xml," + quote(drawing, safe=" =:/'")
        rules.append(f'.fa-{name} {{ --icon: url("{address}"); }}')
    theme = static / "styles" / "pydata-sphinx-theme.css"
    css = re.sub(r'(?:\.fa-[a-z0-9-]+,?)+\{--fa:"[^"]*"\}', "", theme.read_text("utf-8"))
    css = re.sub(r"/\*# sourceMappingURL=.*?\*/", "", css)
    theme.write_text(css + "\n" + "\n".join(rules) + "\n", "utf-8")


# --- the theme's CSS --------------------------------------------------------------------


def drop_rules(out: Path, texts: list[str]) -> None:
    """Take out of the theme's CSS the rules for classes that nothing names."""
    scripts = [path.read_text("utf-8") for path in out.rglob("*.js")]
    words = set().union(*(re.findall(r"[\w-]+", text) for text in [*texts, *scripts]))
    theme = out / "_static" / "styles" / "pydata-sphinx-theme.css"
    theme.write_text(used_rules(theme.read_text("utf-8"), words), "utf-8")


def used_rules(css: str, words: set[str]) -> str:
    """Return minified CSS without the selectors whose classes are not among the words.

    >>> used_rules(".a,.b c{x:1}.b{x:2}@media print{.b{x:3}.a:not(.b){x:4}}", {"a"})
    '.a{x:1}@media print{.a:not(.b){x:4}}'
    """
    kept = []
    for head, body in rules_of(css):
        if body is None or head.startswith(("@font-face", "@keyframes", "@page")):
            kept.append(head if body is None else f"{head}{{{body}}}")
        elif head.startswith("@"):
            inner = used_rules(body, words)
            kept += [f"{head}{{{inner}}}"] if inner else []
        else:
            parts = re.split(r",(?![^()]*\))", head)
            used = [part for part in parts if classes(part) <= words]
            kept += [f"{','.join(used)}{{{body}}}"] if used else []
    return "".join(kept)


def classes(selector: str) -> set[str]:
    """Return the classes that an element must have; within brackets none counts."""
    return set(re.findall(r"\.(-?[a-zA-Z_][\w-]*)", re.sub(r"\([^()]*\)", "", selector)))


def rules_of(css: str) -> Iterator[tuple[str, str | None]]:
    """Yield (what stands before a brace, what stands within); within is None for a line
    without braces, such as an @import.
    """
    start = depth = opened = 0
    for found in re.finditer(
        r"\"(?:\\.|[^\"])*\"|'(?:\\.|[^'])*'|/\*.*?\*/|[{};]", css, re.S
    ):
        sign = found[0]
        if sign == ";" and depth == 0:
            yield css[start : found.end()], None
            start = found.end()
        if sign == "{":
            opened = found.start() if depth == 0 else opened
            depth += 1
        if sign == "}":
            depth -= 1
            if depth == 0:
                head = re.sub(r"/\*.*?\*/", "", css[start:opened], flags=re.S)
                yield head.strip(), css[opened + 1 : found.start()]
                start = found.end()
