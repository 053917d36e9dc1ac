"""Image files: which there are in a folder, how one is read, and tables that name them.

Training, `predict` and `dlcourse-leaks` all read through here, so that they see the same
files as the same pixels. No torch, so that a command can start quickly.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# what a desktop, an archive or a network drive leaves among images
LITTER = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found", "$recycle.bin",
          "system volume information"}  # fmt: skip
HEIC = {".heic", ".heif"}
NO_PICTURES = {"MPEG", "HDF5", "GRIB", "BUFR", "WMF"}  # Pillow knows them, without pixels
RUN_FILES = ("recipe.toml", "untuned.toml", "images.cache")
DEPTHS = {"I;16": 2**16 - 1, "I": 2**31 - 1}  # the largest value of a pixel by its type
SPLITS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation",
    "validation": "validation", "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip
GAP = 2  # a JPEG is decoded at this many times the wanted side, or more


@lru_cache
def endings() -> frozenset[str]:
    """Return the endings of image files, in small letters, with their dot."""
    Image.preinit()  # the usual formats first: an image is tried with each reader in turn
    known = Image.registered_extensions()  # also loads Pillow's other readers
    readable = set(Image.OPEN) - NO_PICTURES
    return frozenset({end for end, name in known.items() if name in readable} | HEIC)


def is_image(path: Path) -> bool:
    """Tell whether a file is an image: by its ending, or else by its first bytes."""
    if path.suffix.lower() in endings():
        return True
    try:
        with Image.open(path) as opened:
            return opened.format not in NO_PICTURES
    except Exception:  # a reader may raise anything on a file that is none of its own
        return False


def holds_run(folder: Path) -> bool:
    """Tell whether a run of this course lies in a folder, or runs in folders of it."""
    for name in RUN_FILES:
        path = folder / name
        if path.is_file():
            with open(path, "rb") as file:
                if name == "images.cache" or file.read(10) == b"# dlcourse":
                    return True
    inside = [path for path in folder.iterdir() if path.name[0] != "."]
    return bool(inside) and all(
        path.is_dir() and any((path / name).is_file() for name in RUN_FILES)
        for path in inside
    )


def visible(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return (folders, files) in a folder by name, without hidden ones, litter and runs."""
    folders, files = [], []
    with os.scandir(folder) as entries:  # a path of pathlib would ask the disk again
        each = sorted(entries, key=lambda entry: entry.name)
    for entry in each:
        if entry.name[0] == "." or entry.name.lower() in LITTER:
            continue
        path = folder / entry.name
        if not entry.is_dir():
            files.append(path)
        elif not holds_run(path):
            folders.append(path)
    return folders, files


def below(folder: Path, within: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield all files in and below a folder, by name; links to folders are followed."""
    real = os.path.realpath(folder)
    if real in within:  # a link to a folder around it
        return
    folders, files = visible(folder)
    for path in sorted(folders + files):
        if path in files:
            yield path
        else:
            yield from below(path, (*within, real))


def decode(path: str | os.PathLike[str], size: int | None = None) -> Image.Image:
    """Return an image upright: grey ("L"), colour ("RGB"), or deep grey ("F", 0 to 1).

    Transparent pixels become white; 16 and 32 bits are divided by the largest value of
    their type. A JPEG is decoded no larger than needed for `size` pixels a side. Raises
    what Pillow raises for a file that is no image, and ValueError for pixels that are
    floats or negative.
    """
    with _open(path) as image:
        deep = 2**16 - 1 if image.format == "PPM" else DEPTHS.get(image.mode[:4])
        if size is not None:
            image.draft(None, (GAP * size, GAP * size))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; save it with 8 bits")
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        if pixels.min() < 0:
            raise ValueError("its pixels are negative; save it with 8 or 16 bits")
        return Image.fromarray((pixels / deep).astype(np.float32))
    grey = image.mode in ("1", "L", "LA", "La")
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if grey else "RGB")


def _open(path: str | os.PathLike[str]) -> Any:
    """Open an image file; HEIC with the package that reads it, where it is installed."""
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        with open(path, "rb") as file:
            start = file.read(12)
        if start[4:8] != b"ftyp" or start[8:11] not in (b"hei", b"hev", b"mif", b"msf"):
            raise
        try:
            import pillow_heif  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError(
                "it is HEIC, which python -m pip install pillow-heif lets Python read"
            ) from None
        pillow_heif.register_heif_opener()
        return Image.open(path)


def pixels_of(path: str | os.PathLike[str], size: int) -> np.ndarray:
    """Return one file as (1 or 3, size, size): uint8, or float32 in [0, 1] if deep.

    It is stretched to a square.
    """
    image = decode(path, size)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=GAP)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def reason(error: Exception) -> str:
    """Return in a few words why a file cannot be read."""
    if isinstance(error, UnidentifiedImageError):
        return "no image, or one that is damaged from the start"
    return " ".join(str(error).split())[:200] or type(error).__name__


def summed_up(problems: list[str], what: str) -> str:
    """Return one line: how many there are of what, and the first three."""
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return f"{len(problems)} {what}: {'; '.join(problems[:3])}{more}"


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV by column; ValueError where it cannot be read."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as lines:
            return list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a CSV ({error})") from error
