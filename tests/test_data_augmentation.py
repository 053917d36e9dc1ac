"""Data augmentation: equal to torchvision and SciPy, edge cases, invariants, use in
training.
"""

import functools

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from dlcourse import data_augmentation as da
from dlcourse.exercises.data_augmentation import EXERCISES
from dlcourse.lab.evaluation import evaluate
from dlcourse.lab.launching import launch
from dlcourse.lab.models import MLP
from dlcourse.lab.training import fit, use_one_thread

use_one_thread()
SIZES = [(1, 1, 8, 8), (5, 3, 9, 7), (4, 1, 1, 6), (3, 3, 32, 32)]
GEOMETRY = {
    "hflip": da.RandomHorizontalFlip(),
    "vflip": da.RandomVerticalFlip(),
    "crop": da.RandomCrop(padding=2, fill=0.5),
    "rotate": da.RandomRotation(30),
    "affine": da.RandomAffine(20, (0.2, 0.1), (0.8, 1.2), 10, fill=0.2),
    "erase": da.RandomErasing(p=0.7),
    "gauss": da.GaussianNoise((0.0, 0.2), clip=False),
    "salt": da.SaltAndPepper((0.1, 0.4)),
}
COLOUR = {
    "jitter": da.ColorJitter(0.4, (0.5, 1.5), 0.4),
    "trivial": da.TrivialAugment(),
    "compose": da.Compose([da.RandomCrop(padding=1), da.ColorJitter(0.2)]),
}
EVERY = GEOMETRY | COLOUR


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=seeded(seed), dtype=dtype)


def each(function, images, *numbers):
    """Call a function of one image and its own numbers on every image."""
    rows = zip(images, *(n.tolist() for n in numbers), strict=True)
    return torch.stack([function(image, *row) for image, *row in rows])


def spread(n, low, high, seed):
    return low + (high - low) * torch.rand(n, generator=seeded(seed), dtype=torch.float64)


# --------------------------------------------------------------------------- equal to the peers


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_flips_and_crops_equal_torchvision(shape, seed):
    images = pictures(shape, seed)
    flipped = torch.rand(shape[0], generator=seeded(seed)) < 0.5
    for ours, theirs in (
        (da.horizontal_flip, tv.horizontal_flip),
        (da.vertical_flip, tv.vertical_flip),
    ):
        want = each(lambda x, yes, flip=theirs: flip(x) if yes else x, images, flipped)
        assert torch.equal(ours(images, flipped), want)
    padded = da.pad(images, 3, 0.25)
    assert torch.equal(padded, tv.pad(images, 3, fill=0.25))
    n, _, h, w = padded.shape
    size = (min(4, h), min(5, w))
    top = torch.randint(h - size[0] + 1, (n,), generator=seeded(seed))
    left = torch.randint(w - size[1] + 1, (n,), generator=seeded(seed + 9))
    want = each(lambda x, t, k: tv.crop(x, t, k, *size), padded, top, left)
    assert torch.equal(da.crop(padded, top, left, size), want)
    # and not at the start
    strided = padded.transpose(2, 3).contiguous().transpose(2, 3)[1:]
    assert torch.equal(da.crop(strided, top[1:], left[1:], size), want[1:])
    assert torch.equal(da.crop(padded[1:], top[1:], left[1:], size), want[1:])


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("shape", SIZES[1:])
@pytest.mark.parametrize("seed", range(4))
def test_affine_equals_torchvision(shape, seed, interpolation):
    images, n = pictures(shape, seed), shape[0]
    angle, scale = spread(n, -180, 180, seed), spread(n, 0.5, 1.5, seed + 1)
    right, down = (torch.randint(-3, 4, (n,), generator=seeded(seed + k)) for k in (2, 3))
    shears = [spread(n, -40, 40, seed + k) for k in (4, 5)]
    ours = da.affine(
        images, angle, (right, down), scale, shears, interpolation=interpolation
    )
    mode = InterpolationMode(interpolation)
    want = each(
        lambda x, a, r, d, s, p, q: tv.affine(x, a, [r, d], s, [p, q], interpolation=mode),
        images, angle, right, down, scale, *shears,
    )  # fmt: skip
    assert (ours - want).abs().max() < 1e-9


def test_rotation_equals_torchvision():
    images = pictures((6, 3, 8, 8))
    angle = spread(6, -90, 90, 0)
    want = each(lambda x, a: tv.rotate(x, a, InterpolationMode.BILINEAR), images, angle)
    # theirs is counter-clockwise
    assert (da.affine(images, -angle) - want).abs().max() < 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_shifts_equal_scipy(seed):
    images = pictures((5, 1, 7, 9), seed)
    right, down = spread(5, -3, 3, seed), spread(5, -3, 3, seed + 1)
    shift = functools.partial(scipy.ndimage.shift, mode="grid-constant", prefilter=False)
    for move, order, ours in (
        ((right, down), 1, "bilinear"),
        ((right.round(), down.round()), 0, "nearest"),
    ):
        got = da.affine(images, translate=move, fill=0.3, interpolation=ours)
        want = [
            shift(image[0].numpy(), (y, x), order=order, cval=0.3)
            for image, x, y in zip(images, *(m.tolist() for m in move), strict=True)
        ]
        assert np.abs(got[:, 0].numpy() - np.stack(want)).max() < 1e-9
    top, left = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 2, 1, 0, 2])
    got = da.crop(da.pad(images, 1, 0.3), top, left, (7, 9))
    for image, row, t, k in zip(got, images, top, left, strict=True):
        want = shift(row[0].numpy(), (1 - int(t), 1 - int(k)), order=0, cval=0.3)
        assert np.array_equal(image[0].numpy(), want)


@pytest.mark.parametrize(
    "adjust",
    [da.adjust_brightness, da.adjust_contrast, da.adjust_saturation, da.adjust_sharpness],
)
@pytest.mark.parametrize("shape", SIZES)
def test_colour_equals_torchvision(adjust, shape):
    images, factor = pictures(shape), spread(shape[0], 0, 2, 1)
    want = each(getattr(tv, adjust.__name__), images, factor)
    assert (adjust(images, factor) - want).abs().max() < 1e-9


@pytest.mark.parametrize("shape", [*SIZES, (2, 3, 40, 40)])
def test_tone_equals_torchvision(shape):
    images = pictures(shape).float() ** 2
    images[0] = 0.5  # one value
    bits, threshold = torch.arange(shape[0]) % 8 + 1, spread(shape[0], 0, 1, 0)
    assert torch.allclose(da.posterize(images, bits), each(tv.posterize, images, bits))
    assert torch.equal(
        da.solarize(images, threshold), each(tv.solarize, images, threshold)
    )
    assert torch.allclose(da.autocontrast(images), tv.autocontrast(images))
    assert torch.allclose(da.equalize(images), tv.equalize(images))


