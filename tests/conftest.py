"""Fixtures that several test files use, and the order of the files."""

from __future__ import annotations

import pytest

# What takes longest, begun first: at the end only short files are left, and no process of
# pytest-xdist waits long for the other.
LONGEST = (
    *("test_saved_notebooks.py", "test_reliability.py", "test_recipes.py"),
    *("test_check.py", "test_book.py", "test_own_images.py", "test_parallelism.py"),
    *("test_lab_launching.py", "test_data_loading.py", "test_lab_training_processes.py"),
    *("test_cli.py", "test_hyperparameter_tuning.py", "test_harness_bites.py"),
    *("test_model_compression.py", "test_regularization.py", "test_doctor.py"),
)


def pytest_configure(config):
    config.option.loadscopereorder = False  # or pytest-xdist goes by the number of tests


def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="module")
def pictures_are_drawn_once():
    from pictures import draw_once  # here: most tests need nothing of what it imports

    with pytest.MonkeyPatch.context() as patch:
        draw_once(patch)
        yield
