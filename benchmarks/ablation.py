"""What does each technique contribute to one run? The ablation, and its picture.

    python benchmarks/ablation.py           # draws docs/ablation.png from the stored table
    python benchmarks/ablation.py --run     # runs it anew first: about fifteen minutes

`--run` does what `dlcourse-train --ablate` does, on 300 images of mnist_5k at 14 x 14
pixels: few images, so that the techniques count. The table of all runs goes to
dlcourse/capstone/ablation_mnist_5k.csv, from where chapter 17 draws it too. A run that was
stopped goes on.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import matplotlib.pyplot as plt

from dlcourse.capstone import ablation
from dlcourse.capstone.settings import Recipe
from dlcourse.lab.plotting import figure, intervals
from dlcourse.lab.training import use_one_thread

ROOT = Path(__file__).resolve().parent.parent
RECIPE = Recipe(
    data="mnist_5k",
    size=14,
    train_limit=300,
    width=6,
    epochs=12,
    batch_size=32,
    validation=0.06,
    test=0.15,
    label_smoothing=0.1,
)
SEEDS = 6


def draw(results: ablation.Results, path: Path) -> None:
    """Draw what each arm loses, the largest loss on top."""
    points, nats = ablation.losses(results)
    order = sorted(points, key=lambda arm: -nats[arm][0])
    seeds = len(ablation.column(results, ablation.FULL, "test_nll"))
    plt.rcParams["font.size"] = 12
    fig, axes = figure(2, width=12, height=5.2, sharey=True)
    intervals(
        axes[0],
        {arm: points[arm] for arm in order},
        title=f"without it, {seeds} seeds",
        xlabel="accuracy lost, points",
    )
    intervals(
        axes[1],
        {arm: nats[arm] for arm in order},
        title="95 % intervals",
        xlabel="likelihood lost, nats an image",
    )
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="store_true", help="run it anew first")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "ablation")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    if options.run:
        use_one_thread()
        begun = (options.folder / "recipe.toml").exists()
        print(ablation.ablate(RECIPE, options.folder, options.seeds, resume=begun))
        shutil.copy(options.folder / "ablation.csv", ablation.STORED)
    draw(ablation.read(ablation.STORED), ROOT / "docs" / "ablation.png")


if __name__ == "__main__":
    main()