def test_erase_equals_torchvision():
    images = pictures((4, 3, 8, 6))
    top, left, height, width = (torch.tensor(v) for v in ([0, 1, 5, 2], [0, 2, 3, 1], [8, 2, 3, 0],
                                                          [6, 3, 1, 4]))  # fmt: skip
    value = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    want = each(
        lambda x, t, k, h, w: tv.erase(x, t, k, h, w, value.view(3, 1, 1)),
        images, top, left, height, width,
    )  # fmt: skip
    assert torch.equal(da.erase(images, top, left, height, width, value), want)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.77, 1.0])
def test_mixing_equals_torchvision(lam, monkeypatch):
    images, labels = pictures((6, 3, 8, 8), dtype=torch.float32), torch.arange(6) % 4
    weight = torch.full((6,), lam)
    theirs = v2.MixUp(num_classes=4)
    monkeypatch.setattr(theirs, "make_params", lambda inputs: {"lam": lam})
    for ours, want in zip(da.mixup(images, labels, 4, weight=weight), theirs(images, labels),
                          strict=True):  # fmt: skip
        assert torch.allclose(ours, want, atol=1e-6)
    theirs = v2.CutMix(num_classes=4)
    half = int(0.5 * np.sqrt(1 - lam) * 8)
    box = [max(3 - half, 0), max(5 - half, 0), min(3 + half, 8), min(5 + half, 8)]  # x, y
    kept = 1 - (box[2] - box[0]) * (box[3] - box[1]) / 64
    monkeypatch.setattr(
        theirs, "make_params", lambda inputs: {"box": tuple(box), "lam_adjusted": kept}
    )
    center = torch.tensor([[5.0, 3.0]]).expand(6, 2)
    got = da.cutmix(images, labels, 4, weight=weight, center=center)
    for ours, want in zip(got, theirs(images, labels), strict=True):
        assert torch.allclose(ours, want, atol=1e-6)


def test_trivial_augment_has_torchvisions_space():
    theirs = v2.TrivialAugmentWide._AUGMENTATION_SPACE
    assert set(da.TRIVIAL_OPS) == set(theirs)
    for name, (_, strongest, signed) in da.TRIVIAL_OPS.items():
        magnitudes, their_sign = theirs[name]
        values = magnitudes(31, 32, 32)
        assert signed == their_sign
        if values is not None:
            reach = values.float().max() - values.float().min()
            assert reach == pytest.approx(strongest * (32 if "Translate" in name else 1))


@pytest.mark.parametrize("name", list(da.TRIVIAL_OPS))
def test_trivial_operations_equal_torchvision(name):
    images = pictures((7, 3, 16, 16), dtype=torch.float32)
    apply, strongest, signed = da.TRIVIAL_OPS[name]
    strength = torch.linspace(-1 if signed else 0, 1, 7) * strongest
    their = v2.TrivialAugmentWide(interpolation="bilinear")
    magnitude = strength
    if name == "Posterize":
        strength = strength.round()
        magnitude = 8 - strength
    if name == "Solarize":
        magnitude = 1 - strength
    if "Translate" in name:
        magnitude = (strength * 16).round()
    if "Shear" in name:  # theirs shears about the corner, ours about the centre
        axis = name[-1] == "Y"
        want = each(
            lambda x, s: tv.affine(
                x, 0, [0, 0], 1, [0.0, s] if axis else [s, 0.0], InterpolationMode.BILINEAR
            ),
            images, torch.rad2deg(torch.atan(strength)),
        )  # fmt: skip
    else:
        convert = {"Posterize": int, "Translate": int}.get(name.rstrip("XY"), float)
        want = each(
            lambda x, s: their._apply_image_or_video_transform(
                x, name, convert(s), InterpolationMode.BILINEAR, {}
            ),
            images, magnitude,
        )  # fmt: skip
    assert (apply(images, strength, 0.0) - want).abs().max() < 1e-4


# --------------------------------------------------------------------------- one decision a sample


def test_every_crop_of_torchvision_and_no_other_is_drawn():
    image = torch.arange(1.0, 10).view(1, 1, 3, 3)
    seen = {tuple(row.flatten().tolist()) for row in da.RandomCrop(padding=1)(
        image.expand(900, -1, -1, -1), seeded())}  # fmt: skip
    padded = tv.pad(image, 1)
    all_crops = {
        tuple(tv.crop(padded, t, k, 3, 3).flatten().tolist())
        for t in range(3)
        for k in range(3)
    }
    assert seen == all_crops
    counts = torch.unique(
        da.RandomCrop(padding=1)(image.expand(9000, -1, -1, -1), seeded(1)).flatten(1), dim=0,
        return_counts=True,
    )[1]  # fmt: skip
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("name", EVERY)
def test_images_of_a_batch_take_decisions_of_their_own(name):
    images = pictures((1, 3, 8, 8), dtype=torch.float32).expand(64, -1, -1, -1)
    result = EVERY[name](images, seeded())
    assert len(torch.unique(result.flatten(1), dim=0)) >= 2


@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_probabilities(p):
    images = pictures((4000, 1, 1, 4), dtype=torch.float32)
    for transform in (da.RandomHorizontalFlip(p), da.RandomErasing(p, value=-1.0)):
        changed = (
            (transform(images, seeded()) != images)
            .flatten(1)
            .any(1)
            .float()
            .mean()
            .item()
        )
        assert changed == pytest.approx(p, abs=4 * (p * (1 - p) / 4000) ** 0.5)


def test_noise_statistics():
    grey = torch.full((50, 1, 40, 40), 0.5)
    noisy = da.GaussianNoise(0.1, clip=False)(grey, seeded())
    assert (noisy - grey).std().item() == pytest.approx(0.1, rel=0.02)
    assert (noisy - grey).mean().item() == pytest.approx(0, abs=0.002)
    wide = da.GaussianNoise(2.0)(grey, seeded())
    assert wide.min() == 0 and wide.max() == 1
    salted = da.SaltAndPepper(0.2, low=-1.0, high=2.0)(grey, seeded())
    for value, share in ((-1.0, 0.1), (2.0, 0.1), (0.5, 0.8)):
        assert (salted == value).float().mean().item() == pytest.approx(share, abs=0.005)
    colour = da.SaltAndPepper(0.3)(torch.full((4, 3, 9, 9), 0.5), seeded())
    assert torch.equal(colour[:, 0], colour[:, 1]) and torch.equal(
        colour[:, 0], colour[:, 2]
    )


