"""What it costs that each process reads its own rows of a `DataLoader`, and no others.

    python benchmarks/reads.py [--images 2000] [--processes 1 2 4] [--rounds 3]

`fit` for one epoch of JPEGs of 160x120 pixels, decoded and made 64 pixels high by torch,
on 1, 2 and 4 processes of this machine. "Whole batches" is the same call with a transform
that changes nothing: `fit` then reads all rows in every process, as it always did before.
CPU seconds are summed over the processes, from before `fit` to after it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from many_seeds import machine
from torchvision.io import write_jpeg

from dlcourse.lab.launching import launch


def write_images(folder: Path, images: int) -> None:
    """Write smooth pictures with some noise, so that a file has a photograph's size."""
    generator = torch.Generator().manual_seed(0)
    for number in range(images):
        coarse = torch.rand(1, 3, 8, 10, generator=generator) * 255
        smooth = torch.nn.functional.interpolate(coarse, (120, 160), mode="bilinear")[0]
        noise = 12 * torch.randn(3, 120, 160, generator=generator)
        picture = (smooth + noise).clamp(0, 255).to(torch.uint8)
        write_jpeg(picture, str(folder / f"{number}.jpg"), quality=85)


def train(folder: str, by_share: bool) -> list[float]:
    """Train for an epoch; return this process's CPU seconds and how many rows it read."""
    import time
    from pathlib import Path

    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision.io import decode_image
    from torchvision.transforms.v2.functional import resize

    from dlcourse.lab.training import fit, use_one_thread

    use_one_thread()
    files = sorted(Path(folder).glob("*.jpg"))
    read = []

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(files)

        def __getitem__(self, row):
            read.append(row)
            image = resize(decode_image(str(files[row])), [64, 64])
            return image / 255, row % 10

    def unchanged(inputs, targets):
        return inputs, targets

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    loader = DataLoader(Images(), batch_size=64, shuffle=True)
    start = time.process_time()
    fit(
        model,
        loader,
        optimizer,
        epochs=1,
        transform=None if by_share else unchanged,
        progress=False,
    )
    return [time.process_time() - start, len(read)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(machine())
    print("| processes | read | rows read | CPU s, all processes | of each round |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        write_images(Path(name), options.images)
        arms = [(world, True) for world in options.processes]
        arms += [(world, False) for world in options.processes if world > 1]
        seconds: dict[tuple, list[float]] = {arm: [] for arm in arms}
        rows = {}
        for _ in range(
            options.rounds
        ):  # the arms in turn, so that they share a bad minute
            for world, by_share in arms:
                found = launch(train, world, args=[name, by_share], timeout=600)
                seconds[world, by_share].append(sum(cpu for cpu, _ in found))
                rows[world, by_share] = sum(count for _, count in found)
    for world, by_share in sorted(arms, key=lambda arm: (arm[0], not arm[1])):
        times = seconds[world, by_share]
        each = ", ".join(f"{value:.1f}" for value in times)
        how = "its share" if by_share else "whole batches"
        median = statistics.median(times)
        print(
            f"| {world} | {how} | {rows[world, by_share]:,.0f} | {median:.1f} | {each} |"
        )


if __name__ == "__main__":
    main()
