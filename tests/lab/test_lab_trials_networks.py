"""Networks with convolutions and norms: each is trained as it would be alone."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlcourse.lab.batches import epoch_order
from dlcourse.lab.training import use_one_thread
from dlcourse.lab.trials import run_trials

use_one_thread()
NORMS = {
    "none": nn.ReLU,  # a second ReLU changes nothing
    "batch": lambda: nn.BatchNorm2d(4),
    "group": lambda: nn.GroupNorm(2, 4),
}


def builder(norm, flat):
    def build(seed):
        torch.manual_seed(seed)
        layers = [
            nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=norm == "none"),
            NORMS[norm](),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1),
            NORMS[norm](),
            nn.ReLU(),
        ]
        if flat:
            return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 9, 3))
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )

    return build


def fully_connected(norm):
    def build(seed):
        torch.manual_seed(seed)
        layers = [nn.Flatten(), nn.Linear(36, 5, bias=False), norm(5), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(5, 3))

    return build


BUILDERS = {
    "batch norm of units": fully_connected(nn.BatchNorm1d),
    "layer norm of units": fully_connected(nn.LayerNorm),
}
for norm in NORMS:
    BUILDERS[f"{norm}, flat"] = builder(norm, flat=True)
    BUILDERS[f"{norm}, pooled"] = builder(norm, flat=False)


def made_up(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(rows, 1, 6, 6, generator=generator)
    return images, images.flatten(1)[:, :3].argmax(dim=1)


def alone(build, data, seed, lr, steps, batch_size, momentum):
    """Train one network in a plain loop."""
    images, labels = data
    model, losses = build(seed), []
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    epoch = 0
    while len(losses) < steps:
        for rows in epoch_order(len(images), seed, epoch).split(batch_size)[
            : steps - len(losses)
        ]:
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        epoch += 1
    return model.eval(), losses


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_each_network_is_trained_as_alone(build):
    data, held_out = made_up(40, 0), made_up(25, 1)
    settings = {"steps": 9, "batch_size": 12, "momentum": 0.9}
    seeds, rates = [3, 5], [0.02, 0.1]
    run = functools.partial(run_trials, **settings)
    trials = run(build, data, seeds=seeds, lr=rates, validation=held_out, test=data)
    for i, lr in enumerate(rates):
        for j, seed in enumerate(seeds):
            model, losses = alone(build, data, seed, lr, **settings)
            np.testing.assert_allclose(trials.train_loss[i, j], losses, atol=1e-4)
            with torch.no_grad():
                loss = F.cross_entropy(model(held_out[0]), held_out[1]).item()
                right = (model(data[0]).argmax(1) == data[1]).double().mean().item()
            assert abs(trials.validation["loss"][i, j] - loss) < 1e-4
            assert trials.test["accuracy"][i, j] == pytest.approx(right)
            for name, value in trials.networks[i][j].state_dict().items():
                wanted = model.state_dict()[name]
                torch.testing.assert_close(value, wanted, atol=1e-4, rtol=1e-4)


def test_the_rates_fall_to_zero():
    data = made_up(40, 0)
    build = BUILDERS["batch, flat"]
    settings = {"seeds": [3], "lr": [0.1], "batch_size": 12, "momentum": 0.9}
    falling = run_trials(build, data, steps=6, schedule=lambda t: 1 - t / 6, **settings)
    model = build(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batches = [*epoch_order(40, 3, 0).split(12), *epoch_order(40, 3, 1).split(12)]
    for step, rows in enumerate(batches[:6]):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 6)
        loss = F.cross_entropy(model(data[0][rows]), data[1][rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert abs(float(falling.train_loss[0, 0, step]) - loss.item()) < 1e-4


def test_one_that_diverges_harms_no_other():
    data = made_up(40, 0)
    settings = {"seeds": [0, 1], "steps": 12, "momentum": 0.9, "test": data}
    both = run_trials(builder("group", True), data, lr=[0.05, 1e30], **settings)
    one = run_trials(builder("group", True), data, lr=[0.05], **settings)
    assert not np.isfinite(both.train_loss[1, :, -1]).any()
    np.testing.assert_allclose(both.train_loss[0], one.train_loss[0], atol=1e-5)


def test_looks_on_the_way():
    data = made_up(40, 0)
    settings = {"seeds": [0, 1], "lr": [0.05, 0.1], "test": data, "validation": data}
    long = run_trials(
        builder("batch", True), data, steps=8, validate_every=[2, 5], **settings
    )
    short = run_trials(builder("batch", True), data, steps=5, **settings)
    assert long.times == [2, 5, 8]
    early = long.after(5)
    np.testing.assert_allclose(early.train_loss, short.train_loss, atol=1e-5)
    np.testing.assert_allclose(early.test["loss"], short.test["loss"], atol=1e-5)
    assert early.best_rate().lr == short.best_rate().lr
    assert (long.after(8).test["loss"] == long.test["loss"]).all()
    with pytest.raises(ValueError, match="no look after 4"):
        long.after(4)
