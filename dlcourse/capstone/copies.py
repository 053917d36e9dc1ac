"""Which images show the same picture: exact copies by their pixels, near ones by a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dlcourse.lab.progress import bar

SIDE = 32  # of the grey picture that is hashed
LOW = 8  # frequencies kept in each direction
NEAR_BITS = 8  # of the 63 of a hash that near copies may differ in
NEAR_ALIKE = 0.99  # and their least correlation, as pictures of 16x16
FLAT = 2.0  # grey levels: a picture that varies less has no hash worth comparing
BLOCK = 1024  # hashes compared at once with all others

# Row k holds the cosine wave of frequency k: WAVES @ picture @ WAVES.T is the low corner
# of the picture's discrete cosine transform.
WAVES = np.cos(
    np.pi / SIDE * np.outer(np.arange(LOW), np.arange(SIDE) + 0.5), dtype=np.float32
)


@dataclass(frozen=True, eq=False)
class Picture:
    """One image file: where it lies, and what of its pixels is compared.

    `file`: below ROOT, with slashes. `split` and `group`: None where there is none.
    `pixels`: a digest of the decoded pixels. `hash`: float32 (63,) of -1 and 1, or None
    for a flat picture. `small`: float32 (256,), of mean 0 and length 1.
    """

    file: str
    label: str
    split: str | None
    group: str | None
    pixels: bytes
    hash: np.ndarray | None
    small: np.ndarray


@dataclass(frozen=True)
class Pair:
    """Two files that show the same picture: the places of both, the earlier one first."""

    first: int
    second: int
    kind: str  # "exact" or "near"


def decode(path: Path) -> Image.Image:
    """Return an image upright, as 8-bit RGB; transparent pixels become white.

    Raises what Pillow raises for a file that is no image, and ValueError for pixels that
    are floats.
    """
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; save it with 8 bits")
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert would clip
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def digest(image: Image.Image) -> bytes:
    """Return 16 bytes that two images share only where all their pixels are equal."""
    return hashlib.blake2b(
        image.tobytes(), digest_size=16, salt=b"%dx%d" % image.size
    ).digest()


def perceptual_hash(image: Image.Image) -> np.ndarray | None:
    """Return the signs, -1 or 1, of the 63 lowest frequencies of the grey picture (63,).

    They say how light and dark are laid out, so size, compression and brightness hardly
    change them. None for a flat picture, whose signs are noise. Source: the DCT hash of
    Zauner (2010).
    """
    grey = _grey(image, SIDE)
    if grey.std() < FLAT:
        return None
    frequencies = WAVES @ grey @ WAVES.T  # (8, 8); the first is the mean
    return np.where(frequencies.ravel()[1:] > 0, 1, -1).astype(np.float32)


def in_small(image: Image.Image) -> np.ndarray:
    """Return the grey picture of 16x16 with mean 0 and length 1, (256,)."""
    grey = _grey(image, 16).ravel()
    grey = grey - grey.mean()
    return grey / max(float(np.linalg.norm(grey)), 1e-6)


def _grey(image: Image.Image, side: int) -> np.ndarray:
    small = image.convert("L").resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float32)


def find_copies(pictures: Sequence[Picture]) -> list[Pair]:
    """Return the pairs that show the same picture, exact ones first.

    Exact copies are paired with the first of their kind; near copies are looked for among
    these first ones.
    """
    first_with: dict[bytes, int] = {}
    pairs = []
    for place, picture in enumerate(pictures):
        first = first_with.setdefault(picture.pixels, place)
        if first != place:
            pairs.append(Pair(first, place, "exact"))
    places = [p for p in first_with.values() if pictures[p].hash is not None]
    if len(places) > 1:
        pairs += _near_pairs(pictures, np.array(places))
    return pairs


def _near_pairs(pictures: Sequence[Picture], places: np.ndarray) -> Iterator[Pair]:
    """Yield the pairs among `places` whose hashes and small pictures are nearly equal."""
    hashes = np.stack([pictures[place].hash for place in places])
    small = np.stack([pictures[place].small for place in places])
    # of signs, the product counts equal bits less different ones
    least = hashes.shape[1] - 2 * NEAR_BITS
    for start in bar(range(0, len(places), BLOCK), desc="comparing", unit="block"):
        agree = hashes[start : start + BLOCK] @ hashes[start:].T
        rows, columns = np.nonzero(np.triu(agree >= least, k=1))
        for row, column in zip(rows + start, columns + start, strict=True):
            if small[row] @ small[column] >= NEAR_ALIKE:
                yield Pair(int(places[row]), int(places[column]), "near")


def units(pictures: Sequence[Picture], pairs: Sequence[Pair]) -> list[str]:
    """Return for each picture the name of what must stay together with it.

    Copies are one unit, and so are groups; where a copy joins two groups, both are. The
    name is the group's, or the file's, of the first picture of the unit.
    """
    parent = list(range(len(pictures)))

    def root_of(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    links = [(pair.first, pair.second) for pair in pairs]
    first_of: dict[str, int] = {}
    for place, picture in enumerate(pictures):
        if picture.group is not None:
            links.append((first_of.setdefault(picture.group, place), place))
    for one, other in links:
        low, high = sorted((root_of(one), root_of(other)))
        parent[high] = low
    firsts = [pictures[root_of(place)] for place in range(len(pictures))]
    return [first.file if first.group is None else first.group for first in firsts]
