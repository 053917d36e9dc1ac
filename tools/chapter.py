"""Run chapters and store their outputs: ``python tools/chapter.py 04 07``, or ``all``.

Each notebook runs in a fresh kernel of this Python, on one thread. Only when every cell
has run is the file replaced; the seconds it took go to ``chapters/seconds.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "chapters"
# What JupyterLab writes, so that it does not take an opened chapter for a changed one. The
# version is that of the Python that ran the chapter.
METADATA = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
        "version": platform.python_version(),
    },
}
CELL_METADATA = ("jupyter", "tags")  # "jupyter" says whether the source is folded
CELL_TIMEOUT = 300  # seconds; a whole chapter should need less than LIMIT
LIMIT = 30
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class ChapterError(Exception):
    """A cell of a chapter failed; the message holds its number and the traceback."""


class ThisPython(KernelSpecManager):
    """Every kernel name stands for the Python that runs this file."""

    def get_kernel_spec(self, kernel_name):
        """Return the specification of an ipykernel in ``sys.executable``."""
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(
            argv=argv, display_name="Python 3 (ipykernel)", language="python"
        )


def kernel_environment() -> dict[str, str]:
    """Return the environment of the kernel: one thread, no bars, the package on the path."""
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "DLCOURSE_PROGRESS": "0",  # a stored bar would differ at each run
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(map(os.path.abspath, paths))),
    }


def write_atomic(path: Path, text: str) -> None:
    """Replace the file at ``path`` in one step, so that no half-written file is ever
    seen.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, path.stat().st_mode if path.exists() else 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def strip_volatile(book) -> None:
    """Drop what differs from run to run: times, kernel details, paths in tracebacks."""
    book.metadata = nbformat.from_dict(METADATA)
    for cell in book.cells:
        cell.metadata = nbformat.from_dict(
            {k: v for k, v in cell.metadata.items() if k in CELL_METADATA}
        )
        if cell.cell_type == "code":
            cell.outputs = merge_streams(cell.outputs)
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                output.traceback = [f"{output.ename}: {output.evalue}"]


def merge_streams(outputs: list) -> list:
    """Return the outputs with neighbouring pieces of one stream as one, as JupyterLab
    stores them; nbclient would also join pieces with other outputs between them.
    """
    merged = []
    for output in outputs:
        last = merged[-1] if merged else None
        stream = output.output_type == "stream"
        if stream and last and last.get("name") == output.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


def processor_seconds() -> float | None:
    """Return the processor time of all child processes that have ended, where it is known."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def execute(path: Path):
    """Run the notebook at ``path``; return it with its outputs, and the seconds it took.

    Raises ChapterError when a cell fails, takes too long, or kills its kernel.
    """
    book = nbformat.read(path, as_version=4)
    at = {"index": 0}
    client = NotebookClient(
        book,
        km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisPython()),
        kernel_name="python3",
        timeout=CELL_TIMEOUT,
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_start=lambda cell, cell_index: at.update(index=cell_index),
    )
    start, used = time.perf_counter(), processor_seconds()
    try:
        client.execute(env=kernel_environment(), cleanup_kc=True)
    except (CellExecutionError, DeadKernelError, TimeoutError) as error:
        cell = book.cells[at["index"]]
        reason = getattr(error, "traceback", None) or str(error)
        raise ChapterError(
            f"{path.name}: cell {at['index'] + 1} of {len(book.cells)} (id {cell.id}) failed; "
            f"the file is left as it was.\n{COLOUR.sub('', reason)}"
        ) from None
    seconds = time.perf_counter() - start
    used_now = processor_seconds()
    if used is not None and used_now is not None:
        # where the machine is busy with other things, the clock says more
        seconds = min(seconds, used_now - used)
    strip_volatile(book)
    return book, seconds


def run_chapter(path: Path) -> int:
    """Run one chapter, store its outputs and its seconds beside it; return the whole
    seconds.
    """
    book, seconds = execute(path)
    whole = max(1, round(seconds))
    write_atomic(path, nbformat.writes(book).rstrip("\n") + "\n")
    record = path.parent / "seconds.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    known[path.stem] = whole
    write_atomic(record, json.dumps(known, indent=2, sort_keys=True) + "\n")
    return whole


def find(names: list[str], folder: Path = CHAPTERS) -> list[Path]:
    """Return the notebooks that ``names`` (numbers such as 04, or "all") stand for."""
    if not names or names == ["all"]:
        return sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    found = []
    for name in names:
        matches = sorted(folder.glob(f"{name.zfill(2)}_*.ipynb"))
        if len(matches) != 1:
            listed = ", ".join(path.name for path in matches) or "none"
            raise SystemExit(
                f"chapter {name!r}: want one notebook in {folder}, found {listed}"
            )
        found += matches
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the chapters named on the command line; return 1 when one of them failed."""
    parser = argparse.ArgumentParser(description="Run chapters and store their outputs.")
    parser.add_argument(
        "chapter", nargs="*", help='numbers such as 04, or "all" (the default)'
    )
    failed = 0
    for path in find(parser.parse_args(arguments).chapter):
        try:
            seconds = run_chapter(path)
        except ChapterError as error:
            failed += 1
            print(error, file=sys.stderr, flush=True)
        else:
            over = f" (over the {LIMIT} s a chapter may take)" if seconds > LIMIT else ""
            print(f"{path.name}: {seconds} s{over}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