@pytest.mark.parametrize("alpha", [0.05, 0.4, 1.0, 8.0])
def test_beta_weights_are_beta(alpha):
    weights = da.beta_weights(torch.empty(4000, 0), alpha, seeded()).double().numpy()
    assert np.isfinite(weights).all() and weights.min() >= 0 and weights.max() <= 1
    inner = np.clip(weights, 1e-7, 1 - 1e-7)  # float32 rounds the ends for small alpha
    expected = np.clip(
        scipy.stats.beta(alpha, alpha).rvs(4000, random_state=0), 1e-7, 1 - 1e-7
    )
    assert scipy.stats.ks_2samp(inner, expected).pvalue > 1e-3


def test_erased_area_and_place():
    images = torch.zeros(3000, 1, 16, 16)
    area = da.RandomErasing(1.0, (0.1, 0.3), (0.5, 2.0), 1.0)(images, seeded()).mean(
        (1, 2, 3)
    )
    assert 0.08 < area.min() and area.max() < 0.33
    assert area.mean().item() == pytest.approx(0.2, abs=0.01)
    rows = da.RandomErasing(1.0, (0.1, 0.3), (0.5, 2.0), 1.0)(images, seeded(1)).mean(
        (0, 1)
    )
    assert (rows - rows.flip(0)).abs().max() < 0.05 and rows.min() > 0


def test_trivial_augment_draws_signs_and_all_strengths():
    images = torch.full((3000, 1, 2, 2), 0.25)
    bright = da.TrivialAugment(["Brightness"])(images, seeded())[:, 0, 0, 0]
    levels = torch.linspace(0, 0.99, 31)
    wanted = 0.25 * torch.cat([1 - levels, 1 + levels]).unique()
    assert torch.allclose(bright.unique(), wanted.sort().values, atol=1e-5)
    assert (bright < 0.25).float().mean().item() == pytest.approx(30 / 62, abs=0.05)
    several = da.TrivialAugment(["Identity", "Brightness", "Solarize"])(images, seeded())
    assert (several == images).all((1, 2, 3)).float().mean() > 1 / 3


# --------------------------------------------------------------------------- what is drawn


def draws(n, seed, *ranges):
    """Return one number an image for each range, drawn in this order."""
    generator = seeded(seed)
    return [
        low + (high - low) * torch.rand(n, generator=generator) for low, high in ranges
    ]


@pytest.mark.parametrize("seed", range(3))
def test_flips_are_those_of_uniform_draws(seed):
    images = pictures((20, 1, 3, 4), seed)
    (draw,) = draws(20, seed, (0, 1))
    for random, fixed in (
        (da.RandomHorizontalFlip, da.horizontal_flip),
        (da.RandomVerticalFlip, da.vertical_flip),
    ):
        for p, given in ((0.5, ()), (0.2, (0.2,))):
            found = random(*given)(images, seeded(seed))
            assert torch.equal(found, fixed(images, draw < p))


@pytest.mark.parametrize("seed", range(3))
def test_an_affine_draw_is_affine_of_what_was_drawn(seed):
    images = pictures((9, 3, 8, 10), seed)
    angle, right, down, scale, shear = draws(
        9, seed, (-20, 20), (-0.2, 0.2), (-0.1, 0.1), (0.8, 1.2), (-10, 10)
    )
    move = (right * 10).round(), (down * 8).round()
    want = da.affine(images, angle, move, scale, (shear, 0.0), 0.2, "nearest")
    random = da.RandomAffine(20, (0.2, 0.1), (0.8, 1.2), 10, 0.2, "nearest")
    assert (random(images, seeded(seed)) - want).abs().max() < 1e-5
    (angle,) = draws(9, seed, (5, 30))
    for fill, mode in ((0.0, "bilinear"), (0.3, "nearest")):
        want = da.affine(images, angle, fill=fill, interpolation=mode)
        found = da.RandomRotation((5, 30), fill, mode)(images, seeded(seed))
        assert (found - want).abs().max() < 1e-5
    still = da.RandomAffine(0)(images, seeded(seed))
    assert (still - images).abs().max() < 1e-5
    assert (da.RandomRotation((5, 30))(images, seeded(seed)) - da.affine(images, angle)
            ).abs().max() < 1e-5  # fmt: skip


@pytest.mark.parametrize("size", [None, (5, 3)])
@pytest.mark.parametrize("padding", [0, 2])
def test_a_crop_is_the_window_that_was_drawn(size, padding):
    images = pictures((30, 2, 6, 7))
    height, width = size or (6, 7)
    padded = da.pad(images, padding, 0.5)
    place = torch.rand(30, 2, generator=seeded(1))
    top = (place[:, 0] * (6 + 2 * padding - height + 1)).long()
    left = (place[:, 1] * (7 + 2 * padding - width + 1)).long()
    want = da.crop(padded, top, left, (height, width))
    assert torch.equal(da.RandomCrop(size, padding, 0.5)(images, seeded(1)), want)
    assert torch.equal(da.RandomCrop()(images), images)


@pytest.mark.parametrize("seed", range(3))
def test_an_erased_rectangle_has_the_area_and_the_ratio_drawn(seed):
    images = pictures((40, 3, 12, 20), seed)
    generator = seeded(seed)
    area = (0.02 + 0.31 * torch.rand(40, generator=generator)) * 12 * 20
    ratio = 0.3 * 11.0 ** torch.rand(40, generator=generator)
    place = torch.rand(40, 2, generator=generator)
    height = (area * ratio).sqrt().round().clamp(1, 12)
    width = (area / ratio).sqrt().round().clamp(1, 20)
    top = (place[:, 0] * (13 - height)).floor()
    left = (place[:, 1] * (21 - width)).floor()
    chosen = torch.rand(40, generator=generator) < 0.5
    value = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    erased = da.erase(images, top, left, height, width, value)
    want = torch.where(chosen.view(-1, 1, 1, 1), erased, images)
    assert torch.equal(da.RandomErasing(value=value)(images, seeded(seed)), want)
    assert 10 < chosen.sum() < 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_noise_is_what_was_drawn(seed, dtype):
    images = pictures((20, 2, 4, 5), seed, dtype)
    generator = seeded(seed)
    noise = torch.randn(images.shape, generator=generator, dtype=dtype)
    sigma = 0.1 + 0.2 * torch.rand(20, generator=generator).view(-1, 1, 1, 1)
    found = da.GaussianNoise((0.1, 0.3))(images, seeded(seed))
    assert torch.allclose(found, (images + sigma * noise).clamp(0, 1), atol=1e-6)
    found = da.GaussianNoise(clip=False)(images, seeded(seed))
    assert torch.allclose(found, images + 0.1 * noise, atol=1e-6)

    generator = seeded(seed)
    draw = torch.rand(20, 1, 4, 5, generator=generator)
    amount = 0.2 + 0.3 * torch.rand(20, generator=generator).view(-1, 1, 1, 1)
    want = torch.where(draw < amount, 0.0, images)
    want = torch.where(draw < amount / 2, 1.0, want)
    assert torch.equal(da.SaltAndPepper((0.2, 0.5))(images, seeded(seed)), want)
    few = da.SaltAndPepper()(images, seeded(seed)) != images
    assert torch.equal(few[:, :1], draw < 0.05)


