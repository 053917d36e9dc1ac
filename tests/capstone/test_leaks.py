"""dlcourse-leaks: copies are found, unrelated pictures are not, and the split holds."""

from __future__ import annotations

import csv
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits, load_sample_images

from dlcourse.capstone import leaks
from dlcourse.capstone.copies import (
    NEAR_ALIKE,
    NEAR_BITS,
    Pair,
    Picture,
    decode,
    digest,
    find_copies,
    in_small,
    perceptual_hash,
    units,
)
from dlcourse.capstone.leaks import main, read_pictures, report, write_split
from dlcourse.capstone.settings import Problem


def patches(height=140, width=156):
    """Return pieces of two photographs that show no part of each other."""
    found = []
    for photograph in load_sample_images().images:
        for top in range(0, photograph.shape[0] - height, height + 1):
            for left in range(0, photograph.shape[1] - width, width + 4):
                found.append(
                    Image.fromarray(photograph[top : top + height, left : left + width])
                )
    return found


PATCHES = patches()


def compressed(image, quality=75):
    stored = io.BytesIO()
    image.save(stored, "jpeg", quality=quality)
    stored.seek(0)
    return Image.open(stored).convert("RGB")


def resized(image, factor):
    width, height = (round(side * factor) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


CHANGES = {
    "half the size": lambda image: resized(image, 0.5),
    "twice the size": lambda image: resized(image, 2),
    "compressed": lambda image: compressed(image, 75),
    "compressed hard": lambda image: compressed(image, 50),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.85),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.85),
    "all of it": lambda image: compressed(
        ImageEnhance.Brightness(resized(image, 0.75)).enhance(1.05), 70
    ),
}


def picture(image, file="a/x.png", label="a", split=None, group=None):
    return Picture(
        file, label, split, group, digest(image), perceptual_hash(image), in_small(image)
    )


def as_pictures(images):
    return [picture(image, file=str(number)) for number, image in enumerate(images)]


# --- copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_near_copies_are_found(change):
    """All but pictures that are nearly one colour, as 5 of the 24 patches are."""
    seen = [image for image in PATCHES if np.asarray(image.convert("L")).std() > 12]
    assert len(seen) == 19
    missed = 0
    for image in seen:
        found = find_copies(as_pictures([image, change(image)]))
        assert all(pair.kind == "near" for pair in found)
        missed += not found
    assert missed <= 1


def test_unrelated_pictures_are_no_copies():
    assert find_copies(as_pictures(PATCHES)) == []


def test_few_of_the_digits_look_like_copies():
    """Pictures of 8x8 are the hardest: 1797 of them, drawn alike, in the same place."""
    images = [
        Image.fromarray((image * 15).astype(np.uint8)) for image in load_digits().images
    ]
    assert len(find_copies(as_pictures(images))) <= 5


def test_mirrored_and_turned_pictures_are_not_found():
    image = PATCHES[8]
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert find_copies(as_pictures([image, mirrored])) == []


def test_flat_pictures_are_compared_by_their_pixels_only():
    flat = [Image.new("RGB", (20, 20), color) for color in ("white", "black", "white")]
    assert find_copies(as_pictures(flat)) == [Pair(0, 2, "exact")]


def test_pairs_are_those_of_a_loop_over_all_pairs(monkeypatch):
    monkeypatch.setattr("dlcourse.capstone.copies.BLOCK", 5)
    images = [change(image) for image in PATCHES[:12] for change in CHANGES.values()]
    pictures = as_pictures(images)
    wanted = set()
    for one in range(len(pictures)):
        for other in range(one + 1, len(pictures)):
            first, second = pictures[one], pictures[other]
            bits = (first.hash != second.hash).sum()
            if bits <= NEAR_BITS and first.small @ second.small >= NEAR_ALIKE:
                wanted.add((one, other))
    assert {(p.first, p.second) for p in find_copies(pictures)} == wanted
    assert len(wanted) > 100


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "gif"])
def test_exact_copies_in_any_format(tmp_path, ending):
    grey = PATCHES[0].convert("L")
    grey.save(tmp_path / f"one.{ending}")
    grey.convert("RGB").save(tmp_path / "two.png")
    digests = [digest(decode(path)) for path in sorted(tmp_path.iterdir())]
    assert digests[0] == digests[1]
    other = grey.copy()
    other.putpixel((3, 3), 255 - other.getpixel((3, 3)))
    assert digest(other.convert("RGB")) != digests[0]


def test_same_bytes_in_another_shape_are_no_copy():
    wide = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(2, 8, 3))
    high = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(8, 2, 3))
    assert wide.tobytes() == high.tobytes() and digest(wide) != digest(high)


