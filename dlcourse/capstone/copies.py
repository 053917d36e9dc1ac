"""Which images show the same picture: exact copies by their pixels, near ones by a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from dlcourse.lab import images
from dlcourse.lab.progress import bar

SIDE = 32  # of the grey picture that is hashed
LOW = 8  # frequencies kept in each direction
NEAR_BITS = 8  # of the 63 of a hash that near copies may differ in
NEAR_ALIKE = 0.99  # and their least correlation, as pictures of 16x16 or in waves
SEEN_ALIKE = 0.985  # and as the network sees them, in all their pixels
FLAT = 2.0  # grey levels: a picture that varies less has no hash worth comparing
BLOCK = 1024  # hashes compared at once with all others


@lru_cache
def waves_of(side: int) -> np.ndarray:
    """Return the cosine waves (8, side), row k that of frequency k.

    waves @ picture @ waves.T is the low corner of a picture's discrete cosine transform.
    """
    places = np.outer(np.arange(LOW), np.arange(side) + 0.5)
    return np.cos(np.pi / side * places, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Picture:
    """One image file: where it lies, and what of its pixels is compared.

    `file`: below ROOT, with slashes. `split` and `group`: None where there is none.
    `pixels`: a digest of the decoded pixels. `hash`: float32 (63,) of -1 and 1, or of 0
    for a flat picture. `small`: float32 (256,), of mean 0 and length 1.
    """

    file: str
    label: str
    split: str | None
    group: str | None
    pixels: bytes
    hash: np.ndarray
    small: np.ndarray


@dataclass(frozen=True)
class Pair:
    """Two files that show the same picture: the places of both, the earlier one first."""

    first: int
    second: int
    kind: str  # "exact" or "near"


def decode(path: Path) -> Image.Image:
    """Return an image upright, as 8-bit RGB; transparent pixels become white.

    Raises what the one reader of the course raises for a file that is no image.
    """
    image = images.decode(path)
    if image.mode == "F":  # 16 bits and more, from 0 to 1
        image = Image.fromarray((np.asarray(image) * 255).round().astype(np.uint8))
    return image.convert("RGB")


def digest(image: Image.Image) -> bytes:
    """Return 16 bytes that two images share only where all their pixels are equal."""
    return hashlib.blake2b(
        image.tobytes(), digest_size=16, salt=b"%dx%d" % image.size
    ).digest()


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """Return the signs, -1 or 1, of the 63 lowest frequencies of the grey picture (63,).

    They say how light and dark are laid out, so size, compression and brightness hardly
    change them. A flat picture, whose signs are noise, gets zeros, which are near to
    none. Source: the DCT hash of Zauner (2010).
    """
    grey = _grey(image, SIDE)
    waves = waves_of(SIDE)
    frequencies = (waves @ grey @ waves.T).ravel()[1:]  # the first of 8x8 is the mean
    signs = np.where(frequencies > 0, 1, -1).astype(np.float32)
    return signs if grey.std() >= FLAT else np.zeros_like(signs)


def in_small(image: Image.Image) -> np.ndarray:
    """Return the grey picture of 16x16 with mean 0 and length 1, (256,)."""
    return centred(_grey(image, 16))


def centred(image: np.ndarray) -> np.ndarray:
    """Return the pixels in a row, with mean 0 and length 1."""
    pixels = image.astype(np.float32).ravel()
    pixels -= pixels.mean()
    return pixels / max(float(np.linalg.norm(pixels)), 1e-6)


def _grey(image: Image.Image, side: int) -> np.ndarray:
    small = image.convert("L").resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float32)


def find_copies(pictures: Sequence[Picture]) -> list[Pair]:
    """Return the pairs that show the same picture, exact ones first.

    Exact copies are paired with the first of their kind; near copies are looked for among
    these first ones: their hashes and their small pictures are nearly equal.
    """
    pairs, firsts = exact_pairs(picture.pixels for picture in pictures)
    hashes = np.stack([pictures[place].hash for place in firsts])
    # of signs, the product counts equal bits less different ones
    for row, column in _near(hashes, hashes.shape[1] - 2 * NEAR_BITS):
        one, other = firsts[row], firsts[column]
        if pictures[one].small @ pictures[other].small >= NEAR_ALIKE:
            pairs.append(Pair(one, other, "near"))
    return pairs


def exact_pairs(digests: Iterable[bytes]) -> tuple[list[Pair], list[int]]:
    """Return each later place with the first of its digest, and these first places."""
    first_with: dict[bytes, int] = {}
    pairs = []
    for place, digest_ in enumerate(digests):
        first = first_with.setdefault(digest_, place)
        if first != place:
            pairs.append(Pair(first, place, "exact"))
    return pairs, list(first_with.values())


def _near(
    rows_of: np.ndarray, least: float, ends: np.ndarray | None = None
) -> Iterator[tuple[int, int]]:
    """Yield the pairs of rows, the lower one first, whose product is so much at least.

    ends: for each row the first that is surely too far away, and so are all after it.
    """
    for start in bar(range(0, len(rows_of), BLOCK), desc="comparing", unit="block"):
        mine = rows_of[start : start + BLOCK]
        end = len(rows_of) if ends is None else int(ends[start + len(mine) - 1])
        for left in range(start, end, 2 * BLOCK):
            agree = mine @ rows_of[left : min(end, left + 2 * BLOCK)].T
            near = np.flatnonzero(agree >= least)  # far faster than nonzero of a matrix
            rows, columns = np.divmod(near, agree.shape[1])
            ahead = columns + left > rows + start
            found = rows[ahead] + start, columns[ahead] + left
            yield from zip(found[0].tolist(), found[1].tolist(), strict=True)


class Together:
    """Which places belong together: a forest, in which the root is the first of a tree."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def root(self, place: int) -> int:
        """Return the first place of those that belong together with this one."""
        while self.parent[place] != place:
            self.parent[place] = self.parent[self.parent[place]]
            place = self.parent[place]
        return place

    def join(self, one: int, other: int) -> None:
        """Put two places, and all that belongs to them, together."""
        low, high = sorted((self.root(one), self.root(other)))
        self.parent[high] = low


