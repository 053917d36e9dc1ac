"""Fixtures that several test files use, and the order of the files."""

from __future__ import annotations

import gc
import os
import signal
import sys
from multiprocessing import set_forkserver_preload
from pathlib import Path

import pytest
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from dlcourse.lab import warm
from dlcourse.workshop.kernels import ForkedProvisioner

# What takes longest, begun first: at the end only short files are left, and no process of
# pytest-xdist waits long for the other.
LONGEST = (
    *("test_recipes.py", "test_check.py", "test_reliability.py", "test_book.py"),
    *("test_machines.py", "test_saved_notebooks.py", "test_lab_launching.py"),
    *("test_lab_training_processes.py", "test_strangers.py", "test_cli.py"),
    *("test_running.py", "test_parallelism.py", "test_regularization.py"),
    *("test_data_loading.py", "test_harness_bites.py", "test_hyperparameter_tuning.py"),
    *("test_model_compression.py", "test_own_images.py", "test_doctor.py"),
)


async def launch_kernel(self, cmd, **kwargs):
    """Start a kernel as a fork; what it launches borrows our helpers: none of its own."""
    env = {**(kwargs.get("env") or os.environ), **warm.lend()}
    return await ForkedProvisioner.launch_kernel(self, cmd, **{**kwargs, "env": env})


def pytest_configure(config):
    config.option.loadscopereorder = False  # or pytest-xdist goes by the number of tests
    gc.disable()  # what is imported and collected is no garbage
    # a fork of a helper is a kernel like any other, four seconds earlier
    LocalProvisioner.launch_kernel = launch_kernel
    # one search path for all that is started, so one helper; and the files beside these tests
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(map(os.path.abspath, paths)))
    warm.MOST = 8  # the files of tests take turns with more kinds than one program has
    if getattr(config.option, "numprocesses", None):
        os.environ.update(warm.lend())  # the workers of pytest-xdist share their helpers
    if sys.platform == "linux":
        # from Python 3.14 on workers are no forks of this process, but of one that has these
        set_forkserver_preload(["torch.utils.data", "dlcourse.data_loading"])
    # a shell starts what runs in the background with Ctrl-C ignored, and children inherit it
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


def pytest_collection_finish():
    """Leave all that is imported by now out of the search for garbage, which takes half a
    second where torch is imported: some tests ask for it, and Python does at times.
    """
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module")
def pictures_are_drawn_once():
    from pictures import draw_once  # here: most tests need nothing of what it imports

    with pytest.MonkeyPatch.context() as patch:
        draw_once(patch)
        yield


@pytest.fixture(scope="module")
def forks_are_cheap(request):
    """For a file that forks many workers of this process: half of what one costs is to
    copy the page table of a process that has imported all tests.
    """
    if sys.platform == "linux" and len(request.session.items) > 50:  # it takes a second
        warm.use_large_pages()