def test_decode_turns_upright_and_lays_on_white(tmp_path):
    image = PATCHES[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    assert decode(tmp_path / "turned.png").size == image.size[::-1]
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    assert decode(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    deep = np.full((4, 4), 65535, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert decode(tmp_path / "deep.png").getpixel((0, 0)) == (255, 255, 255)
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "floats.tiff")
    with pytest.raises(ValueError, match="floats"):
        decode(tmp_path / "floats.tiff")


def test_units_join_copies_and_groups():
    image = PATCHES[0]
    groups = ["ann", "ann", "bob", "cid", "cid"]
    pictures = [picture(image, file=f"{k}", group=g) for k, g in enumerate(groups)]
    assert units(pictures, []) == groups
    joined = units(pictures, [Pair(1, 3, "near")])
    assert joined == ["ann", "ann", "bob", "ann", "ann"]
    alone = [picture(image, file=f"{k}") for k in range(4)]
    assert units(alone, [Pair(0, 3, "near"), Pair(2, 3, "near")]) == ["0", "1", "0", "0"]


# --- the folder -----------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    """Return a folder of two classes, with one exact copy, a near one and a contradiction."""
    folder = tmp_path / "images"
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
    for number, image in enumerate(PATCHES[:20]):
        person = f"p{number // 2}"
        image.save(folder / "ab"[number % 2] / f"{person}_{number}.png")
    PATCHES[2].save(folder / "a" / "p1_copy.bmp")
    compressed(PATCHES[9]).save(folder / "b" / "p4_near.png")
    PATCHES[12].save(folder / "b" / "p6_other.png")  # class a, too
    return folder


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def said(capsys):
    out, error = capsys.readouterr()
    return out.splitlines(), error.splitlines()


def test_counts_and_contradictions(root, capsys):
    assert main([str(root)]) == 1
    lines, errors = said(capsys)
    assert lines == [
        "23 images, 2 classes: 2 exact copies, 1 near copy, 1 in two classes",
        "  two classes: a/p6_12.png and b/p6_other.png (exact)",
    ]
    assert errors == []


def test_a_folder_without_leaks_exits_with_0(root, capsys):
    (root / "b" / "p6_other.png").unlink()
    assert main([str(root)]) == 0
    assert len(said(capsys)[0]) == 1


@pytest.mark.parametrize("groups", [None, r"^(p\d+)_"])
def test_the_split_keeps_copies_and_groups_together(root, tmp_path, capsys, groups):
    file = tmp_path / "split.csv"
    shares = ["--validation", "0.2", "--test", "0.2"]
    more = [] if groups is None else ["--groups", groups]
    assert main([str(root), "--csv", str(file), *shares, *more]) == 1
    rows = rows_of(file)
    assert list(rows[0]) == ["file", "class", "group", "split"]
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.*"))
    assert [row["file"] for row in rows] == files
    assert all(row["class"] == row["file"][0] for row in rows)
    side = {row["file"]: row["split"] for row in rows}
    assert side["a/p1_2.png"] == side["a/p1_copy.bmp"]
    assert side["b/p4_9.png"] == side["b/p4_near.png"]
    assert side["a/p6_12.png"] == side["b/p6_other.png"]
    assert {"train", "validation", "test"} == set(side.values())
    if groups:
        sides = {}
        for name, part in side.items():
            sides.setdefault(name[2:4], set()).add(part)
        assert all(len(parts) == 1 for parts in sides.values())
    capsys.readouterr()

    # the split that was written passes the command's own examination
    main([str(root), "--split", str(file), *more])
    assert "across splits: 0 pairs of copies" in said(capsys)[0][0]


def test_copies_and_groups_across_splits_are_named(root, tmp_path, capsys):
    file = tmp_path / "split.csv"
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.*"))
    lines = [f"{name},{'test' if '_copy' in name else 'train'}" for name in names]
    file.write_text("\n".join(["file,split", *lines]))
    assert main([str(root), "--split", str(file), "--groups", r"^(p\d+)"]) == 1
    lines, _ = said(capsys)
    assert lines[0].endswith("across splits: 1 pair of copies, 1 group")
    assert "  across splits: a/p1_2.png and a/p1_copy.bmp (exact)" in lines
    assert "  across splits: group p1 in test, train" in lines


def test_folders_named_like_splits_are_a_split(root, tmp_path, capsys):
    top = tmp_path / "split"
    for part in ("train", "Test"):
        (top / part / "a").mkdir(parents=True)
    PATCHES[0].save(top / "train" / "a" / "x.png")
    PATCHES[0].save(top / "Test" / "a" / "y.png")
    assert main([str(top)]) == 1
    lines, _ = said(capsys)
    assert lines[0] == (
        "2 images, 1 class: 1 exact copy, 0 near copies, 0 in two classes; across splits: "
        "1 pair of copies"
    )


def test_groups_by_folder_level_and_by_csv(tmp_path):
    for person in ("ann", "bob"):
        (tmp_path / "a" / person).mkdir(parents=True)
        PATCHES[0].save(tmp_path / "a" / person / "x.png")
    pictures, _ = read_pictures(tmp_path, "2")
    assert [p.group for p in pictures] == ["ann", "bob"]
    file = tmp_path / "who.csv"
    file.write_text("group,file\nq,a/bob/x.png\nq,a/ann/x.png\n", encoding="utf-8-sig")
    pictures, _ = read_pictures(tmp_path, str(file))
    assert [p.group for p in pictures] == ["q", "q"]
    assert [p.label for p in pictures] == ["a", "a"]


def test_unreadable_images_are_named_and_left_out(root, capsys):
    (root / "a" / "bad.png").write_bytes(b"no image")
    (root / "a" / ".hidden.png").write_bytes(b"no image")
    (root / "a" / "notes.txt").write_text("no image")
    assert main([str(root)]) == 1
    lines, errors = said(capsys)
    assert lines[0].startswith("23 images")
    assert len(errors) == 1 and errors[0].startswith("dlcourse-leaks: a/bad.png cannot")


def test_many_pairs_are_cut_short(tmp_path, capsys):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
    PATCHES[0].save(tmp_path / "a" / "one.png")
    for number in range(leaks.SHOWN + 3):
        PATCHES[0].save(tmp_path / "b" / f"{number}.png")
    main([str(tmp_path)])
    lines, _ = said(capsys)
    assert len(lines) == leaks.SHOWN + 2 and lines[-1] == "  two classes: 3 more"


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        (["--groups", "3"], "folders deep"),
        (["--groups", "0"], "folders deep"),
        (["--groups", "("], "no regular expression"),
        (["--groups", "p"], "one pair of brackets"),
        (["--groups", r"^(q\d)"], "does not fit the name of a/"),
        (["--groups", "none.csv"], "cannot be read"),
        (["--split", "none.csv"], "cannot be read"),
        (["--csv", "nowhere/out.csv"], "there is no folder"),
        (["--csv", "out.csv", "--test", "0"], "share in"),
        (["--csv", "out.csv", "--test", "0.9"], "leave nothing to train on"),
        (["--csv", "out.csv", "--groups", "(p)"], "cut the groups finer"),
        (["--seed", "-1"], "0 or more"),
    ],
)
def test_errors_are_one_line(root, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    assert main([str(root), *options]) == 2
    _, errors = said(capsys)
    assert len(errors) == 1 and words in errors[0]
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "first line that names file and group"),
        ("file,who\na/x.png,1\n", "first line that names file and group"),
        ("file,group\nb/x.png,1\n", "names no group for a/x.png"),
        ("file,group\na/x.png,\n", "names no group for a/x.png"),
    ],
)
def test_errors_in_a_csv(tmp_path, capsys, text, words):
    (tmp_path / "a").mkdir()
    PATCHES[0].save(tmp_path / "a" / "x.png")
    (tmp_path / "g.csv").write_text(text)
    assert main([str(tmp_path), "--groups", str(tmp_path / "g.csv")]) == 2
    _, errors = said(capsys)
    assert len(errors) == 1 and words in errors[0]


def test_errors_of_a_folder(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    assert main([str(tmp_path)]) == 2
    PATCHES[0].save(tmp_path / "loose.png")
    assert main([str(tmp_path)]) == 2
    (tmp_path / "loose.png").write_bytes(b"")
    (tmp_path / "a").mkdir()
    (tmp_path / "loose.png").rename(tmp_path / "a" / "bad.png")
    assert main([str(tmp_path)]) == 2
    _, errors = said(capsys)
    words = ("there is no folder", "holds no images", "no class folder", "can be read")
    for line, word in zip(errors, words, strict=True):
        assert word in line


def test_library_raises_problems(root, tmp_path):
    pictures, unreadable = read_pictures(root)
    pairs = find_copies(pictures)
    assert unreadable == [] and len(report(pictures, pairs).two_classes) == 1
    with pytest.raises(Problem, match="share in"):
        names = units(pictures, pairs)
        write_split(tmp_path / "x.csv", pictures, names, 0.1, 1.5, 0)


def test_the_command_starts_without_torch(root):
    """It answers at once: importing torch takes seconds."""
    code = (
        "import sys; from dlcourse.capstone.leaks import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; raise SystemExit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr == "", done.stderr
    assert done.stdout.startswith("23 images")