def firsts_of(pairs: Iterable[Pair], groups: Sequence[str | None]) -> list[int]:
    """Return for each place the first of those that stay together with it.

    These are its copies, and where `groups` names one, the places of the same group.
    """
    together = Together(len(groups))
    for pair in pairs:
        together.join(pair.first, pair.second)
    first_of: dict[str, int] = {}
    for place, group in enumerate(groups):
        if group is not None:
            together.join(first_of.setdefault(group, place), place)
    return [together.root(place) for place in range(len(groups))]


def units(pictures: Sequence[Picture], pairs: Sequence[Pair]) -> list[str]:
    """Return for each picture the name of what must stay together with it.

    Copies are one unit, and so are groups; where a copy joins two groups, both are. The
    name is the group's, or the file's, of the first picture of the unit.
    """
    places = firsts_of(pairs, [picture.group for picture in pictures])
    firsts = [pictures[place] for place in places]
    return [first.file if first.group is None else first.group for first in firsts]


# --- in a run, among the pixels as the network sees them --------------------------------------


def look_at(batches: Iterable[np.ndarray]) -> tuple[list[bytes], np.ndarray]:
    """Return the digest of each image, and its 63 lowest frequencies (n, 63), of length 1.

    batches: (k, channels, side, side), 8-bit or in [0, 1]. A flat picture has zeros, which
    are near to none.
    """
    digests, found = [], bytearray()  # one block, see lab.evaluation.outputs_of
    for batch in batches:
        digests += [
            hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in batch
        ]
        grey = batch.mean(1, dtype=np.float32)
        grey *= 1 if batch.dtype == np.uint8 else 255
        waves = waves_of(grey.shape[1])
        low = (waves @ grey @ waves.T).reshape(len(grey), -1)[:, 1:]
        low[grey.std((1, 2)) < FLAT] = 0
        lengths = np.linalg.norm(low, axis=1, keepdims=True)
        found += (low / np.maximum(lengths, 1e-6)).tobytes()
    return digests, np.frombuffer(found, np.float32).reshape(-1, LOW * LOW - 1)


def pairs_of(
    digests: Sequence[bytes],
    waves: np.ndarray,
    take: Callable[[Sequence[int]], np.ndarray],
) -> list[Pair]:
    """Return pairs that join all copies: each place with an earlier one, exact ones first.

    waves: what `look_at` returned. take: gives the pixels of some places. Near copies agree
    in their low frequencies and, as the network sees them, in all their pixels but for
    brightness and contrast.
    """
    pairs, firsts = exact_pairs(digests)
    together = Together(len(digests))
    places = np.array([place for place in firsts if waves[place].any()], dtype=int)
    for one, other in _near_waves(waves, places):
        if together.root(one) == together.root(other):
            continue
        first, second = (centred(image) for image in take([one, other]))
        if first @ second >= SEEN_ALIKE:
            together.join(one, other)
            pairs.append(Pair(one, other, "near"))
    return pairs


def _near_waves(waves: np.ndarray, places: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the pairs of places, the earlier one first, with nearly equal frequencies.

    Vectors of length 1 with such a product are no further apart than `reach`, and so in
    no single number: sorted by the one that varies most, few are left to compare.
    """
    if len(places) < 2:
        return
    along = waves[places, waves[places].var(0).argmax()]
    order = along.argsort(kind="stable")
    places, along = places[order], along[order]
    reach = (2 - 2 * NEAR_ALIKE) ** 0.5 + 1e-3
    ends = np.searchsorted(along, along + reach, side="right")
    for row, column in _near(waves[places], NEAR_ALIKE, ends):
        one, other = sorted((int(places[row]), int(places[column])))
        yield one, other
