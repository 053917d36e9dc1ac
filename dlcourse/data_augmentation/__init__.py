"""Data augmentation: fresh, label-preserving variants of the training images, drawn on
the fly.

Images are a batch (n, c, h, w). Every random transform is called as `transform(images,
generator)`, takes one decision for each image and has no loop over the images. It never
changes its input. Without a generator it draws from torch's global one.

Geometry (flips, crops, affine maps, erasing) takes images in any range; `fill` is the
value of the new pixels, so give it the value that black has after normalising. Colour
takes images in [0, 1] and raises otherwise: normalise after it.
"""

from dlcourse.data_augmentation.color import (
    GREY,
    ColorJitter,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
)
from dlcourse.data_augmentation.geometry import (
    RandomAffine,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomRotation,
    RandomVerticalFlip,
    affine,
    crop,
    erase,
    horizontal_flip,
    pad,
    vertical_flip,
)
from dlcourse.data_augmentation.mixing import beta_weights, cutmix, mixup
from dlcourse.data_augmentation.noise import GaussianNoise, SaltAndPepper
from dlcourse.data_augmentation.pipeline import (
    Compose,
    expand,
    on_batches,
    predict_views,
)
from dlcourse.data_augmentation.trivial_augment import (
    TRIVIAL_OPS,
    TrivialAugment,
    adjust_sharpness,
    autocontrast,
    equalize,
    posterize,
    solarize,
)

__all__ = [
    "ColorJitter",
    "GREY",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_saturation",
    "RandomAffine",
    "RandomCrop",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomRotation",
    "RandomVerticalFlip",
    "affine",
    "crop",
    "erase",
    "horizontal_flip",
    "pad",
    "vertical_flip",
    "GaussianNoise",
    "SaltAndPepper",
    "beta_weights",
    "cutmix",
    "mixup",
    "TRIVIAL_OPS",
    "TrivialAugment",
    "adjust_sharpness",
    "autocontrast",
    "equalize",
    "posterize",
    "solarize",
    "Compose",
    "expand",
    "on_batches",
    "predict_views",
]
