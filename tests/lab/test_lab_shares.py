"""Of a `DataLoader` each process reads its own rows, and nothing else changes."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from dlcourse.lab.accelerator import make_accelerator
from dlcourse.lab.evaluation import evaluate
from dlcourse.lab.launching import launch
from dlcourse.lab.shares import OwnStream, ShareLoader, can_be_cut, part_of
from dlcourse.lab.training import fit, use_one_thread

ROWS = 45
EPOCHS = 2

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(ROWS, 6, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.randint(0, 3, (ROWS,), generator=GENERATOR)


# --- data sets, as a process reads them -----------------------------------------------------------


class Noted(Dataset):
    """Rows that note in a file of the process which of them were read."""

    def __init__(self, file):
        self.file = str(file)

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        with open(self.file, "a") as file:
            file.write(f"{row}\n")
        return INPUTS[row], LABELS[row]


class NotedAtOnce(Noted):
    """The same, read a batch at a time."""

    def __getitems__(self, rows):
        return [self[row] for row in rows]


class NotedBatches(Noted):
    """The same, where a whole batch is one index."""

    def __getitem__(self, rows):
        return torch.utils.data.default_collate(
            [super(NotedBatches, self).__getitem__(row) for row in rows]
        )


class NotedStream(IterableDataset):
    """The same rows, of which only the data set knows which comes next."""

    def __init__(self, file):
        self.rows = Noted(file)

    def __len__(self):
        return ROWS

    def __iter__(self):
        return (self.rows[row] for row in range(ROWS))


class Drawing(Dataset):
    """Rows that are drawn at random, with all three generators."""

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        noise = torch.rand(4, dtype=torch.float64)
        numbers = [np.random.rand(), random.random()]
        return torch.cat([noise, torch.tensor(numbers, dtype=torch.float64)]), LABELS[row]


def noted_loader(kind: str, file) -> DataLoader:
    """Return a loader of one kind whose reads are noted."""
    rows = Noted(file)
    seeded = torch.Generator().manual_seed(3)
    if kind == "plain":
        return DataLoader(rows, batch_size=20, shuffle=True)
    if kind == "generator":
        return DataLoader(rows, batch_size=20, shuffle=True, generator=seeded)
    if kind == "uneven":
        return DataLoader(rows, batch_size=8, shuffle=True)  # 3 of 5 at the end
    if kind == "one left":
        return DataLoader(rows, batch_size=22, shuffle=True)  # none of 1 at the end
    if kind == "drop_last":
        return DataLoader(rows, batch_size=20, shuffle=True, drop_last=True)
    if kind == "batch_sampler":
        batches = BatchSampler(RandomSampler(rows), 20, False)
        return DataLoader(rows, batch_sampler=batches)
    if kind == "getitems":
        return DataLoader(NotedAtOnce(file), batch_size=20, shuffle=True)
    if kind == "whole batches":
        batches = BatchSampler(RandomSampler(rows), 20, False)
        return DataLoader(NotedBatches(file), sampler=batches, batch_size=None)
    workers = {"num_workers": 2, "persistent_workers": kind == "persistent workers"}
    return DataLoader(rows, batch_size=20, shuffle=True, **workers)


KINDS = (
    "plain",
    "generator",
    "uneven",
    "drop_last",
    "batch_sampler",
    "getitems",
    "whole batches",
    "workers",
    "persistent workers",
)


WITH_ONE_LEFT = (*KINDS, "one left")  # of which the second process reads the same row


def reads(folder) -> list[Counter]:
    """Return what each process has read, by the file that it left."""
    files = sorted(Path(folder).glob("reads*"))
    return [Counter(int(line) for line in file.read_text().split()) for file in files]


# --- one loader, cut for each of several processes, in this process -------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("rows", [0, 1, 2, 5, 20, 21])
def test_parts_are_those_of_tensor_split(rows, world):
    batch = list(range(100, 100 + rows))
    for rank, part in enumerate(torch.tensor(batch).tensor_split(world)):
        assert part_of(batch, rank, world) == part.tolist()


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_shares_read_each_row_once_and_make_the_whole_batches(tmp_path, kind, world):
    torch.manual_seed(5)
    loader = noted_loader(kind, tmp_path / "whole")
    whole = [batch for _ in range(EPOCHS) for batch in loader]
    after = torch.rand(1)
    shares = []
    for rank in range(world):
        torch.manual_seed(5)
        cut = ShareLoader(noted_loader(kind, tmp_path / f"reads{rank}"), rank, world)
        shares.append([batch for _ in range(EPOCHS) for batch in cut])
        assert torch.equal(torch.rand(1), after)  # torch's generator is where it was
    for number, (inputs, labels) in enumerate(whole):
        parts = [share[number] for share in shares]
        assert torch.equal(torch.cat([part[0] for part in parts]), inputs)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)
        assert [part[2] for part in parts] == [len(part[0]) for part in parts]
        assert {part[3] for part in parts} == {len(inputs)}
    together = sum(reads(tmp_path), Counter())
    if kind == "drop_last":
        assert sum(together.values()) == EPOCHS * 40
    else:
        assert together == Counter({row: EPOCHS for row in range(ROWS)})


def test_the_rebuilt_loader_keeps_the_settings():
    def worker_init(worker):
        pass

    loader = DataLoader(
        TensorDataset(INPUTS, LABELS), batch_size=10, num_workers=2, prefetch_factor=3,
        persistent_workers=True, timeout=7, generator=torch.Generator(),
        multiprocessing_context="spawn", worker_init_fn=worker_init, collate_fn=list,
    )  # fmt: skip
    made = ShareLoader(loader, 1, 2).loader
    for name in ("num_workers", "prefetch_factor", "persistent_workers", "timeout"):
        assert getattr(made, name) == getattr(loader, name)
    assert made.generator is loader.generator and made.collate_fn is list
    assert made.multiprocessing_context.get_start_method() == "spawn"
    assert made.worker_init_fn.then is worker_init
    assert made.dataset is loader.dataset  # so worker_init_fn finds the reader's own
    assert len(made) == len(loader)


def test_a_process_without_rows_takes_part_and_counts_nothing():
    loader = DataLoader(TensorDataset(INPUTS[:3], LABELS[:3]), batch_size=3)
    parts = [next(iter(ShareLoader(loader, rank, 4))) for rank in range(4)]
    assert [mine for _, _, mine, _ in parts] == [1, 1, 1, 0]
    assert torch.equal(parts[3][0], INPUTS[:1])


def test_a_collate_fn_that_drops_rows_is_told():
    def without_first(rows):
        return torch.utils.data.default_collate(rows[1:])

    def doubled(rows):
        return torch.utils.data.default_collate([*rows, *rows])

    data = TensorDataset(INPUTS, LABELS)
    twice = DataLoader(data, batch_size=20, collate_fn=doubled)
    assert [mine for _, _, mine, _ in ShareLoader(twice, 0, 2)] == [10, 10, 3]
    fewer = DataLoader(data, batch_size=20, collate_fn=without_first)
    with pytest.raises(ValueError, match="9 rows of 10 drawn"):
        list(ShareLoader(fewer, 0, 2))


def test_which_loaders_are_read_whole(tmp_path):
    data = TensorDataset(INPUTS, LABELS)

    class Own(DataLoader):
        pass

    assert can_be_cut(DataLoader(data, batch_size=4))
    assert not can_be_cut(DataLoader(NotedStream(tmp_path / "a"), batch_size=4))
    assert not can_be_cut(DataLoader(data, batch_size=None))
    assert not can_be_cut(DataLoader(data, num_workers=1, in_order=False))
    assert not can_be_cut(Own(data))


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_are_drawn_otherwise_on_each_process(workers):
    drawn, after = [], []
    for rank in (0, 1):
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        loader = DataLoader(Drawing(), batch_size=20, num_workers=workers)
        rows = [
            inputs for _ in range(EPOCHS) for inputs, *_ in ShareLoader(loader, rank, 2)
        ]
        drawn.append(torch.cat(rows))
        after.append([torch.rand(1).item(), np.random.rand(), random.random()])
    assert after[0] == after[1]
    columns = torch.cat(drawn)
    for column in columns.T:  # by torch, NumPy and Python; no number comes twice
        assert len(column.unique()) == EPOCHS * ROWS


def test_the_stream_leaves_the_generators_where_they_stood():
    stream = OwnStream(1)
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    stream.begin()
    with stream.drawing():
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with stream.drawing():
        assert not torch.equal(torch.rand(3), first)
    torch.manual_seed(2)
    stream.begin()
    with stream.drawing():
        assert torch.equal(torch.rand(3), first)


# --- fit, in real processes -----------------------------------------------------------------------


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def small_model() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def weights(model) -> list[float]:
    return torch.cat([p.detach().ravel() for p in model.parameters()]).tolist()


def unchanged(inputs, targets):
    return inputs, targets


def train(loader, **more) -> list[float]:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    torch.manual_seed(11)
    fit(model, loader, optimizer, epochs=EPOCHS, **more)
    return weights(model)


def train_each_kind(folder) -> dict:
    """Return the weights by kind, read by shares, and whole as an unchanged batch makes
    it.
    """
    found = {}
    for kind in WITH_ONE_LEFT:
        where = Path(folder) / kind
        where.mkdir(exist_ok=True)
        by_share = train(noted_loader(kind, where / f"reads{rank()}"))
        whole = train(noted_loader(kind, where / f"whole{rank()}"), transform=unchanged)
        found[kind] = {"by share": by_share, "whole": whole}
    stream = Path(folder) / "stream"
    stream.mkdir(exist_ok=True)
    train(DataLoader(NotedStream(stream / f"reads{rank()}"), batch_size=20))
    return found


def train_exactly() -> list[float]:
    """Return weights whose sums are exact in float64, in whatever order they are added."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(-3, 4, (16, 4), generator=generator).double()
    targets = torch.randint(-3, 4, (16, 1), generator=generator).double()
    model = nn.Linear(4, 1).double()
    with torch.no_grad():
        model.weight.fill_(0.5)
        model.bias.fill_(0.25)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=8, shuffle=True)
    torch.manual_seed(11)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-5)
    fit(model, loader, optimizer, epochs=2, loss_fn=nn.functional.mse_loss)
    return weights(model)