def test_colour_is_changed_by_the_factors_drawn():
    images = pictures((9, 3, 6, 6), dtype=torch.float32)
    factors = draws(9, 0, (0.6, 1.4), (0.5, 1.5), (0.0, 3.0))
    want = da.adjust_brightness(images, factors[0])
    want = da.adjust_contrast(want, factors[1])
    want = da.adjust_saturation(want, factors[2])
    jitter = da.ColorJitter(0.4, (0.5, 1.5), 2)
    assert torch.allclose(jitter(images, seeded()), want, atol=1e-6)
    only = da.ColorJitter(contrast=0.5)(images, seeded())
    (factor,) = draws(9, 0, (0.5, 1.5))
    assert torch.allclose(only, da.adjust_contrast(images, factor), atol=1e-6)
    # what changes nothing draws nothing
    state = seeded()
    assert torch.equal(da.ColorJitter()(images, state), images)
    assert torch.equal(state.get_state(), seeded().get_state())


@pytest.mark.parametrize("draw", [0.0, 0.5])
def test_a_draw_at_the_probability_changes_nothing(monkeypatch, draw):
    """So with p = 0 nothing is changed, also where the draw is 0, as one in 2**24 is."""
    for module in (da.geometry, da.noise):
        monkeypatch.setattr(
            module, "_rand", lambda x, _, *shape: torch.full((len(x), *shape), draw)
        )
    images = pictures((3, 1, 4, 4), dtype=torch.float32)
    for transform in (
        da.RandomHorizontalFlip(draw),
        da.RandomVerticalFlip(draw),
        da.RandomErasing(draw),
        da.SaltAndPepper(draw),
    ):
        assert torch.equal(transform(images), images)
    changed = da.SaltAndPepper(2 * draw, low=3.0, high=4.0)(images)
    assert (changed == (3.0 if draw else images)).all()


@pytest.mark.parametrize(
    "name", ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"]
)
def test_new_pixels_of_trivial_operations_are_the_fill(name):
    apply, strongest, _ = da.TRIVIAL_OPS[name]
    strength = torch.tensor([0.3, -0.4]) * strongest
    for fill in (0.0, 0.25):
        moved = apply(torch.ones(2, 1, 8, 8), strength, fill)
        assert moved.amin((1, 2, 3)).tolist() == pytest.approx([fill] * 2, abs=1e-6)
        assert moved.amax((1, 2, 3)).tolist() == pytest.approx([1.0] * 2)


@pytest.mark.parametrize("bins", [2, 31])
def test_a_trivial_operation_has_the_strength_and_sign_drawn(bins):
    images = pictures((60, 3, 8, 8), dtype=torch.float32)
    names = ["Rotate", "Solarize", "TranslateX"]
    draw = torch.rand(60, 3, generator=seeded(2))
    level = (draw[:, 1] * bins).floor() / (bins - 1)
    sign = torch.where(draw[:, 2] < 0.5, -1.0, 1.0)
    found = da.TrivialAugment(names, bins, 0.4)(images, seeded(2))
    for number, name in enumerate(names):
        apply, strongest, signed = da.TRIVIAL_OPS[name]
        rows = (draw[:, 0] * 3).long() == number
        strength = level * strongest * (sign if signed else 1)
        want = apply(images[rows], strength[rows], 0.4)
        assert rows.sum() > 9 and torch.allclose(found[rows], want, atol=1e-6)
    everything = da.TrivialAugment()
    given = da.TrivialAugment(list(da.TRIVIAL_OPS), 31, 0.0)
    assert torch.equal(everything(images, seeded(2)), given(images, seeded(2)))


def test_mixing_uses_the_weights_and_centres_drawn():
    images, labels = pictures((9, 1, 8, 10), dtype=torch.float32), torch.arange(9) % 3
    weight = da.beta_weights(images, 0.5, seeded())
    want = da.mixup(images, labels, 3, weight=weight)
    for a, b in zip(da.mixup(images, labels, 3, 0.5, seeded()), want, strict=True):
        assert torch.equal(a, b)
    for mix in (da.mixup, da.cutmix):
        left_out = mix(images, labels, 3, generator=seeded())
        given = mix(images, labels, 3, 1.0, seeded())
        assert all(torch.equal(a, b) for a, b in zip(left_out, given, strict=True))
    generator = seeded()
    weight = da.beta_weights(images, 0.5, generator)
    center = (torch.rand(9, 2, generator=generator) * torch.tensor([8, 10])).floor()
    want = da.cutmix(images, labels, 3, weight=weight, center=center)
    for a, b in zip(da.cutmix(images, labels, 3, 0.5, seeded()), want, strict=True):
        assert torch.equal(a, b)


def test_a_pasted_rectangle_is_cut_off_at_each_edge():
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(-1, 1, 8, 12).contiguous()
    center = torch.tensor([[4.0, 6.0], [0.0, 0.0], [7.0, 11.0], [0.0, 11.0], [4.0, 6.0]])
    weight = torch.tensor([0.75, 0.75, 0.75, 0.75, 0.0])
    mixed, targets = da.cutmix(images, torch.arange(5), 5, weight=weight, center=center)
    pasted = (mixed != images)[:, 0]
    rows, columns = pasted.any(2).sum(1), pasted.any(1).sum(1)
    assert rows.tolist() == [4, 2, 3, 2, 8] and columns.tolist() == [6, 3, 4, 4, 12]
    assert pasted[1, 0, 0] and pasted[2, 7, 11] and pasted[3, 0, 11]
    assert targets.diagonal().tolist() == pytest.approx(
        [1 - area / 96 for area in (24, 6, 12, 8, 96)]
    )


def test_views_are_averaged_in_evaluation_mode_and_the_mode_comes_back():
    model = nn.Sequential(nn.Dropout(0.9), nn.Flatten(), nn.Linear(4, 3))
    images = pictures((5, 1, 2, 2), dtype=torch.float32)
    views = [lambda x: x, lambda x: x.flip(-1)]
    with torch.no_grad():
        want = [model[2](view(images).flatten(1)).softmax(1) for view in views]
    for training in (True, False):
        model.train(training)
        found = da.predict_views(model, images, views)
        assert torch.allclose(found, sum(want) / 2, atol=1e-6)
        assert model.training == training and not found.requires_grad


