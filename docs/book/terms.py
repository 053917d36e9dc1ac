"""The glossary: its terms from glossary.toml, its page, and the words that link to it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from book.notebooks import BookError, Chapter

FILE = Path(__file__).resolve().parents[1] / "glossary.toml"


@dataclass(frozen=True)
class Term:
    """A term, its Chinese, meaning (Markdown), chapters, and other forms."""

    name: str
    chinese: str
    meaning: str
    chapters: tuple[int, ...]
    also: tuple[str, ...] = ()

    @property
    def forms(self) -> list[str]:
        """Return the forms of the term that a text may use, in small letters."""
        singular = [self.name.lower(), *(form.lower() for form in self.also)]
        return singular + [plural(form) for form in singular]

    @property
    def hint(self) -> str:
        """Return the meaning's first sentence as plain text, for a tooltip."""
        first = re.split(r"(?<=\.)\s", self.meaning.strip())[0]
        return re.sub(r"[*`$]", "", first)


def plural(form: str) -> str:
    """Return the plural of an English noun; other words get a form that never occurs.

    >>> plural("batch"), plural("penalty"), plural("learning rate")
    ('batches', 'penalties', 'learning rates')
    """
    if re.search(r"(s|x|ch|sh)$", form):
        return form + "es"
    if re.search(r"[^aeiou]y$", form):
        return form[:-1] + "ies"
    return form + "s"


@cache
def read_terms(file: Path = FILE) -> tuple[Term, ...]:
    """Return the terms by the alphabet; raises BookError for a double form."""
    rows = tomllib.loads(file.read_text("utf-8"))["term"]
    terms = []
    for row in rows:
        row["chapters"] = tuple(row["chapters"])
        row["also"] = tuple(row.get("also", ()))
        terms.append(Term(**row))
    by_form(terms)
    return tuple(sorted(terms, key=lambda term: term.name.lower()))


def by_form(terms: Sequence[Term]) -> dict[str, Term]:
    """Return the term of each form; raises BookError where two terms share one."""
    owners: dict[str, Term] = {}
    for term in terms:
        for form in term.forms:
            if owners.setdefault(form, term) is not term:
                raise BookError(
                    f"glossary.toml: {form!r} belongs to {owners[form].name!r} and to "
                    f"{term.name!r}; take it out of one"
                )
    return owners


@cache
def pattern(terms: tuple[Term, ...]) -> re.Pattern:
    """Return an expression that finds any form of any term, the longest first."""
    forms = sorted(by_form(terms), key=len, reverse=True)
    words = "|".join(re.escape(form).replace(r"\ ", r"\s+") for form in forms)
    return re.compile(rf"(?<![\w-])(?:{words})(?![\w-])", re.IGNORECASE)


def normal(words: str) -> str:
    """Return words of a text as a form: small letters, one space between them."""
    return " ".join(words.lower().split())


def page(terms: Sequence[Term], chapters: list[Chapter]) -> str:
    """Return the glossary's page as Markdown."""
    stems = {chapter.number: chapter for chapter in chapters}
    lines = [
        "# Glossary",
        "",
        f"The {len(terms)} terms of the course, English and Chinese. In a chapter, the "
        "first use of a term links here.",
        "",
        "```{glossary}",
    ]
    for term in terms:
        links = ", ".join(
            f"[chapter {number}](chapters/{stems[number].stem}.ipynb)"
            for number in term.chapters
        )
        where = f" See {links}." if links else ""
        lines += [term.name, term.chinese, f"  {term.meaning.strip()}{where}", ""]
    lines += ["```", ""]
    return "\n".join(lines)