def loader_for_resume(kind: str) -> DataLoader:
    data = Drawing() if kind == "drawing" else TensorDataset(INPUTS, LABELS)
    settings = {"batch_size": 20}
    if kind == "sampler's generator":
        generator = torch.Generator().manual_seed(3)
        sampler = WeightedRandomSampler(torch.ones(ROWS), ROWS, generator=generator)
        return DataLoader(data, sampler=sampler, **settings)
    if kind == "generator":
        settings["generator"] = torch.Generator().manual_seed(3)
    if kind == "workers":
        settings["num_workers"] = 1
        data = Drawing()
    return DataLoader(data, shuffle=True, **settings)


RESUMED = ("plain", "generator", "sampler's generator", "drawing", "workers")
CUTS = (1, 3, 4)


def train_to(path, kind, steps, resume=False) -> list:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    seed = 999 if resume else 11
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    history = fit(
        model, loader_for_resume(kind), optimizer, steps=steps, checkpoint=path,
        resume=resume,
    )  # fmt: skip
    return [weights(model), history.loss]


def resume_each_kind(folder) -> list:
    """Return [kind, cut, equal to the uncut run]; three updates are an epoch."""
    found = []
    for kind in RESUMED:
        whole = train_to(f"{folder}/whole {kind}.pt", kind, 7)
        for cut in CUTS:
            path = f"{folder}/{kind} {cut}.pt"
            train_to(path, kind, cut)
            found.append([kind, cut, train_to(path, kind, 7, resume=True) == whole])
    return found


