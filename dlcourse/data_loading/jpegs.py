"""A folder of JPEG files: samples that cost something to read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dlcourse.data_loading.datasets import Dataset


def write_jpegs(folder: str | Path, count: int, side: int, seed: int = 0) -> None:
    """Write `count` square images of `side` pixels, smooth colours with noise, as JPEG.

    The files are 000.jpg, 001.jpg and so on; the same seed gives the same files.
    """
    rng = np.random.default_rng(seed)
    for number in range(count):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        noise = rng.integers(-20, 21, (side, side, 3))
        pixels = (np.asarray(image) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(Path(folder) / f"{number:03d}.jpg", quality=90)


class JpegFolder(Dataset):
    """Sample i is the i-th .jpg file of `folder` by name, decoded and resized.

    A sample is uint8 (3, size, size). Nothing is kept: each read opens the file again.
    """

    def __init__(self, folder: str | Path, size: int = 64) -> None:
        self.paths = sorted(Path(folder).glob("*.jpg"))
        self.size = size

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB").resize((self.size, self.size))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def __len__(self) -> int:
        return len(self.paths)
