"""A script of one's own on each process of a group, as torchrun would start it."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import tempfile
from pathlib import Path
from unittest import mock


def run_script(rank: int, processes: int, text: str) -> str:
    """Run a script's text on each process, in one folder; return what this one prints.

    The folder is empty, shared by all, and gone afterwards. A script that ends its group
    with `destroy_process_group` leaves the caller's, which others may still need.
    """
    import torch.distributed as dist

    with tempfile.TemporaryDirectory() as own:
        script, folder = Path(own) / "script.py", Path(own) / "shared"
        script.write_text(text, encoding="utf-8")
        folder.mkdir()
        shared = [str(folder)]
        dist.broadcast_object_list(shared)  # that of the first
        home, printed = os.getcwd(), io.StringIO()
        os.chdir(shared[0])
        try:
            with (
                contextlib.redirect_stdout(printed),
                mock.patch.object(dist, "destroy_process_group"),
            ):
                runpy.run_path(str(script), run_name="__main__")
        finally:
            os.chdir(home)
        dist.barrier()  # before the folder goes
    return printed.getvalue()