def evaluate_a_loader(folder) -> list:
    """Evaluate twice, on rows that come in a loader; the second time on one row."""
    where = Path(folder) / "evaluated"
    where.mkdir(exist_ok=True)
    loader = DataLoader(Noted(where / f"reads{rank()}"), batch_size=20)
    one_row = DataLoader(TensorDataset(INPUTS[:1], LABELS[:1]))
    accelerator = make_accelerator()
    model = small_model()
    return [evaluate(model, data, accelerator=accelerator) for data in (loader, one_row)]


def all_in_turn(folder) -> dict:
    """Return what a process finds for each test; started once, since a start takes
    seconds.
    """
    use_one_thread()
    return {
        "kinds": train_each_kind(folder),
        "exactly": train_exactly(),
        "resume": resume_each_kind(folder),
        "evaluate": evaluate_a_loader(folder),
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Return the folder and what this one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, all_in_turn(str(folder))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Return the folder and what each of two processes finds."""
    folder = tmp_path_factory.mktemp("pair")
    return folder, launch(all_in_turn, args=[str(folder)], timeout=240.0)


def expected_reads(kind: str) -> int:
    return EPOCHS * (40 if kind == "drop_last" else ROWS)


@pytest.mark.parametrize("kind", KINDS)
def test_fit_reads_each_row_once_over_all_processes(alone, pair, kind):
    (one,) = reads(alone[0] / kind)
    first, second = reads(pair[0] / kind)
    assert one.total() == first.total() + second.total() == expected_reads(kind)
    if kind != "drop_last":  # else the rows that are left out differ by epoch
        assert first + second == one == Counter({row: EPOCHS for row in range(ROWS)})
    assert abs(first.total() - second.total()) <= EPOCHS * 7  # seven batches at most


def test_a_batch_of_one_row_is_read_by_both_processes(pair):
    first, second = reads(pair[0] / "one left")
    assert (first + second).total() == EPOCHS * (ROWS + 1)


@pytest.mark.parametrize("kind", WITH_ONE_LEFT)
def test_fit_by_shares_is_fit_on_whole_batches(alone, pair, kind):
    one = alone[1]["kinds"][kind]["by share"]
    for found in pair[1]:
        by_share = found["kinds"][kind]["by share"]
        assert by_share == found["kinds"][kind]["whole"]  # to the bit
        assert by_share == pytest.approx(one, rel=0, abs=1e-12)


def test_fit_by_shares_is_one_process_to_the_bit_where_sums_are_exact(alone, pair):
    assert alone[1]["exactly"] == pair[1][0]["exactly"] == pair[1][1]["exactly"]


def test_whole_batches_are_read_where_a_loader_cannot_be_cut(pair):
    for found in reads(pair[0] / "stream"):
        assert found == Counter({row: EPOCHS for row in range(ROWS)})
    for file in (pair[0] / "plain").glob("whole*"):  # with a transform
        assert len(file.read_text().split()) == EPOCHS * ROWS


def test_resume_continues_to_the_bit(alone, pair):
    expected = [[kind, cut, True] for kind in RESUMED for cut in CUTS]
    assert alone[1]["resume"] == expected
    assert [found["resume"] for found in pair[1]] == [expected, expected]


def test_evaluate_reads_each_row_once_over_all_processes(alone, pair):
    one = alone[1]["evaluate"]
    for found in pair[1]:
        for row, wanted in zip(found["evaluate"], one, strict=True):
            assert row == pytest.approx(wanted, rel=0, abs=1e-6)
    together = sum(reads(pair[0] / "evaluated"), Counter())
    assert together == Counter({row: 1 for row in range(ROWS)})
