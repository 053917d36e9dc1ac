"""Which images are right and wrong: counts against scikit-learn, files as they can be
read back.
"""

from __future__ import annotations

import csv

import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix as sk_confusion
from sklearn.metrics import precision_score, recall_score

from dlcourse.capstone import report


@pytest.mark.parametrize("seed", range(20))
def test_the_matrix_recall_and_precision_are_those_of_scikit_learn(seed):
    g = torch.Generator().manual_seed(seed)
    classes = int(torch.randint(2, 12, (), generator=g))
    true, said = torch.randint(0, classes, (2, 200), generator=g)
    counts = report.confusion_matrix(true, said, classes)
    labels = list(range(classes))
    assert counts.tolist() == sk_confusion(true, said, labels=labels).tolist()
    assert counts.sum(1).tolist() == torch.bincount(true, minlength=classes).tolist()
    assert counts.trace() == (true == said).sum()
    rows = report.by_class(counts, [f"c{k}" for k in labels]).splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    how = {"labels": labels, "average": None, "zero_division": 0}
    recall, precision = (
        recall_score(true, said, **how),
        precision_score(true, said, **how),
    )
    for name, images, found, right in cells:
        k = int(name[1:])
        assert int(images) == (true == k).sum()
        low, high = (float(v) for v in found.split("[")[1].rstrip("]").split(","))
        assert (
            found.startswith(f"{recall[k]:.3f}")
            and low <= recall[k] + 5e-4 <= high + 1e-3
        )
        assert right == (f"{precision[k]:.3f}" if (said == k).any() else "never named")


def test_no_labels_are_no_mistakes():
    none = torch.arange(0)
    assert report.confusion_matrix(none, none, 3).tolist() == [[0] * 3] * 3


def test_only_the_hardest_of_many_classes_are_in_the_table():
    counts = torch.diag(torch.full((50,), 9))
    counts[7, 8] = counts[40, 41] = 1
    counts[3] = 0  # no image of that class
    table = report.by_class(counts, [f"c{k}" for k in range(50)])
    assert "| c7 |" in table and "| c40 |" in table and "| c3 |" not in table
    assert len(table.splitlines()) == 2 + report.SHOWN_CLASSES + 2
    assert table.endswith("The 30 of 49 classes with the lowest recall.")
    assert r"| a\|b |" in report.by_class(torch.eye(2).long(), ["a|b", "c"])


def test_the_most_frequent_mistakes_come_first():
    counts = torch.tensor([[5, 1, 0], [4, 9, 0], [0, 0, 2]])
    assert report.most_confused(counts, "abc") == [
        "b taken for a (4)",
        "a taken for b (1)",
    ]
    assert report.most_confused(counts, "abc", longest=1) == ["b taken for a (4)"]
    assert report.most_confused(torch.eye(3).long(), "abc") == []


def test_files_can_be_read_back(tmp_path):
    classes = ["a, b", 'ねこ "c"', "\udce9"]  # the last: a file name that is no UTF-8
    counts = torch.randint(0, 99, (3, 3), generator=torch.Generator().manual_seed(0))
    report.write_confusion(tmp_path / "c.csv", counts, classes)
    again, names = report.read_confusion(tmp_path / "c.csv")
    assert torch.equal(again, counts) and names == classes
    shares = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]])
    report.write_predictions(
        tmp_path / "p.csv", ["x", "y"], shares, classes, torch.tensor([1, 2])
    )
    with open(
        tmp_path / "p.csv", newline="", encoding="utf-8", errors="surrogateescape"
    ) as file:
        rows = list(csv.DictReader(file))
    assert [row["predicted"] for row in rows] == [classes[1], classes[0]]
    assert [float(row["probability_of_true"]) for row in rows] == [0.7, 0.25]
    assert float(rows[0]["p(a, b)"]) == 0.2


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 3, 20])
def test_pictures_are_drawn(tmp_path, channels, count):
    g = torch.Generator().manual_seed(0)
    images, true = torch.rand(count, channels, 8, 8, generator=g), torch.arange(count) % 2
    shares = torch.rand(count, 2, generator=g)
    report.draw_hardest(tmp_path / "h.png", images, true, shares, ["a" * 40, "b"])
    counts = report.confusion_matrix(true, shares.argmax(1), 2)
    report.draw_confusion(tmp_path / "c.png", counts, ["a" * 40, "b"])
    sizes = [Image.open(tmp_path / name).size for name in ("h.png", "c.png")]
    assert sizes[0][0] == 170 * min(6, count) and sizes[0][1] == 190 * (1 + (count > 6))
    assert min(sizes[1]) > 100
