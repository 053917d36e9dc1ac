"""What `fit` and its peers cost an update, against a bare PyTorch loop of the same steps.

    python benchmarks/fit_overhead.py [--rounds 30] [--steps 400]

Every contender trains the same model from the same weights on the same batches in the
same order with the same optimizer. The batches come ready-made, so that no one pays for a
DataLoader. The model notes when each forward pass begins. The time from the first update
of the second epoch to the last update is divided by the updates between, so set-up, the
first epoch and tear-down count for no one. Before and after each run of a contender
stands one of the bare loop, and the ratio is to the mean of the two.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import logging
import math
import os
import tempfile
import time
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from many_seeds import machine, spread
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dlcourse.lab.batches import epoch_order
from dlcourse.lab.datasets import load
from dlcourse.lab.models import MLP
from dlcourse.lab.training import fit, use_one_thread

BATCH_SIZE, LR, SEED = 32, 0.05, 0
AGREE = 1e-3  # how far a contender's loss after the run may lie from the bare loop's


class Clocked(MLP):
    """The MLP of the benchmark, which notes when each forward pass begins."""

    def __init__(self) -> None:
        super().__init__(64, 10, width=64, depth=2, seed=SEED)
        self.times: list[float] = []

    def forward(self, images):
        self.times.append(time.perf_counter())
        return super().forward(images)


class Feed:
    """Ready-made batches in the order that `fit` draws; each pass over it is the next
    epoch.
    """

    def __init__(self, inputs, targets, as_dict: bool = False) -> None:
        self.inputs, self.targets, self.epoch, self.as_dict = inputs, targets, 0, as_dict
        self.batch_size = BATCH_SIZE

    def __len__(self) -> int:
        return math.ceil(len(self.inputs) / BATCH_SIZE)

    def __iter__(self):
        order = epoch_order(len(self.inputs), SEED, self.epoch)
        self.epoch += 1
        for rows in order.split(BATCH_SIZE):
            x, y = self.inputs.index_select(0, rows), self.targets.index_select(0, rows)
            yield {"images": x, "labels": y} if self.as_dict else (x, y)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of every contender."""
    return torch.optim.SGD(model.parameters(), lr=LR)


# ------------------------------------------------------------------ the contenders
# Each trains `model` for `epochs` epochs.


def bare(model, x, y, epochs):
    bare_loop(model, Feed(x, y), epochs)


def bare_with_loader(model, x, y, epochs):
    """The same with PyTorch's own DataLoader, which draws other batches."""
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH_SIZE, shuffle=True)
    bare_loop(model, loader, epochs)


def bare_loop(model, feed, epochs):
    optimizer, losses = sgd(model), []
    for _ in range(epochs):
        for inputs, targets in feed:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())


def dlcourse(model, x, y, epochs):
    fit(
        model,
        (x, y),
        sgd(model),
        epochs=epochs,
        batch_size=BATCH_SIZE,
        seed=SEED,
        cpu=True,
    )


def lightning(model, x, y, epochs):
    import lightning as L

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, number):
            inputs, targets = batch
            return F.cross_entropy(self.model(inputs), targets)

        def configure_optimizers(self):
            return sgd(self.model)

    trainer = L.Trainer(accelerator="cpu", devices=1, max_epochs=epochs, barebones=True)
    trainer.fit(Module(), Feed(x, y))


def transformers(model, x, y, epochs):
    from transformers import Trainer, TrainingArguments

    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images, labels):
            logits = self.model(images)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class Fed(Trainer):
        def get_train_dataloader(self):
            return Feed(x, y, as_dict=True)

    optimizer = sgd(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, use_cpu=True, num_train_epochs=epochs, max_grad_norm=0.0, seed=SEED,
            per_device_train_batch_size=BATCH_SIZE, logging_strategy="no", save_strategy="no",
            report_to=[], disable_tqdm=True, logging_nan_inf_filter=False,
        )  # fmt: skip
        constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        trainer = Fed(
            WithLoss(), arguments, train_dataset=TensorDataset(x, y),
            optimizers=(optimizer, constant),
        )  # fmt: skip
        for callback in list(trainer.callback_handler.callbacks):
            if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
                trainer.remove_callback(callback)
        trainer.train()


def ignite(model, x, y, epochs):
    from ignite.engine import create_supervised_trainer

    trainer = create_supervised_trainer(model, sgd(model), F.cross_entropy)
    trainer.run(Feed(x, y), max_epochs=epochs)


def skorch(model, x, y, epochs):
    from skorch import NeuralNet

    feed = Feed(x, y)
    net = NeuralNet(
        model, nn.CrossEntropyLoss, optimizer=torch.optim.SGD, lr=LR, max_epochs=epochs,
        batch_size=BATCH_SIZE, iterator_train=lambda dataset, **_: feed, train_split=None,
        callbacks="disable", verbose=0,
    )  # fmt: skip
    net.fit(x, y)