# --------------------------------------------------------------------------- edge cases


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "shape", [(0, 3, 8, 8), (1, 1, 8, 8), (1, 3, 5, 9), (4, 1, 8, 8)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_types_and_inputs_stay(name, shape, dtype):
    images = pictures(shape, dtype=dtype)
    before = images.clone()
    result = EVERY[name](images, seeded())
    assert result.shape == images.shape and result.dtype == dtype
    assert torch.equal(images, before) and torch.isfinite(result).all()
    assert torch.equal(EVERY[name](images, seeded()), result), (
        "the same generator repeats"
    )
    torch.manual_seed(3)
    once = EVERY[name](images)
    torch.manual_seed(3)
    assert torch.equal(EVERY[name](images), once), "without one, torch's global generator"


@pytest.mark.parametrize("name", COLOUR)
def test_colour_stays_in_range(name):
    result = COLOUR[name](pictures((200, 3, 8, 8), dtype=torch.float32), seeded())
    assert result.min() >= 0 and result.max() <= 1


@pytest.mark.parametrize("mix", [da.mixup, da.cutmix])
def test_mixing_edge_cases(mix):
    for n in (0, 1, 5):
        images, labels = pictures((n, 3, 8, 8), dtype=torch.float32), torch.arange(n) % 3
        before = images.clone()
        mixed, targets = mix(images, labels, 3, generator=seeded())
        assert mixed.shape == images.shape and targets.shape == (n, 3)
        assert torch.equal(images, before)
        assert torch.allclose(targets.sum(1), torch.ones(n))
        if n == 1:
            assert torch.allclose(mixed, images)
            assert torch.equal(targets, F.one_hot(labels, 3).float())
        soft = F.one_hot(labels, 3).float()
        again = mix(images, soft, 3, generator=seeded())
        assert torch.equal(again[0], mixed) and torch.equal(again[1], targets)


def test_cutmix_weighs_by_the_pixels_that_stayed():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(-1, 1, 9, 9).contiguous()
    mixed, targets = da.cutmix(images, torch.arange(6), 6, generator=seeded())
    stayed = (mixed == images).float().mean((1, 2, 3))
    assert torch.allclose(targets.diagonal(), stayed)


def test_grey_images_have_no_saturation():
    grey = pictures((3, 1, 8, 8))
    assert torch.equal(da.adjust_saturation(grey, 0.3), grey)
    assert torch.equal(da.ColorJitter(saturation=0.9)(grey, seeded()), grey)


def test_identities():
    images = pictures((3, 3, 8, 8))
    assert (da.affine(images) - images).abs().max() < 1e-12
    moved = da.affine(images, translate=(2, -1))
    assert (moved[..., :-1, 2:] - images[..., 1:, :-2]).abs().max() < 1e-12
    assert torch.equal(da.Compose([])(images), images)


def test_fill_per_channel_is_what_normalising_makes_of_black():
    images, mean, std = (
        pictures((4, 3, 8, 8)),
        torch.tensor([0.2, 0.4, 0.6]),
        torch.ones(3) / 2,
    )

    def normalize(images):
        return tv.normalize(images, mean.tolist(), std.tolist())

    first = normalize(da.RandomCrop(padding=2)(images, seeded()))
    black = (0 - mean) / std
    last = da.RandomCrop(padding=2, fill=black)(normalize(images), seeded())
    assert torch.allclose(first, last, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_affine_keeps_its_grid_in_float32(dtype):
    images = pictures((2, 1, 64, 64), dtype=torch.float32)
    want = da.affine(images.to(dtype).float(), 7.0)
    assert (da.affine(images.to(dtype), 7.0).float() - want).abs().max() < 0.01
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(da.affine(images, 7.0), da.affine(images.clone(), 7.0))
        assert (
            da.affine(images, 7.0) - da.affine(images.double(), 7.0)
        ).abs().max() < 1e-4


BAD = {
    "one image": (
        lambda: da.RandomHorizontalFlip()(torch.zeros(1, 8, 8)),
        r"images\[None\]",
    ),
    "bytes": (lambda: da.RandomCrop()(torch.zeros(1, 1, 8, 8).byte()), "divide by 255"),
    "p": (lambda: da.RandomHorizontalFlip(1.5), "p=1.5"),
    "too small": (lambda: da.RandomCrop((9, 9))(torch.zeros(2, 1, 8, 8)), "pad first"),
    "crop place": (
        lambda: da.crop(
            torch.zeros(1, 1, 4, 4), torch.tensor([-1]), torch.tensor([0]), (2, 2)
        ),
        "from 0 to 2",
    ),
    "window": (
        lambda: da.crop(
            torch.zeros(1, 1, 4, 5), torch.tensor([0]), torch.tensor([0]), (5, 0)
        ),
        r"a window of \(5, 0\) does not fit into 4 x 5",
    ),
    "top": (
        lambda: da.crop(
            torch.zeros(1, 1, 4, 5), torch.tensor([3]), torch.tensor([0]), (2, 2)
        ),
        r"top must be \(1,\) whole numbers from 0 to 2",
    ),
    "left": (
        lambda: da.crop(
            torch.zeros(1, 1, 4, 5), torch.tensor([2]), torch.tensor([4]), (2, 2)
        ),
        r"left must be \(1,\) whole numbers from 0 to 3",
    ),
    "too few places": (
        lambda: da.crop(
            torch.zeros(2, 1, 4, 5), torch.tensor([0]), torch.tensor([0, 0]), (2, 2)
        ),
        r"top must be \(2,\)",
    ),
    "empty window": (lambda: da.RandomCrop((0, 3)), r"size=\(0, 3\), padding=0"),
    "shape": (lambda: da.pad(torch.zeros(1, 8, 8), 1), r"not \(1, 8, 8\)"),
    "whole": (lambda: da.pad(torch.zeros(1, 1, 2, 2).long(), 1), "are torch.int64"),
    "below": (
        lambda: da.adjust_contrast(torch.full((1, 1, 2, 2), -0.25), 1.0),
        "from -0.25 to -0.25",
    ),
    "above": (
        lambda: da.equalize(torch.tensor([0.5, 1.25]).view(1, 1, 1, 2)),
        "from 0.5 to 1.25",
    ),
    "brightness": (
        lambda: da.adjust_brightness(torch.zeros(2, 1, 2, 2), torch.ones(3)),
        r"brightness has shape \(3,\) for 2 images",
    ),
    "contrast": (
        lambda: da.adjust_contrast(torch.zeros(1, 1, 2, 2), -0.5),
        "contrast factor below 0",
    ),
    "saturation": (
        lambda: da.adjust_saturation(torch.zeros(1, 3, 2, 2), -0.5),
        "saturation factor below 0",
    ),
    "sharpness": (
        lambda: da.adjust_sharpness(torch.zeros(1, 3, 3, 3), -0.5),
        "sharpness factor below 0",
    ),
    "bits": (
        lambda: da.posterize(torch.zeros(1, 1, 2, 2), torch.ones(2)),
        "bits has shape",
    ),
    "threshold": (
        lambda: da.solarize(torch.zeros(1, 1, 2, 2), torch.ones(2)),
        "threshold has shape",
    ),
    "flipped": (
        lambda: da.vertical_flip(torch.zeros(1, 1, 2, 2), torch.ones(2)),
        "flipped has shape",
    ),
    "flipped one by one": (
        lambda: da.horizontal_flip(torch.zeros(1, 1, 2, 2), torch.ones(1, 1)),
        r"flipped has shape \(1, 1\)",
    ),
    "jitter brightness": (
        lambda: da.ColorJitter(brightness=(-1, 1)),
        r"brightness=\(-1.0, 1.0\): .* of at least 0 in this order",
    ),
    "jitter contrast": (lambda: da.ColorJitter(contrast=(1, 2, 3)), "contrast="),
    "jitter saturation": (lambda: da.ColorJitter(saturation=(2, 1)), "saturation="),
    "erasing p": (lambda: da.RandomErasing(-0.5), "p=-0.5"),
    "erasing scale": (lambda: da.RandomErasing(scale=(-1, 1)), r"scale=\(-1.0, 1.0\)"),
    "erasing ratio": (lambda: da.RandomErasing(ratio=(0, 1)), r"ratio=\(0.0, 1.0\)"),
    "fills": (
        lambda: da.pad(torch.zeros(1, 3, 4, 4), 1, [[0.0, 1.0, 2.0]]),
        "fill has 3 values for 3",
    ),
    "angle": (
        lambda: da.affine(torch.zeros(3, 1, 4, 4), torch.ones(2)),
        r"angle has shape \(2,\) for 3 images",
    ),
    "translate x": (
        lambda: da.affine(torch.zeros(3, 1, 4, 4), translate=(torch.ones(2), 0)),
        "translate x has",
    ),
    "translate y": (
        lambda: da.affine(torch.zeros(3, 1, 4, 4), translate=(0, torch.ones(2))),
        "translate y has",
    ),
    "scales": (
        lambda: da.affine(torch.zeros(3, 1, 4, 4), scale=torch.ones(2)),
        "scale has",
    ),
    "shear x": (
        lambda: da.affine(torch.zeros(3, 1, 4, 4), shear=(torch.ones(2), 0)),
        "shear x has",
    ),
    "shear y": (
        lambda: da.affine(torch.zeros(3, 1, 4, 4), shear=(0, torch.ones(2))),
        "shear y has",
    ),
    "degrees of a range": (
        lambda: da.RandomAffine((3, 1)),
        r"degrees=\(3.0, 1.0\): give \(low, high\), two numbers in this order",
    ),
    "degrees below 0": (lambda: da.RandomAffine(-5.0), "degrees=-5.0"),
    "shear below 0": (lambda: da.RandomAffine(5, shear=-5), "^shear=-5"),
    "ratio of 0": (lambda: da.RandomErasing(ratio=(-1, 1)), "ratio=.* at least 1e-06"),
    "scale of a range": (lambda: da.RandomAffine(5, scale=(0, 1)), "scale="),
    "infinite": (lambda: da.GaussianNoise((0, np.inf)), "sigma="),
    "weights": (
        lambda: da.mixup(
            torch.zeros(2, 1, 2, 2), torch.zeros(2).long(), 2, weight=torch.ones(3)
        ),
        "weight has shape",
    ),
    "infinite alpha": (
        lambda: da.beta_weights(torch.zeros(1, 1, 2, 2), np.inf),
        "alpha=inf",
    ),
    "label shapes": (
        lambda: da.mixup(torch.zeros(2, 1, 2, 2), torch.zeros(3).long(), 4),
        r"labels are \(3, 4\): give \(2,\) class numbers, or shares \(2, 4\)",
    ),
    "bins": (lambda: da.TrivialAugment(bins=1), "bins=1: name some of Identity, ShearX"),
    "ops": (lambda: da.TrivialAugment([]), r"ops=\[\], bins=31"),
    "negative padding": (lambda: da.RandomCrop(padding=-1), "at least 0"),
    "pad": (lambda: da.pad(torch.zeros(1, 1, 4, 4), -1), "0 or more"),
    "normalised": (
        lambda: da.ColorJitter(0.1)(torch.full((1, 1, 2, 2), 2.0)),
        "normalising",
    ),
    "NaN": (lambda: da.ColorJitter(0.1)(torch.full((1, 1, 2, 2), torch.nan)), "needs"),
    "two channels": (lambda: da.TrivialAugment()(torch.zeros(1, 2, 4, 4)), "2 channels"),
    "negative factor": (
        lambda: da.adjust_contrast(torch.zeros(1, 1, 2, 2), -1.0),
        "below 0",
    ),
    "jitter": (lambda: da.ColorJitter(brightness=(2, 1)), "in this order"),
    "fill": (lambda: da.pad(torch.zeros(1, 3, 4, 4), 1, [0.0, 1.0]), "2 values for 3"),
    "scale": (lambda: da.affine(torch.zeros(1, 1, 4, 4), scale=0.0), "above 0"),
    "numbers": (
        lambda: da.affine(torch.zeros(3, 1, 4, 4), torch.ones(2)),
        "one for each",
    ),
    "mode": (
        lambda: da.affine(torch.zeros(1, 1, 4, 4), interpolation="cubic"),
        "bilinear",
    ),
    "degrees": (lambda: da.RandomRotation(-5), "0 or more"),
    "translate": (lambda: da.RandomAffine(0, (2, 0)), "translate=2"),
    "sigma": (lambda: da.GaussianNoise(-1.0), "sigma"),
    "amount": (lambda: da.SaltAndPepper(1.5), "amount=1.5"),
    "alpha": (
        lambda: da.mixup(torch.zeros(1, 1, 2, 2), torch.zeros(1).long(), 2, 0.0),
        "alpha",
    ),
    "labels": (
        lambda: da.mixup(torch.zeros(2, 1, 2, 2), torch.zeros(3).long(), 2),
        "labels are",
    ),
    "op": (lambda: da.TrivialAugment(["Spin"]), "Identity"),
    "views": (lambda: da.predict_views(nn.Identity(), torch.zeros(1, 2), []), "identity"),
    "copies": (
        lambda: da.expand(torch.zeros(1, 1, 2, 2), torch.zeros(1), da.RandomCrop(), 0),
        "copies=0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_says_what_to_do(name):
    call, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        call()


# --------------------------------------------------------------------------- in training


def small_fit(transform=None, steps=20, **more):
    images, labels = pictures((40, 1, 4, 4), dtype=torch.float32), torch.arange(40) % 3
    model = MLP(16, 3, width=8, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"steps": steps, "batch_size": 16, "cpu": True, "progress": False} | more
    history = fit(model, (images, labels), optimizer, transform=transform, **settings)
    return history.loss, model, (images, labels)


def mixing():
    return functools.partial(da.mixup, num_classes=3)


def test_fit_transforms_training_and_never_evaluation():
    calls = []

    def transform(images, generator):
        calls.append(len(images))
        return images + 100

    _, model, rows = small_fit(da.on_batches(transform), steps=5)
    assert len(calls) == 5
    assert evaluate(model, rows) == evaluate(model, rows) and len(calls) == 5


def test_fit_without_transform_equals_identity():
    assert small_fit(da.on_batches())[0] == small_fit()[0]


def test_mixup_before_accumulation_is_that_of_the_whole_batch():
    losses = [
        small_fit(
            da.on_batches(mix=mixing(), generator=seeded()), accumulation_steps=pieces
        )[0]
        for pieces in (1, 4)
    ]
    assert np.allclose(*losses, rtol=1e-5)


def test_a_run_from_the_global_generator_resumes_to_the_bit(tmp_path):
    transform = da.on_batches(da.RandomCrop(padding=1), mixing())
    torch.manual_seed(5)
    whole = small_fit(transform)[0]
    torch.manual_seed(5)
    small_fit(transform, steps=8, checkpoint=tmp_path / "a")
    torch.manual_seed(77)
    resumed = small_fit(transform, steps=20, checkpoint=tmp_path / "a", resume=True)[0]
    assert resumed == whole


def fit_on_each_process():
    import functools

    import torch

    from dlcourse import data_augmentation as da
    from dlcourse.lab.models import MLP
    from dlcourse.lab.training import fit

    inputs, model = torch.rand(64, 1, 9, 9), MLP(81, 4, width=16, seed=0)
    inputs = torch.linspace(0, 1, inputs.numel()).view_as(inputs)
    crop, mix = da.RandomCrop(padding=4), functools.partial(da.mixup, num_classes=4)
    transform = da.on_batches(crop, mix, torch.Generator().manual_seed(7))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = (inputs, torch.arange(64) % 4)
    return fit(
        model, rows, optimizer, steps=12, batch_size=16, transform=transform, cpu=True
    ).loss


def test_fit_on_two_processes_equals_one():
    first, second = launch(fit_on_each_process, processes=2)
    alone = fit_on_each_process()
    assert np.ptp(np.array([first, second, alone]), axis=0).max() < 1e-5


def test_expand():
    images, labels = pictures((3, 1, 4, 4)), torch.arange(3)
    more, names = da.expand(images, labels, da.RandomCrop(padding=1), 4, seeded())
    assert more.shape == (12, 1, 4, 4) and names.tolist() == [0, 1, 2] * 4
    assert torch.equal(more[:3], da.RandomCrop(padding=1)(images, seeded()))


def test_predict_views():
    model, images = MLP(16, 3, width=8, seed=0).train(), pictures((5, 1, 4, 4)).float()
    plain = da.predict_views(model, images, [lambda x: x])
    assert torch.allclose(plain, model(images).softmax(-1)) and model.training
    views = [lambda x: x, lambda x: x.flip(-1)]
    both = da.predict_views(model, images, views)
    mirrored = da.predict_views(model, images.flip(-1), views)
    assert torch.allclose(both, mirrored) and torch.allclose(both.sum(1), torch.ones(5))


def test_least_squares_on_noisy_copies_is_ridge_regression():
    """Noise of variance s^2 on n rows is an L2 penalty of n s^2, for the squared error."""
    draw, sigma = seeded(), 0.3
    x, y = pictures((40, 12)), pictures((40, 3), seed=1)
    penalty = len(x) * sigma**2 * torch.eye(12, dtype=torch.float64)
    ridge = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
    distances = []
    for copies in (10, 1000):
        gram = torch.zeros(12, 12, dtype=torch.float64)
        cross = torch.zeros(12, 3, dtype=torch.float64)
        for _ in range(copies):
            noise = torch.randn(x.shape, generator=draw, dtype=torch.float64)
            noisy = x + sigma * noise
            gram += noisy.T @ noisy
            cross += noisy.T @ y
        found = torch.linalg.solve(gram, cross)
        distances.append(float((found - ridge).norm() / ridge.norm()))
    assert distances[1] < 0.03 and distances[0] > 3 * distances[1]


# --------------------------------------------------------------------------- edges (torchvision)


@pytest.mark.parametrize("degrees", [10.0, 20.0, 45.0])
@pytest.mark.parametrize("value", [0.0, 0.4])
def test_edges_fade_once_as_in_scipy_and_with_fill_none(degrees, value):
    ones = torch.ones(1, 5, 5, dtype=torch.float64)
    ours = da.affine(ones[None], -degrees, fill=value)[0, 0]
    want = scipy.ndimage.rotate(
        ones[0].numpy(), degrees, reshape=False, order=1, mode="grid-constant", cval=value
    )
    assert np.abs(ours.numpy() - want).max() < 1e-9
    if value == 0:
        once = tv.rotate(ones, degrees, InterpolationMode.BILINEAR, fill=None)[0]
        assert (ours - once).abs().max() < 1e-9


def test_torchvision_fades_edges_twice_with_any_fill_also_its_default():
    ones = torch.ones(1, 4, 4, dtype=torch.float64)
    once = tv.rotate(ones, 20, InterpolationMode.BILINEAR, fill=None)
    turned = v2.RandomRotation((20, 20), interpolation=InterpolationMode.BILINEAR)
    affine = v2.RandomAffine((-20, -20), interpolation=InterpolationMode.BILINEAR)
    for twice in (turned(ones), affine(ones)):
        assert (twice - once**2).abs().max() < 1e-6
    assert once[0, 0, 0].item() == pytest.approx(0.577, abs=5e-4)
    assert turned(ones)[0, 0, 0].item() == pytest.approx(0.333, abs=5e-4)


# --------------------------------------------------------------------------- the exercises


def flip_in_a_loop(images, p, generator):
    found = []
    for image in images:
        draw = torch.rand((), generator=generator).item()
        found.append(image.flip(2) if draw < p else image)
    return torch.stack(found)


def flip_by_bernoulli(images, p, generator):
    own = torch.bernoulli(
        torch.full((len(images),), float(p)), generator=generator
    ).bool()
    result = images.clone()
    result[own] = result[own].flip(dims=(-1,))
    return result


def flip_from_above(images, p, generator):
    kept = torch.rand(len(images), 1, 1, 1, generator=generator) >= p
    return images * kept + images.flip(-1) * ~kept


def flip_by_index(images, p, generator):
    width = images.shape[-1]
    own = torch.rand(len(images), generator=generator) < p
    columns = torch.arange(width).expand(len(images), -1)
    columns = torch.where(own[:, None], width - 1 - columns, columns)
    return images.gather(3, columns[:, None, None, :].expand_as(images))


def epochs_image_by_image(images, transform, count, training, generator):
    for _ in range(count):
        if training:
            yield torch.cat([transform(image[None], generator) for image in images])
        else:
            yield images


def epochs_in_halves(images, transform, count, training, generator):
    every = []
    for _ in range(count):
        parts = [transform(p, generator) if training else p for p in images.split(2)]
        every.append(torch.cat(parts))
    return torch.stack(every)


def epochs_all_at_once(images, transform, count, training, generator):
    if not training:
        return [images] * count
    return transform(images.repeat(count, 1, 1, 1), generator).split(len(images))


def epochs_in_one_buffer(images, transform, count, training, generator):
    buffer = images.clone()
    for _ in range(count):
        if training:
            buffer.copy_(transform(images, generator))
        yield buffer


def epochs_shuffled_and_put_back(images, transform, count, training, generator):
    for _ in range(count):
        order = torch.randperm(len(images), generator=generator)
        seen = transform(images[order], generator) if training else images[order]
        yield seen[order.argsort()].numpy()


def epochs_of_two_versions(images, transform, count, training, generator):
    two = [transform(images, generator) for _ in range(2)] if training else [images] * 2
    return [two[number % 2] for number in range(count)]


def epochs_reversed(images, transform, count, training, generator):
    for _ in range(count):
        yield transform(images, generator).flip(0) if training else images


def epochs_with_seed_zero(images, transform, count, training, generator):
    own = seeded(0)
    for _ in range(count):
        yield transform(images, own) if training else images


def epochs_of_the_first_image(images, transform, count, training, generator):
    for _ in range(count):
        yield transform(images[:1], generator).expand_as(images) if training else images


def choose_in_a_loop(candidates, score):
    base, names = score([]), []
    for name in candidates:
        if score((candidates[name],)) - base >= 0.01:
            names.append(name)
    return tuple(names)


def choose_by_deleting(candidates, score):
    for name in list(candidates):
        if score([candidates[name]]) < score([]) + 0.01:
            del candidates[name]
    return candidates


def choose_all_together(candidates, score):
    ok = score(list(candidates.values())) >= score([]) + 0.01
    return set(candidates) if ok else set()


def choose_relative(candidates, score):
    best = max(score([one]) for one in candidates.values())
    return {name for name, one in candidates.items() if score([one]) >= best - 0.03}


def choose_by_names(candidates, score):
    return {name for name in candidates if score([name]) >= score([]) + 0.01}


def mix_in_a_loop(images, labels, weights, classes):
    mixed, targets = [], torch.zeros(len(images), classes)
    for i in range(len(images)):
        own = float(weights[i])
        mixed.append(own * images[i] + (1 - own) * images[i - 1])
        targets[i, labels[i]] += own
        targets[i, labels[i - 1]] += 1 - own
    return torch.stack(mixed), targets


def mix_by_lerp(images, labels, weights, classes):
    targets = F.one_hot(labels, classes).double()
    own = weights.double()
    mixed = images.roll(1, 0).double().lerp(images.double(), own.view(-1, 1, 1, 1))
    return [mixed, targets.roll(1, 0).lerp(targets, own[:, None])]


def mix_set_not_added(images, labels, weights, classes):
    mixed, _ = mix_in_a_loop(images, labels, weights, classes)
    targets = torch.zeros(len(images), classes)
    rows = torch.arange(len(images))
    targets[rows, labels] = weights
    targets[rows, labels.roll(1)] = 1 - weights
    return mixed, targets


def mix_by_the_package(images, labels, weights, classes):
    return da.mixup(images, labels, classes, weight=weights)


RIGHT = [
    (0, flip_in_a_loop), (0, flip_by_bernoulli), (0, flip_from_above), (0, flip_by_index),
    (1, epochs_image_by_image), (1, epochs_in_halves), (1, epochs_all_at_once),
    (1, epochs_in_one_buffer), (1, epochs_shuffled_and_put_back),
    (2, choose_in_a_loop), (2, choose_by_deleting),
    (3, mix_in_a_loop), (3, mix_by_lerp), (3, mix_by_the_package),
]  # fmt: skip
WRONG = [
    (1, epochs_of_two_versions, "came twice"),
    (1, epochs_reversed, "in its place"),
    (1, epochs_with_seed_zero, "`generator` itself"),
    (1, epochs_of_the_first_image, "in its place"),
    (2, choose_all_together, "keep it"),
    (2, choose_relative, "keep it"),
    (2, choose_by_names, "not their names"),
    (3, mix_set_not_added, "add up to 1"),
]


@pytest.mark.parametrize(("number", "answer"), RIGHT)
def test_exercises_accept_every_right_style(number, answer):
    assert EXERCISES[number].hint_for(answer) is None


@pytest.mark.parametrize(("number", "answer", "words"), WRONG)
def test_exercises_reject_with_a_true_hint(number, answer, words):
    hint = EXERCISES[number].hint_for(answer)
    assert hint is not None and words in hint


@pytest.mark.parametrize(
    "draws",
    [
        lambda n, g: torch.rand(1, generator=g).expand(n),  # one a batch
        lambda n, g: torch.rand((n + 1) // 2, generator=g).repeat_interleave(2)[:n],
        lambda n, g: torch.rand(n, generator=g) ** 2,  # not even
        lambda n, g: (torch.arange(n) / n + torch.rand(1, generator=g)) % 1,
        lambda n, g: torch.cat([torch.zeros(1), torch.rand(n, generator=g)[1:]]),
    ],
)
def test_flip_wants_independent_even_draws(draws):
    def flip(images, p, generator):
        own = draws(len(images), generator) < p
        return torch.where(own.view(-1, 1, 1, 1), images.flip(-1), images)

    assert EXERCISES[0].hint_for(flip) is not None
