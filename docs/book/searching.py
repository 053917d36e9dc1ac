"""Search in English and Chinese: Sphinx's own, which needs no server, with Chinese pairs.

Chinese has no spaces between words. So a run of its characters is indexed, and asked for,
as its pairs of neighbours: 梯度裁剪 as 梯度, 度裁, 裁剪. Then a part of it is found, too.
"""

from __future__ import annotations

import re
from functools import cache

from sphinx.search.en import SearchEnglish

CHINESE = re.compile(r"([\u4e00-\u9fff]+)")


def pieces(words: list[str]) -> list[str]:
    """Return the words, each run of Chinese characters as its pairs of neighbours.

    >>> pieces(["warm", "模型预热"])
    ['warm', '模型', '型预', '预热']
    """
    found = []
    for word in words:
        for part in filter(None, CHINESE.split(word)):
            if CHINESE.match(part) and len(part) > 2:
                found += [part[place : place + 2] for place in range(len(part) - 1)]
            else:
                found.append(part)
    return found


class BookSearch(SearchEnglish):
    """Sphinx's English search, which also finds Chinese words."""

    js_splitter_code = r"""
function splitQuery(query) {
  const words = query.split(/[^\p{Letter}\p{Number}_]+/gu).filter((word) => word);
  const found = [];
  for (const word of words) {
    for (const part of word.split(/([\u4e00-\u9fff]+)/u).filter((piece) => piece)) {
      if (!/^[\u4e00-\u9fff]{3,}$/u.test(part)) {
        found.push(part);
        continue;
      }
      for (let place = 0; place + 1 < part.length; place += 1) {
        found.push(part.slice(place, place + 2));
      }
    }
  }
  return found;
}
"""

    @cache  # noqa: B019  a book has few words, each often; Sphinx keeps the language as long
    def stem(self, word: str) -> str:
        """Return the stem of a word."""
        return super().stem(word)

    def split(self, input: str) -> list[str]:
        """Return the words of a text."""
        return pieces(super().split(input))
