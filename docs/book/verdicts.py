"""What the chapters say of the article's statements, read from their own sections.

A chapter gives its verdicts in the section "What the article says", in one of these forms:

- a table with a column "Verdict";
- a list, the verdict in bold behind the statement: `- Expand the data first: **loose.**`;
- prose, the statement in bold and in quotation marks, and the verdict in bold somewhere
  behind it, **Verdict: loose.** or **Wrong.**, or both in one piece: **"A": loose.**
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from book.notebooks import BookError, Chapter

SECTION = "What the article says"
WORDS = ("right", "loose", "wrong")
BOLD = re.compile(r"\*\*(.+?)\*\*", re.DOTALL)
IS_VERDICT = re.compile(
    r"^(?:verdict\b.*|(?:right|loose|wrong)\b.*|[^\"“]*: (?:right|loose|wrong)\b.*)$",
    re.IGNORECASE | re.DOTALL,
)
JOINED = re.compile(
    r"^[\"“](.+?)[\"”]: ((?:right|loose|wrong|not)\b.*)$",
    re.IGNORECASE | re.DOTALL,
)
ITEM = re.compile(
    r"^[-*] ([^*\n]+?): \*\*((?:right|loose|wrong)\b[^*]*)\*\*", re.M | re.I
)
REST = re.compile(r",?(?:[^.,;(\n]|(?<=\w)\()*")  # of a sentence, up to the next comma
CELL_BORDER = re.compile(r"(?<!\\)\|(?=(?:[^`$]|`[^`]*`|\$[^$]*\$)*$)")


@dataclass(frozen=True)
class Verdict:
    """One statement of the article (Markdown), and what its chapter says of it."""

    statement: str
    verdict: str
    chapter: Chapter

    @property
    def kind(self) -> str:
        """Return right, loose or wrong, or mixed where the verdict has parts."""
        found = {word for word in WORDS if re.search(rf"\b{word}\b", self.verdict, re.I)}
        return found.pop() if len(found) == 1 else "mixed"


def verdicts(chapter: Chapter) -> list[Verdict]:
    """Return the verdicts of a chapter.

    Raises BookError where one of the sixteen gives none.
    """
    parts = chapter.section(SECTION)
    pairs = _from_tables(parts) or _from_lists(parts) or _from_prose(parts)
    if chapter.is_lesson and not pairs:
        raise BookError(
            f"{chapter.path.name}: no verdict in the section {SECTION!r}; give a table "
            "with a column Verdict, or **Verdict: ...** after each statement"
        )
    found = [Verdict(statement, verdict, chapter) for statement, verdict in pairs]
    for item in found:
        if not any(word in item.verdict.lower() for word in (*WORDS, "not")):
            raise BookError(
                f"{chapter.path.name}: the verdict {item.verdict!r} is none of {WORDS}"
            )
    return found


# --- from a table -----------------------------------------------------------------------


def _from_tables(parts: list[str]) -> list[tuple[str, str]]:
    """Return (statement, verdict) of each row of the tables with a column Verdict."""
    pairs = []
    for part in parts:
        column = None
        for line in part.splitlines():
            cells = _cells(line)
            if not cells:
                column = None
            elif "Verdict" in cells:
                column = cells.index("Verdict")
            elif column and not set("".join(cells)) <= set("-: "):
                pairs.append((cells[0], _plain(cells[column])))
    return pairs


def _cells(line: str) -> list[str]:
    """Return the cells of a line of a Markdown table, or [] for another line."""
    line = line.strip()
    if not line.startswith("|"):
        return []
    return [cell.strip() for cell in CELL_BORDER.split(line.strip("|"))]


# --- from a list ------------------------------------------------------------------------


def _from_lists(parts: list[str]) -> list[tuple[str, str]]:
    """Return (statement, verdict) of each item with a verdict in bold behind a colon."""
    return [
        (found[1], _sentence(part, found, found[2]))
        for part in parts
        for found in ITEM.finditer(part)
    ]


# --- from prose -------------------------------------------------------------------------


def _from_prose(parts: list[str]) -> list[tuple[str, str]]:
    """Return (statement, verdict), each verdict with the statements before it."""
    pairs: list[tuple[str, str]] = []
    statements: list[str] = []
    judged: list[str] = []
    for part in parts:
        for found in BOLD.finditer(part):
            text = " ".join(found[1].split())
            if joined := JOINED.match(text):
                pairs.append((f'"{joined[1]}"', _plain(joined[2])))
                continue
            if IS_VERDICT.match(text):
                judged.append(_sentence(part, found, text))
                continue
            if judged:
                pairs += _paired(statements, judged)
                statements, judged = [], []
            statements.append(text)
    if judged:
        pairs += _paired(statements, judged)
    return pairs


def _sentence(part: str, found: re.Match, text: str) -> str:
    """Return the verdict with what its sentence still says after the bold words."""
    rest = "" if text.endswith(".") else REST.match(part[found.end() :])[0]
    return _plain(text + rest.rstrip())


def _paired(statements: list[str], judged: list[str]) -> list[tuple[str, str]]:
    """Pair in order where there are as many of both; else all together."""
    quoted = [text for text in statements if text[:1] in '"“']
    statements = quoted or statements
    if len(statements) == len(judged):
        return list(zip(statements, judged, strict=True))
    return [(" ".join(statements), " ".join(judged))]


def _plain(text: str) -> str:
    """Return a verdict without bold marks and without the word Verdict before it."""
    text = text.replace("**", "").strip()
    text = re.sub(r"^verdict(?: on [^:,]+)?[:,]?\s*", "", text, flags=re.IGNORECASE)
    return text[:1].lower() + text[1:]
