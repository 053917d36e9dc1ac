from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, stack_module_state, vmap

from dlcourse.lab.datasets import load
from dlcourse.lab.models import (
    ACTIVATIONS,
    MLP,
    ResidualCNN,
    RowRNN,
    RowTransformer,
    SmallCNN,
)

# Each builds a network for images (n, c, 8, 8) and ten classes.
BUILD = {
    "mlp": lambda c=1, **kw: MLP(c * 64, 10, **kw),
    "mlp-tanh": lambda c=1, **kw: MLP(c * 64, 10, activation="tanh", **kw),
    "linear": lambda c=1, **kw: MLP(c * 64, 10, depth=0, **kw),
    "cnn": lambda c=1, **kw: SmallCNN(c, 10, **kw),
    "residual-group": lambda c=1, **kw: ResidualCNN(c, 10, norm="group", **kw),
    "residual-batch": lambda c=1, **kw: ResidualCNN(c, 10, norm="batch", **kw),
    "transformer-pre": lambda c=1, **kw: RowTransformer(c * 8, 8, 10, norm="pre", **kw),
    "transformer-post": lambda c=1, **kw: RowTransformer(c * 8, 8, 10, norm="post", **kw),
    "rnn": lambda c=1, **kw: RowRNN(c * 8, 10, **kw),
}
each_model = pytest.mark.parametrize("build", BUILD.values(), ids=BUILD)


def images(n=6, c=1, size=8):
    return torch.randn(n, c, size, size, generator=torch.Generator().manual_seed(0))


@each_model
def test_images_in_logits_out_and_every_parameter_learns(build):
    for channels in (1, 3):
        model = build(channels)
        logits = model(images(c=channels))
        assert logits.shape == (6, 10) and logits.isfinite().all()
        F.cross_entropy(logits, torch.arange(6)).backward()
        assert all(
            p.grad is not None and p.grad.isfinite().all() for p in model.parameters()
        )


@each_model
def test_the_seed_decides_and_the_global_random_state_is_untouched(build):
    before = torch.get_rng_state()
    one = build(seed=1).state_dict()
    torch.manual_seed(99)
    same, other = build(seed=1).state_dict(), build(seed=2).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    torch.set_rng_state(before)
    build()
    assert torch.equal(before, torch.get_rng_state())


@each_model
def test_biases_start_at_zero(build):
    for name, value in build().named_parameters():
        if name.endswith("bias"):
            assert not value.any(), name


@each_model
def test_a_stack_of_models_equals_each_alone_also_in_its_gradients(build):
    models = [build(seed=seed).double() for seed in range(3)]
    x, y = images().double(), torch.arange(6)
    params, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")

    def forward(params, buffers, x):
        return functional_call(skeleton, (params, buffers), (x,))

    stacked = vmap(forward, in_dims=(0, 0, None))(params, buffers, x)
    sum(F.cross_entropy(logits, y) for logits in stacked).backward()
    for k, model in enumerate(models):
        logits = model(x)
        torch.testing.assert_close(stacked[k], logits)
        F.cross_entropy(logits, y).backward()
        for name, value in model.named_parameters():
            torch.testing.assert_close(params[name].grad[k], value.grad)
        for name, value in model.named_buffers():  # batch norm's running statistics
            torch.testing.assert_close(buffers[name][k], value)


@each_model
def test_thirty_two_digits_are_soon_known_by_heart(build):
    x, y = (part[:32] for part in load("digits").train.tensors())
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert (model(x).argmax(1) == y).all()


@pytest.mark.parametrize("size", [1, 5, 28])
def test_the_convolutional_nets_take_any_size(size):
    for model in (SmallCNN(1, 4), ResidualCNN(1, 4)):
        assert model(images(size=size)).shape == (6, 4)


def test_weights_have_the_spread_their_rule_gives():
    relu, tanh = MLP(400, 10, width=500), MLP(400, 10, width=500, activation="tanh")
    assert relu.layers[0].weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert tanh.layers[0].weight.std().item() == pytest.approx((2 / 900) ** 0.5, rel=0.02)
    assert relu.head.weight.std().item() == pytest.approx((2 / 510) ** 0.5, rel=0.05)


def test_recurrent_weights_are_a_rotation():
    weight = RowRNN(8, 10).recurrent.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(32), atol=1e-5, rtol=0)


def test_rows_are_read_from_all_channels_in_order():
    """The last row alone decides the state of an RNN whose recurrent weights are zero."""
    model = RowRNN(2 * 8, 10)
    torch.nn.init.zeros_(model.recurrent.weight)
    x = images(c=2)
    changed = x.clone()
    changed[:, :, :-1] = 0
    torch.testing.assert_close(model(x), model(changed))
    changed[:, 1, -1] = 0
    assert not torch.allclose(model(x), model(changed))


def test_attention_equals_torchs():
    attention = RowTransformer(8, 8, 10, width=32, heads=4).blocks[0].attention
    x = images().squeeze(1).repeat(1, 1, 4)
    heads = [
        layer(x).view(6, 8, 4, 8).transpose(1, 2)
        for layer in (attention.query, attention.key, attention.value)
    ]
    expected = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(6, 8, 32)
    torch.testing.assert_close(attention(x), attention.out(expected))


def test_an_activation_may_be_a_name_or_a_function():
    for name, function in ACTIVATIONS.items():
        named, given = MLP(64, 10, activation=name), MLP(64, 10, activation=function)
        # a function is initialised for as ReLU is
        given.load_state_dict(named.state_dict())
        assert torch.equal(named(images()), given(images()))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP(64, 10)(images(size=9)), "inputs=81"),
        (lambda: RowTransformer(8, 8, 10)(images(size=9)), "row_size=9"),
        (lambda: RowTransformer(8, 9, 10)(images()), "rows=8"),
        (lambda: RowRNN(8, 10)(images(c=3)), "row_size=24"),
    ],
)
def test_mistakes_say_what_to_do(build, message):
    with pytest.raises(ValueError, match=message):
        build()
