"""Names of classes in pictures: in a font that has their letters, or as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

WHY = "numbers stand for names that no font here can draw: install Noto Sans CJK"


@lru_cache
def _letters(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(path).get_charmap())


@lru_cache
def families(text: str) -> tuple[list[str], set[str]]:
    """Return the font families to draw a text with, in order, and letters that none has."""
    from matplotlib import font_manager, rcParams

    chosen = list(rcParams["font.family"])
    missing = {ord(letter) for letter in text if letter.isprintable()}
    missing -= _letters(font_manager.findfont(font_manager.FontProperties()))
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: font.name):
        if not missing:
            break
        try:
            there = missing & _letters(font.fname)
        except (OSError, RuntimeError):  # a font that cannot be read
            continue
        if there and font.style == "normal" and not font.name.startswith("Last Resort"):
            chosen.append(font.name)
            missing -= there
    return chosen, {chr(code) for code in missing}


def drawable(classes: Sequence[str]) -> tuple[list[str], list[str], str]:
    """Return (names, font families, why some names are numbers or nothing)."""
    chosen, missing = families("".join(sorted(set("".join(classes)))))
    names = [
        f"#{number}" if missing & set(name) else name
        for number, name in enumerate(classes)
    ]
    return names, chosen, WHY if missing else ""