def fastai(model, x, y, epochs):
    import fastai.callback.progress  # noqa: F401  (gives the Learner its no_bar)
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    feed = Feed(x, y)
    feed.to = lambda device: feed
    feed.device, feed.n_inp, feed.dataset = torch.device("cpu"), 1, TensorDataset(x, y)
    learner = Learner(
        DataLoaders(feed, feed, device=torch.device("cpu")), model, loss_func=F.cross_entropy,
        opt_func=functools.partial(OptimWrapper, opt=torch.optim.SGD), lr=LR, train_bn=False,
    )  # fmt: skip
    learner._do_epoch_validate = lambda *args, **kwargs: None  # no one else validates
    with learner.no_bar(), learner.no_logging():
        learner.fit(epochs)


CONTENDERS = {  # the function, and the package it needs
    "bare loop": (bare, "torch"),
    "bare loop again": (bare, "torch"),
    "dlcourse fit": (dlcourse, "dlcourse"),
    "bare loop, DataLoader": (bare_with_loader, "torch"),
    "Lightning": (lightning, "lightning"),
    "Trainer of transformers": (transformers, "transformers"),
    "Ignite": (ignite, "ignite"),
    "skorch": (skorch, "skorch"),
    "fastai": (fastai, "fastai"),
}


def run(train, x, y, epochs: int) -> tuple[float, float, float]:
    """Return microseconds an update, the seconds of the whole run, and the loss after it."""
    model = Clocked()
    start = time.perf_counter()
    train(model, x, y, epochs)
    whole = time.perf_counter() - start
    updates, skip = epochs * len(Feed(x, y)), len(Feed(x, y))
    if len(model.times) != updates:
        raise RuntimeError(f"{len(model.times)} forward passes for {updates} updates")
    took = (model.times[-1] - model.times[skip]) / (updates - 1 - skip)
    model = model.eval()
    with torch.no_grad():
        return took * 1e6, whole, F.cross_entropy(model(x), y).item()


def installed(package: str) -> str | None:
    """Return the version of a package, or None where it cannot be imported."""
    try:
        return getattr(importlib.import_module(package), "__version__", "unknown")
    except ImportError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--steps", type=int, default=400, help="updates measured in each run"
    )
    arguments = parser.parse_args()
    use_one_thread()
    os.environ["DLCOURSE_PROGRESS"] = "0"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    x, y = load().train.tensors()
    epochs = 1 + math.ceil(arguments.steps / len(Feed(x, y)))

    print(machine())
    versions = {name: installed(package) for name, (_, package) in CONTENDERS.items()}
    *_, target = run(bare, x, y, epochs)
    contenders, losses = {}, {}
    for name, (train, _) in CONTENDERS.items():
        if versions[name] is None:
            print(f"{name}: not installed")
            continue
        try:
            *_, losses[name] = run(train, x, y, epochs)  # warms up, too
        except Exception as error:
            print(
                f"{name} {versions[name]}: does not run: {type(error).__name__}: {error}"
            )
            continue
        far = abs(losses[name] - target)
        if far > (AGREE if train is not bare_with_loader else 0.2):
            print(
                f"{name}: trained to another loss, {losses[name]:.4f}, not {target:.4f}: left out"
            )
            continue
        contenders[name] = train
    use_one_thread()  # a peer may have changed the switches

    times = {name: [] for name in contenders}
    wholes = {name: [] for name in contenders}
    ratios = {name: [] for name in contenders}
    for number in range(arguments.rounds):
        names = list(contenders)[1:]
        names = names[number % len(names) :] + names[: number % len(names)]
        before, *_ = run(bare, x, y, epochs)
        for name in names:
            took, whole, _ = run(contenders[name], x, y, epochs)
            after, bare_whole, _ = run(bare, x, y, epochs)
            times[name].append(took)
            ratios[name].append(took / ((before + after) / 2))
            wholes[name].append(whole)
            times["bare loop"].append(after)
            wholes["bare loop"].append(bare_whole)
            before = after

    updates = epochs * len(Feed(x, y)) - len(Feed(x, y)) - 1
    print(
        f"{arguments.rounds} rounds of {updates} updates; MLP 64-64-64-10, batch {BATCH_SIZE}, SGD"
    )
    print()
    print(
        "| Loop | version | us an update | ratio to the bare loop | quartiles | ", end=""
    )
    print("95 % of the median | whole run, s | loss after |")
    print("|---|---|---|---|---|---|---|---|")
    for name in contenders:
        ratio = spread(ratios[name]) if ratios[name] else "1 | |"
        print(
            f"| {name} | {versions[name]} | {np.median(times[name]):.0f} | {ratio} | "
            f"{np.median(wholes[name]):.3f} | {losses[name]:.4f} |"
        )


if __name__ == "__main__":
    main()
